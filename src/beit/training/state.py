"""Everything that changes while a run trains: what a checkpoint holds, and nothing a checkpoint forgets."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from beit.training.device import Compute
from beit.training.metrics import MetricWindow
from beit.training.nonfinite import NonFiniteGuard


class TrainingState:
    """Weights, their moving average, optimiser, progress, and the figures under way.

    Randomness and the place in the data are not here: both follow from `step`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        companions: Mapping[str, nn.Module],
        ema_decay: float | None,
        nonfinite: Literal["stop", "skip"],
    ) -> None:
        self.model, self.optimizer, self.companions = model, optimizer, dict(companions)
        self.ema_decay = ema_decay
        self.ema = None if ema_decay is None else copy.deepcopy(model).eval().requires_grad_(False)
        self.window = MetricWindow()
        self.guard = NonFiniteGuard(nonfinite)
        self.step = 0
        """Optimiser steps done."""
        self.last: dict[str, Any] = {}
        """The newest figures, of training and of evaluation."""
        self.first: dict[str, Any] = {}
        """What was measured before the first step."""
        self.best: dict[str, Any] = {}
        """The figures of the best evaluation."""

    @property
    def result(self) -> nn.Module:
        """The model to evaluate and to keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the average towards the weights; called before `step` counts the step that changed them."""
        if self.ema is None or self.ema_decay is None:
            return
        # A young average follows closely, or a short run would average mostly its first step.
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        average: list[Tensor] = list(self.ema.parameters())
        current: list[Tensor] = list(self.model.parameters())
        for ema, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            if ema.is_floating_point():
                average.append(ema)
                current.append(buffer)
            else:
                ema.copy_(buffer)
        torch._foreach_lerp_(average, current, 1 - decay)

    def is_best(self, figures: Mapping[str, float], monitor: str, mode: Literal["min", "max"]) -> bool:
        """Whether an evaluation's figures are the best so far, by the figure `monitor`; the earlier of equals is."""
        sign = 1 if mode == "max" else -1
        if not math.isfinite(figures.get(monitor, math.nan)):
            return False
        return not self.best or sign * figures[monitor] > sign * self.best[monitor]

    def note_best(self, figures: Mapping[str, float], monitor: str) -> None:
        """Remember the figures of this step's evaluation as the best. Among many the best is partly luck, so they say
        what they were chosen by."""
        self.best = {"step": self.step, "monitor": monitor, "remark": "chosen on these images", **figures}

    def state_dict(self, compute: Compute) -> dict[str, Any]:
        """All of it as tensors and primitives; every rank must call this."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "companions": {name: module.state_dict() for name, module in self.companions.items()},
            "window": self.window.state_dict(compute),
            "guard": self.guard.state_dict(),
            "step": self.step,
            "last": self.last,
            "first": self.first,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any], compute: Compute) -> None:
        """Go on from `state`; anything missing or left over is an error."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.companions.keys() != state["companions"].keys():
            raise KeyError(f"the checkpoint has companions {list(state['companions'])}")
        for name, module in self.companions.items():
            module.load_state_dict(state["companions"][name])
        self.window.load_state_dict(state["window"], compute)
        self.guard.load_state_dict(state["guard"])
        self.step = state["step"]
        self.last, self.best = dict(state["last"]), dict(state["best"])
        self.first = dict(state.get("first", {}))  # runs of 0.1 have none
