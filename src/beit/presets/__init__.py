"""Recipes by name: what differs from the defaults, with its source, its cost and what to expect."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from beit.config.errors import UserError
from beit.config.files import layered
from beit.config.run import TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig)

Values = Mapping[str, Any]
"""Fields of a verb's configuration."""


@dataclass(frozen=True)
class Preset:
    """A recipe: `values` over the defaults of a verb's configuration, and the evidence for it."""

    values: Values
    summary: str
    source: str
    cost: str
    expected: str


# Encoders. Base and large: paper table 12. Small and tiny: the DeiT family's widths at BEiT's depth.
ENCODERS: Mapping[str, Values] = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "layer_scale_init": 1e-5, "clip_grad": 1.0},
}

# The paper's own backbone (main tables): plain ViT with learned positions, ImageNet statistics.
PLAIN: Values = {"position": "absolute", "layer_scale_init": None, "normalization": "imagenet"}

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
    config = config_type(**layered(config_type, [find(config_type, preset).values, values]))
    config.refuse_idle(values)
    return config
