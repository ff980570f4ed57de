"""Recipes by name: what differs from the defaults, with its source, its cost and what to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from beit.config.errors import UserError
from beit.config.files import layered
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.run import TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import TokenizerConfig
from beit.presets.finetune import FINETUNE
from beit.presets.preset import ENCODERS, Preset
from beit.presets.pretrain import PRETRAIN
from beit.presets.probe import PROBE
from beit.presets.segment import SEGMENT
from beit.presets.tokenizer import TOKENIZER

__all__ = ["ENCODERS", "TABLES", "Preset", "configure", "find"]

Config = TypeVar("Config", bound=TrainingConfig)

TABLES: Mapping[type[TrainingConfig], Mapping[str, Preset]] = {
    TokenizerConfig: TOKENIZER,
    PretrainConfig: PRETRAIN,
    FinetuneConfig: FINETUNE,
    SegmentConfig: SEGMENT,
    ProbeConfig: PROBE,
}


def find(config_type: type[TrainingConfig], name: str) -> Preset:
    """The preset `name` of the verb that `config_type` belongs to; UserError lists the names otherwise."""
    table = TABLES[config_type]
    if name not in table:
        raise UserError(f"--preset {name} does not exist; choose one of {', '.join(table)}")
    return table[name]


def configure(config_type: type[Config], preset: str, **values: Any) -> Config:
    """A configuration from a preset with `values` over it: ``configure(PretrainConfig, "tiny", data=…, out=…)``."""
    return config_type(**layered(config_type, [find(config_type, preset).values, values]))
