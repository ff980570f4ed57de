"""Recipes by name: what differs from the defaults, with its source, its cost and what to expect."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from beit.config.errors import UserError
from beit.config.files import layered
from beit.config.run import TrainingConfig
from beit.presets.preset import ENCODERS, Preset

__all__ = ["ENCODERS", "VERBS", "Preset", "configure", "find", "recipes_of", "verb_of"]

Config = TypeVar("Config", bound=TrainingConfig)

VERBS = ("tokenizer", "pretrain", "finetune", "segment", "probe")
"""The verbs that have recipes."""


def recipes_of(verb: str) -> Mapping[str, Preset]:
    """The recipes of one of :data:`VERBS` by name."""
    recipes: Mapping[str, Preset] = importlib.import_module(f"beit.presets.{verb}").RECIPES
    return recipes


def verb_of(config_type: type[TrainingConfig]) -> str:
    """The verb that takes a configuration of this type."""
    return config_type.__name__.removesuffix("Config").lower()


def find(config_type: type[TrainingConfig], name: str) -> Preset:
    """The preset `name` of the verb that `config_type` belongs to; UserError lists the names otherwise."""
    recipes = recipes_of(verb_of(config_type))
    if name not in recipes:
        raise UserError(f"--preset {name} does not exist; choose one of {', '.join(recipes)}")
    return recipes[name]


def configure(config_type: type[Config], preset: str, **values: Any) -> Config:
    """A configuration from a preset with `values` over it: ``configure(PretrainConfig, "tiny", data=…, out=…)``."""
    return config_type(**layered(config_type, [find(config_type, preset).values, values]))
