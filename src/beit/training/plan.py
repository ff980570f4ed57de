"""What a recipe tells :func:`beit.training.loop.fit`: its step, and how long, how and with what reports to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from beit.training.device import Precision


class StepOutput(NamedTuple):
    """What a recipe's step gives back for one micro-batch."""

    loss: Tensor
    """Scalar to minimise: a mean over the micro-batch."""
    metrics: dict[str, Tensor]
    """Numbers or tensors of any fixed shape, averaged over passes, steps and ranks element by element."""


Step = Callable[[nn.Module, Any, int], StepOutput]
"""`step(model, batch, index)`: one micro-batch of the optimiser step `index`, from 0."""
Batches = Callable[[int, int], Iterable[Any]]
"""`batches(start, stop)`: this rank's micro-batches of the optimiser steps start..stop - 1."""
Evaluate = Callable[[nn.Module, Callable[[], None]], dict[str, Tensor]]
"""`evaluate(model, poll)`: totals over this rank's share of the evaluation set; calls `poll()` with every batch."""
Draw = Callable[[nn.Module, Path, int], None]
"""`draw(model, folder, step)`: writes pictures."""
SaveModel = Callable[[nn.Module, Path, int], None]
"""`save_model(model, folder, step)`: writes the model to use."""


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """How long and how to train, and what to write when."""

    steps: int
    """Optimiser steps of the whole run."""
    batch_size: int
    """Images of one step, over all ranks and passes."""
    steps_per_epoch: float
    """Steps in which every image is seen once."""
    seed: int = 0
    accumulate: int = 1
    """Passes (micro-batches) of every rank in one step."""
    precision: Precision = "float32"
    clip_grad: float | None = None
    ema_decay: float | None = None
    nonfinite: Literal["stop", "skip"] = "stop"
    log_every: int = 50
    eval_every: int | None = None
    """Steps between evaluations and drawings; both also follow the last step."""
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    keep: int = 2
    """Checkpoints to keep."""
    monitor: str = "loss"
    """The evaluation's figure that decides which evaluation was best."""
    monitor_mode: Literal["min", "max"] = "min"

    def epoch(self, step: int) -> float:
        """Passes over the images after `step` steps."""
        return round(step / self.steps_per_epoch, 4)

    def reports_after(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.steps

    def looks_after(self, step: int) -> bool:
        """Whether to evaluate and draw."""
        return step == self.steps or (
            step > 0 and self.eval_every is not None and step % self.eval_every == 0
        )

    def saves_after(self, step: int, seconds_since: float) -> bool:
        by_count = self.save_every_steps is not None and step % self.save_every_steps == 0
        by_clock = self.save_every_minutes is not None and seconds_since >= 60 * self.save_every_minutes
        return step == self.steps or by_count or by_clock
