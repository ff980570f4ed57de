"""The kinds of model that are saved, and how each is built from its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.tokenizers.dvae import DiscreteVAE


class Kind(NamedTuple):
    """How one kind of model is described in model.json and built from it."""

    model: type[nn.Module]
    config: Callable[[Any], Any]
    """The model -> its architecture, a dataclass."""
    config_type: type
    options: tuple[str, ...]
    """Attributes of the model that it is built with besides its architecture; keys of model.json."""
    build: Callable[..., nn.Module]
    """(architecture, **options) -> the model."""


KINDS: Mapping[str, Kind] = {
    "tokenizer": Kind(
        DiscreteVAE, lambda model: model.config, DiscreteVAEConfig, (), lambda config: DiscreteVAE(config)
    ),
    "pretrained": Kind(
        MaskedImageModel,
        lambda model: model.encoder.config,
        EncoderConfig,
        ("vocab_size",),
        lambda config, vocab_size: MaskedImageModel(BeitEncoder(config), vocab_size),
    ),
    "classifier": Kind(
        ImageClassifier,
        lambda model: model.encoder.config,
        EncoderConfig,
        ("num_classes", "pool"),
        lambda config, num_classes, pool: ImageClassifier(BeitEncoder(config), num_classes, pool),
    ),
    "segmenter": Kind(
        SemanticSegmenter,
        lambda model: model.encoder.config,
        EncoderConfig,
        ("num_classes", "decoder", "layers", "channels", "transposed", "auxiliary"),
        lambda config, num_classes, decoder, layers, channels, transposed, auxiliary: SemanticSegmenter(
            BeitEncoder(config),
            num_classes,
            decoder=decoder,
            layers=layers,
            channels=channels,
            transposed=transposed,
            auxiliary=auxiliary,
        ),
    ),
    "probe": Kind(
        LinearProbe,
        lambda model: model.encoder.config,
        EncoderConfig,
        ("num_classes", "layer", "pool"),
        lambda config, num_classes, layer, pool: LinearProbe(BeitEncoder(config), num_classes, layer, pool),
    ),
}


_HOLDERS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("dalle", "beit"),
    "pretrained": ("unilm", "huggingface", "beit"),
    "classifier": ("unilm", "timm", "huggingface", "beit"),
    "segmenter": ("unilm", "huggingface", "beit"),
    "probe": ("beit",),
}


def holders(model: nn.Module) -> tuple[str, ...]:
    """The formats that hold such a model."""
    if isinstance(model, SemanticSegmenter) and model.decoder != "upernet":
        return ("beit",)
    return _HOLDERS.get(kind_of(model), ())


def not_held(model: nn.Module, target: str) -> str:
    """Ends a message: the kind that `target` cannot hold, and which formats can."""
    others = [name for name in holders(model) if name != target]
    remedy = f"choose --to {' or '.join(others)}" if others else "no format can"
    return f"it cannot hold a {type(model).__name__}; {remedy}"


def kind_of(model: nn.Module) -> str:
    """The `kind` of model.json for a model, or its class name where it has none."""
    return next((name for name, kind in KINDS.items() if isinstance(model, kind.model)), type(model).__name__)
