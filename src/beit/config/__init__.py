"""Every knob of every verb, as frozen dataclasses: the command line, the Python API and the YAML on disk.

A field's docstring is its help text. Defaults are the released BEiT-base recipe unless a line says otherwise;
:mod:`beit.presets` holds the other recipes. Nothing here imports torch, so that ``beit --help`` stays fast.
"""

from beit.config.architecture import (
    MAX_DEPTH,
    PIXEL_STATISTICS,
    DiscreteVAEConfig,
    EncoderConfig,
    default_crop,
    sides,
)
from beit.config.convert import ConvertConfig
from beit.config.errors import Interrupted, RunFailed, UserError, given_by, require
from beit.config.finetune import FinetuneConfig
from beit.config.inference import EvaluateConfig, InfoConfig, PredictConfig
from beit.config.others import CheckConfig, DemoConfig, PresetsConfig, ReportConfig
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.run import DataConfig, TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.start import StartConfig
from beit.config.tokenizer import TokenizerConfig

__all__ = [
    "MAX_DEPTH",
    "PIXEL_STATISTICS",
    "CheckConfig",
    "ConvertConfig",
    "DataConfig",
    "DemoConfig",
    "DiscreteVAEConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "InfoConfig",
    "Interrupted",
    "PredictConfig",
    "PresetsConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ReportConfig",
    "RunFailed",
    "SegmentConfig",
    "StartConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "UserError",
    "default_crop",
    "given_by",
    "require",
    "sides",
]
