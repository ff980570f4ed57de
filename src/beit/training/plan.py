"""What :func:`beit.training.loop.fit` is told: what to train and call, and how long, how and with what reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.training.device import Precision
from beit.training.metrics import Summary, over_count, scalars
from beit.training.trackers import Tracker


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
class LoopParts:
    """What the loop trains, and what it calls in its turns.

    `evaluate`, `draw` and `save_model` get the model in eval mode, with averaged weights where the plan wants them.
    """

    model: nn.Module
    """On any device; moved to that of the run, and wrapped for several ranks before `step` sees it."""
    step: Step
    """The loss of one micro-batch. It must call `model(...)` itself, or several ranks would not share gradients, and
    use every trainable parameter."""
    batches: Batches
    """As many micro-batches for each step as the plan accumulates: tensors on the CPU or (named) tuples of them."""
    optimizer: torch.optim.Optimizer
    """Over the parameters of `model`; see :func:`beit.training.optim.adamw`."""
    schedule: Callable[[int], float]
    """Learning rate of the optimiser step `index`, from 0; every group takes its `lr_scale` of it."""
    save_model: SaveModel
    """Called on the main rank, with each checkpoint and at the end."""
    evaluate: Evaluate | None = None
    """Totals to be summed over ranks. It must not communicate; `poll()` may raise to leave it."""
    draw: Draw | None = None
    """Called on the main rank."""
    summarise: Summary = scalars
    """The means of the metrics of a stretch of steps -> named figures."""
    summarise_evaluation: Summary = over_count
    """The totals of an evaluation -> named figures, without `eval/`."""
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules that `step` changes besides `model`, alike on every rank; moved, saved and restored."""
    trackers: Callable[[int], Sequence[Tracker]] = lambda step: ()
    """Given the step to go on from, the trackers to log to; called on the main rank."""
    details: Callable[[], Mapping[str, Any]] = dict
    """More for results.json, asked after the last evaluation."""


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
