"""Losses and gradients that are not finite: no update is made from them, on any rank."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from beit.config.errors import RunFailed

MOST_IN_A_ROW = 20
"""After so many skipped steps on end the run will not recover by itself."""


class NonFiniteGuard:
    """Withholds updates on the device, and tells the host one step later, so that neither waits for the other."""

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        self.policy = policy
        self.skipped = 0
        """Steps without an update."""
        self._in_a_row = 0
        self._tripped: Tensor | None = None
        self._unchecked: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def update(self, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        """Step `optimizer`, unless `bad` (a bool scalar, the same on every rank)."""
        if self.policy == "stop":
            # Until the host has noticed, later steps are withheld as well.
            bad = self._tripped = bad if self._tripped is None else bad | self._tripped
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # Fused optimisers leave weights and moments alone where this says so, as they do for a GradScaler.
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            optimizer.step()
        elif not bad:
            optimizer.step()

    def watch(self, step: int, bad: Tensor, loss: Tensor, norm: Tensor) -> None:
        """Look at the step before `step`, which a GPU has done by now; elsewhere at `step` itself.

        Raises:
            RunFailed: as :meth:`check`.
        """
        self.check()
        values = torch.stack([bad.float(), loss.detach().float(), norm.float()]).to("cpu", non_blocking=True)
        arrived = None
        if bad.device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._unchecked = (step, values, arrived)
        if arrived is None:
            self.check()

    def check(self) -> None:
        """Look at the step that is still unseen, if there is one.

        Raises:
            RunFailed: it was not finite, and the policy is to stop, or too many were so on end.
        """
        if self._unchecked is None:
            return
        (step, values, arrived), self._unchecked = self._unchecked, None
        if arrived is not None:
            arrived.synchronize()
        bad, loss, norm = values.tolist()
        self._in_a_row = self._in_a_row + 1 if bad else 0
        self.skipped += bool(bad)
        if bad and (self.policy == "stop" or self._in_a_row >= MOST_IN_A_ROW):
            repeated = f", {self._in_a_row} times on end" if self._in_a_row > 1 else ""
            here = f"the loss ({loss:.4g} on this rank) or the norm of the gradient ({norm:.4g})"
            what = "the loss of another rank" if math.isfinite(loss) and math.isfinite(norm) else here
            raise RunFailed(
                f"step {step}: {what} is not finite{repeated}, and nothing was updated; try a lower --lr,"
                " --clip-grad, --precision float32 or --nonfinite skip, with --overwrite to start afresh"
            )

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]
