"""What a training verb makes of its configuration, caught before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import nn

from beit.recipes import probe as probe_recipe
from beit.stages import train as train_stage
from beit.stages.session import Feed
from beit.stages.tasks import labels
from beit.stages.train import RunBatches
from beit.training import loop
from beit.training.method import Method, Noise, StepOutput
from beit.training.plan import Job, Plan
from beit.training.state import TrainingState

WATCHED = (
    (train_stage, "Loader"),
    (labels, "open_splits"),
    (probe_recipe, "EvaluationView"),
    (probe_recipe, "knn_votes"),
)
"""Functions whose arguments leave no other trace."""


class Reached(Exception):
    """The loop would begin now."""


@dataclass
class Arrived:
    """What a verb made of its configuration, at the door of the training loop."""

    method: Method
    batches: RunBatches
    plan: Plan
    state: TrainingState
    precision: str
    arguments: dict[str, dict[str, Any]]
    """The arguments, by name, of the last call of each function of WATCHED."""

    @property
    def feed(self) -> Feed:
        return self.batches._feed

    @property
    def view(self) -> Any:
        return self.feed.view

    @property
    def evaluation_view(self) -> Any:
        return self.feed.evaluation_view

    @property
    def model(self) -> Any:
        return self.method.learner.model

    @property
    def encoder(self) -> Any:
        """The encoder's configuration."""
        return self.model.encoder.config

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.plan.learning_rate(self.method.learner.schedule, step)

    def step(self, function: Callable[..., Any], batch: Any, index: int = 0) -> StepOutput:
        """One step with a stand-in for the model."""
        model = nn.Module()
        model.forward = function  # type: ignore[method-assign]
        noise = Noise(0, index, range(len(batch[0])), torch.device("cpu"))
        return self.method.learner.step(model, batch, index, noise)  # type: ignore[misc]


def arrive(recipe: Callable[[Any], None], config: Any) -> Arrived:
    """Run `recipe` as far as the first step."""
    arrived: list[Arrived] = []
    arguments: dict[str, dict[str, Any]] = {}

    def fit(job: Job, *others: Any) -> None:
        state = loop.initial_state(job)
        arrived.append(Arrived(job.method, cast(RunBatches, job.batches), job.plan, state, job.precision, arguments))
        raise Reached

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached):
        patch.setattr(train_stage, "fit", fit)
        # After a compilation autograd may have threads, and no child of the process may train.
        patch.setattr(torch, "compile", lambda model, **_: model)
        for module, name in WATCHED:
            watched = watching(getattr(module, name), arguments.setdefault(name, {}))
            patch.setattr(module, name, watched)
        recipe(config)
    return arrived[0]


def watching(work: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    """`work`, leaving its arguments in `arguments`, by name."""
    signature = inspect.signature(work)

    def call(*values: Any, **named: Any) -> Any:
        arguments.update(signature.bind(*values, **named).arguments)
        return work(*values, **named)

    return call


class Knob(NamedTuple):
    """A value that is not the default, and where it must be found again: as itself, or as `expected`."""

    value: Any
    place: Callable[[Arrived], Any]
    expected: Any = None
