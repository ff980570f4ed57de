"""What a training verb makes of its configuration, caught before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from beit.recipes import finetune as finetune_recipe
from beit.recipes.probe import run as probe_recipe
from beit.stages import stage as stage_module
from beit.stages.method import Method
from beit.stages.stage import Stage
from beit.training.plan import LoopParts, LoopPlan, StepOutput

WATCHED = (
    (stage_module, "Loader"),
    (finetune_recipe, "open_source"),
    (probe_recipe, "EvaluationView"),
    (probe_recipe, "neighbour_votes"),
)
"""Functions whose arguments leave no other trace."""


class Reached(Exception):
    """The loop would begin now."""


@dataclass
class Arrived:
    """What a verb made of its configuration, at the door of the training loop."""

    stage: Stage
    method: Method
    parts: LoopParts
    plan: LoopPlan
    given: dict[str, dict[str, Any]]
    """The arguments, by name, of the last call of each function of WATCHED."""

    @property
    def view(self) -> Any:
        return self.method.view

    @property
    def evaluation_view(self) -> Any:
        return self.method.evaluation_view

    @property
    def model(self) -> Any:
        return self.method.model

    @property
    def encoder(self) -> Any:
        """The encoder's configuration."""
        return self.model.encoder.config

    def step(self, model: Callable[..., Any], batch: Any, index: int = 0) -> StepOutput:
        """One step with a stand-in for the model."""
        return self.method.step(model, batch, index)  # type: ignore[arg-type]


def arrive(recipe: Callable[[Any], None], config: Any) -> Arrived:
    """Run `recipe` as far as the first step."""
    reached: list[Any] = []
    given: dict[str, dict[str, Any]] = {}
    train = Stage.train

    def watched(stage: Stage, method: Method, **flags: bool) -> None:
        reached.extend([stage, method])
        train(stage, method, **flags)

    def fit(parts: LoopParts, plan: LoopPlan, *others: Any) -> None:
        reached.extend([parts, plan])
        raise Reached

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached):
        patch.setattr(Stage, "train", watched)
        patch.setattr(stage_module, "fit", fit)
        for module, name in WATCHED:
            patch.setattr(module, name, watching(getattr(module, name), given.setdefault(name, {})))
        recipe(config)
    return Arrived(*reached, given)


def watching(work: Callable[..., Any], given: dict[str, Any]) -> Callable[..., Any]:
    """`work`, leaving its arguments in `given`, by name."""
    signature = inspect.signature(work)

    def call(*values: Any, **named: Any) -> Any:
        given.update(signature.bind(*values, **named).arguments)
        return work(*values, **named)

    return call


class Knob(NamedTuple):
    """A value that is not the default, and where it must be found again: as itself, or as `expected`."""

    value: Any
    place: Callable[[Arrived], Any]
    expected: Any = None
