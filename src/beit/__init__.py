"""Learn vision models from unlabelled images: BEiT (Bao et al. 2021, arXiv 2106.08254).

The public names, resolved on first use, so that ``import beit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit import checkpoints, masking
    from beit.checkpoints.store import load_encoder, load_model, load_tokenizer
    from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
    from beit.config.errors import UserError
    from beit.config.finetune import FinetuneConfig
    from beit.config.pretrain import PretrainConfig
    from beit.config.probe import ProbeConfig
    from beit.config.segment import SegmentConfig
    from beit.config.tokenizer import TokenizerConfig
    from beit.config.use import (
        CheckConfig,
        ConvertConfig,
        DemoConfig,
        EvaluateConfig,
        InfoConfig,
        PredictConfig,
        ReportConfig,
    )
    from beit.models.encoder import BeitEncoder
    from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
    from beit.models.segmentation import SemanticSegmenter
    from beit.presets import configure
    from beit.recipes.check.run import check
    from beit.recipes.convert import convert
    from beit.recipes.demo import demo
    from beit.recipes.evaluate.run import evaluate
    from beit.recipes.finetune import finetune
    from beit.recipes.info import info
    from beit.recipes.predict.run import predict, predictions
    from beit.recipes.pretrain import pretrain
    from beit.recipes.probe.run import probe
    from beit.recipes.report import report
    from beit.recipes.segment import segment
    from beit.recipes.tokenizer import tokenizer
    from beit.tokenizers.base import VisualTokenizer
    from beit.tokenizers.dvae import DiscreteVAE

_HOMES = {
    "beit.checkpoints.store": ("load_encoder", "load_model", "load_tokenizer"),
    "beit.config.architecture": ("DiscreteVAEConfig", "EncoderConfig"),
    "beit.config.errors": ("UserError",),
    "beit.config.finetune": ("FinetuneConfig",),
    "beit.config.pretrain": ("PretrainConfig",),
    "beit.config.probe": ("ProbeConfig",),
    "beit.config.segment": ("SegmentConfig",),
    "beit.config.tokenizer": ("TokenizerConfig",),
    "beit.config.use": (
        "CheckConfig",
        "ConvertConfig",
        "DemoConfig",
        "EvaluateConfig",
        "InfoConfig",
        "PredictConfig",
        "ReportConfig",
    ),
    "beit.models.encoder": ("BeitEncoder",),
    "beit.models.heads": ("ImageClassifier", "LinearProbe", "MaskedImageModel"),
    "beit.models.segmentation": ("SemanticSegmenter",),
    "beit.presets": ("configure",),
    "beit.recipes.check.run": ("check",),
    "beit.recipes.convert": ("convert",),
    "beit.recipes.demo": ("demo",),
    "beit.recipes.finetune": ("finetune",),
    "beit.recipes.evaluate.run": ("evaluate",),
    "beit.recipes.info": ("info",),
    "beit.recipes.predict.run": ("predict", "predictions"),
    "beit.recipes.pretrain": ("pretrain",),
    "beit.recipes.probe.run": ("probe",),
    "beit.recipes.report": ("report",),
    "beit.recipes.segment": ("segment",),
    "beit.recipes.tokenizer": ("tokenizer",),
    "beit.tokenizers.base": ("VisualTokenizer",),
    "beit.tokenizers.dvae": ("DiscreteVAE",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BeitEncoder",
    "CheckConfig",
    "ConvertConfig",
    "DemoConfig",
    "DiscreteVAE",
    "DiscreteVAEConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "ImageClassifier",
    "InfoConfig",
    "LinearProbe",
    "MaskedImageModel",
    "PredictConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ReportConfig",
    "SegmentConfig",
    "SemanticSegmenter",
    "TokenizerConfig",
    "UserError",
    "VisualTokenizer",
    "check",
    "checkpoints",
    "configure",
    "convert",
    "demo",
    "evaluate",
    "finetune",
    "info",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "masking",
    "predict",
    "predictions",
    "pretrain",
    "probe",
    "report",
    "segment",
    "tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in ("checkpoints", "masking"):
        return importlib.import_module(f"beit.{name}")
    raise AttributeError(f"module 'beit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
