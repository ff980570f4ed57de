"""Recipes by name: what differs from the defaults, with its source, its cost and what to expect."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from beit.config.errors import require
from beit.config.files import layered, read_values
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig

AUTO = "auto"
"""The preset that is chosen from facts, by the table in :mod:`beit.presets.auto`."""
BUDGET = "1h"
"""Time for a run of it where nothing is said of its length."""

Config = TypeVar("Config", bound=TrainingConfig)

Values = Mapping[str, Any]
"""Fields of a verb's configuration."""


@dataclass(frozen=True)
class Preset:
    """A recipe: `values` over the defaults of a verb's configuration, and the evidence for it."""

    values: Values
    summary: str
    source: str = "ours"
    cost: str = "not measured"
    expected: str = "not measured"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the images, the machine and the models given, when a recipe is chosen. The defaults stand for
    nothing known."""

    side: float = 224.0
    """Median of the images' shorter sides in pixels."""
    images: int = 10_000
    """Training images."""
    labels_per_class: float | None = None
    """Training images of a class, on average."""
    work: float = 1e15
    """Multiply-adds that the machine can do within the budget."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens of the tokenizer that is given."""
    width: int | None = None
    """Channels of the encoder that a task starts from; None from scratch."""
    size: tuple[int, int] | None = None
    """Height and width of the images that it was trained on."""
    patch: int | None = None
    """Side of its patches in pixels."""
    network: Values = field(default_factory=dict)
    """The knobs that a run takes from the model that it goes on from."""


NOTHING_KNOWN = Facts()


class Choice(NamedTuple):
    """Some knobs, and why."""

    values: Values
    reason: str


ENCODERS = ("tiny", "small", "base", "large")
"""The sizes of encoders, by which recipes are named."""

NETWORK = (
    *("patch_size", "width", "depth", "num_heads", "mlp_ratio"),
    *("position", "bias", "layer_scale_init", "init_scheme", "normalization"),
)
"""The knobs of an encoder, of pre-training as of a task that starts from scratch."""

VERBS = ("tokenizer", "pretrain", "finetune", "segment", "probe")
"""The verbs that have recipes."""


@cache
def recipes_of(verb: str) -> Mapping[str, Preset]:
    """The recipes of one of :data:`VERBS` by name, as VERB.yaml has them: `like` names another recipe in the file, of
    which one has all that it does not say itself."""
    path, recipes = Path(__file__).with_name(f"{verb}.yaml"), dict[str, Preset]()
    for name, said in read_values(path, str(path)).items():
        base = recipes[said.pop("like")] if "like" in said else Preset({}, "")
        recipes[name] = replace(base, **{**said, "values": {**base.values, **said.get("values", {})}})
    return recipes


def verb_of(config_type: type[TrainingConfig]) -> str:
    """The verb that takes a configuration of this type."""
    return config_type.__name__.removesuffix("Config").lower()


def find(config_type: type[TrainingConfig], name: str) -> Preset:
    """The preset `name` of the verb that `config_type` belongs to; UserError lists the names otherwise."""
    recipes = recipes_of(verb_of(config_type))
    require(name in recipes, f"--preset {name} does not exist; choose one of {', '.join([AUTO, *recipes])}")
    return recipes[name]


def configure(config_type: type[Config], preset: str, **values: Any) -> Config:
    """A configuration from a preset with `values` over it: ``configure(PretrainConfig, "tiny", data=…, out=…)``."""
    config = config_type(**values, preset=preset)
    resolved, _ = resolve(config.as_typed({**values, "preset": preset}))
    resolved.refuse_idle(values)
    return resolved


def resolve(config: Config, facts: Facts = NOTHING_KNOWN) -> tuple[Config, list[Choice]]:
    """`config` with every value: what was typed, which it remembers, over the network that it goes on from, over its
    preset, over the defaults; and what auto chose from `facts`. One without a preset has all its other values.

    Raises:
        UserError: there is no such preset, or the values do not fit one another.
    """
    config_type, typed, choices = type(config), config.typed, list[Choice]()
    network = {name: value for name, value in facts.network.items() if name not in typed}
    if config.preset is None:
        return (replace(config, **network).as_typed(typed) if network else config), []
    if config.preset == AUTO:
        if facts.grid:  # as many patches as tokens
            network.pop("image_size", None)
        auto = importlib.import_module("beit.presets.auto")
        choices = [Choice(network, "the network of --init")] if network else []
        choices += auto.choose(verb_of(config_type), facts, {**network, **typed})
        layers = [choice.values for choice in choices]
    else:
        layers = [find(config_type, config.preset).values]
        if typed.get("from_scratch"):
            layers.insert(0, network_of(config.preset, config_type))
    values = layered(config_type, [*layers, network, typed, {"preset": None}])
    return config_type(**values).as_typed(typed), choices


def network_of(preset: str, config_type: type[TrainingConfig]) -> Values:
    """The encoder of the pre-training preset of that name, where there is one, as a task states it."""
    if preset not in (recipes := recipes_of("pretrain")):
        return {}
    return task_network(layered(PretrainConfig, [recipes[preset].values]), config_type)


def task_network(values: Values, config_type: type[TrainingConfig]) -> Values:
    """The encoder of a pre-training of these `values`, as a task that starts from scratch states it."""
    size = "crop" if verb_of(config_type) == "segment" else "image_size"
    network = {name: values[name] for name in NETWORK} | {size: values["image_size"]}
    if network["position"] == "shared_bias":
        network["position"] = None  # a task has one for each block, as after pre-training
    return network | {"layer_scale_init": network["layer_scale_init"] or 0.0}
