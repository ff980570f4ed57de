"""What a recipe brings to the training loop: what learns, how it is evaluated, what is kept, what is said."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from beit.training.device import Precision, seed_of
from beit.training.metrics import Summary, over_count, scalars
from beit.training.optim import Schedule, cosine_schedule
from beit.training.signals import StopSignals


class StepOutput(NamedTuple):
    """What a recipe's step gives back for one micro-batch."""

    loss: Tensor
    """Scalar to minimise: a mean over the micro-batch."""
    metrics: dict[str, Tensor]
    """Numbers or tensors of any fixed shape, averaged over passes, steps and ranks element by element."""


class Noise:
    """Random numbers of one pass of a step, by counter: those of a sample follow from (seed, step, its place in the
    batch of all passes and ranks), so that a batch that is split otherwise draws the same."""

    def __init__(self, seed: int, step: int, places: range, device: torch.device) -> None:
        self._seed, self._step, self._places, self._device = seed, step, places, device
        self._draws = itertools.count()

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1), (B, *shape), on the device: others at every call, of which all passes make the same."""
        numbers = torch.empty(len(self._places), *shape, device=self._device)
        generator, draw = torch.Generator(self._device), next(self._draws)
        for row, place in zip(numbers, self._places, strict=True):
            row.uniform_(generator=generator.manual_seed(seed_of(self._seed, self._step, place, draw)))
        return numbers

    def of_batch(self) -> np.random.Generator:
        """For what is drawn once for all of the batch; the same on every pass and rank."""
        return np.random.default_rng((self._seed, self._step))


Step = Callable[[nn.Module, Any, int, Noise], StepOutput]
"""`step(model, batch, index, noise)`: one micro-batch of the optimiser step `index`, from 0. It must call
`model(...)` itself, or several ranks would not share gradients, and use every trainable parameter. What it draws
comes from `noise`, or it follows the split of the batch."""
EvaluateBatch = Callable[[nn.Module, Any], dict[str, Tensor]]
"""`evaluate_batch(model, batch)`: sums over the batch, `count` among them; and `each`, (B, K), of what
:data:`beit.metrics.intervals.FIGURES` takes of each image. It must not communicate."""
Measure = Callable[[nn.Module, Precision, StopSignals], Mapping[str, float]]
"""`measure(model, precision, stop)`: figures that take a pass of their own, alike on every rank. All ranks call it;
it polls the signals, and may leave by StopRequested on one of them, unless another waits for that one inside."""
Draw = Callable[[nn.Module, Sequence[Any], Path, int], None]
"""`draw(model, batches, folder, step)`: pictures of a few evaluation samples, in one batch, or in as many as they are
where they differ in size."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What is trained, and how fast."""

    model: nn.Module
    """On any device; moved to that of the run, and wrapped for several ranks before `step` sees it."""
    step: Step | None = None
    """None for a model that `prepare` completes: its run has no steps."""
    summarise: Summary = scalars
    """The means of the step's metrics over a stretch of steps -> named figures."""
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules that `step` changes besides `model`, alike on every rank; moved, saved and restored."""
    schedule: Schedule = cosine_schedule
    layer_decay: float = 1.0
    layer_groups: Sequence[Sequence[nn.Parameter]] | None = None
    """The model's parameters by depth, lowest first; with them `layer_decay` slows the lower ones down."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How the model is judged on held-back images; it is in eval mode then, with averaged weights where there are."""

    evaluate_batch: EvaluateBatch
    summarise: Summary = over_count
    """The sums over all batches -> named figures, without `eval/`."""
    summarise_test: Summary | None = None
    """The same for `test`, without `test/`, by what was chosen at the last evaluation; None for `summarise`."""
    monitor: str = "loss"
    """The figure that says which evaluation was best."""
    monitor_mode: Literal["min", "max"] = "min"
    keep_best: bool = True
    """Whether the model of the best evaluation is kept, in model-best/."""
    measure: Measure | None = None
    """Further figures, without `eval/`; also of the model before its first step, as a yardstick."""
    at_start: bool = False
    """Whether a model is judged before its first step as well: one that has learned before."""
    yardsticks: Measure | None = None
    """Figures of what needs no model, with `eval/` or `test/`: once, before the first step."""
    batch_size: int | None = None
    """Images at a time: 1 where they differ in size; None for as many as a training pass has."""
    draw: Draw | None = None


@dataclass(frozen=True, kw_only=True)
class Product:
    """The model that a run leaves behind, and what is written beside it."""

    export: Callable[[nn.Module], nn.Module] = lambda model: model
    """The trained network -> the model to write."""
    classes: Sequence[str] | None = None
    """Names of a classifier's outputs, in order."""
    tokenizer_hash: str | None = None
    """Identity of the tokenizer whose tokens the model predicts."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What else model.json says."""
    details: Callable[[], Mapping[str, Any]] = dict
    """What results.json says besides the last and best figures; asked after the last evaluation."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What every start of the run depends on besides configuration, images and tokenizer, by name; a run that began
    with other facts is refused. Weights that a checkpoint replaces, as those that training starts from, are none."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What is said before a run and after it."""

    about: Sequence[str] = ()
    """Lines about the model and the task."""
    conclusion: Callable[[Mapping[str, Any]], Sequence[str]] = lambda results: ()
    """results.json in words, to end with."""
    next_command: str = ""
    """What to type after this."""


EvaluationSplit = Literal["held_back", "test"]
"""The images that are evaluated on the way, and those that are judged once, at the end."""


class Batches(Protocol):
    """A run's images in batches, as its recipe views them: this rank's share of them."""

    def train(self, start: int, stop: int) -> Iterable[Any]:
        """The micro-batches of the optimiser steps start..stop - 1: as many for each as the run accumulates, tensors
        on the CPU or (named) tuples of them."""

    def evaluate(
        self, split: EvaluationSplit, apply: Callable[[Any], dict[str, Tensor]], batch_size: int | None
    ) -> Iterable[dict[str, Tensor]] | None:
        """What `apply` makes of the images of `split`, each once, in batches on the device; None where none are."""

    def samples(self, batch_size: int | None) -> Sequence[Any]:
        """A few held-back images to draw, on the device."""


Prepare = Callable[[Batches, Precision, StopSignals], None]
"""`prepare(batches, precision, stop)`: what must be computed before the first step; done again when a run continues.
It polls the signals, and leaves on all ranks together."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe: all of it but the images."""

    learner: Learner
    evaluation: Evaluation
    product: Product = Product()
    notes: Notes = Notes()
    prepare: Prepare | None = None
