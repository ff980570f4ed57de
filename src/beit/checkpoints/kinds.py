"""The kinds of model that are saved, and how each is built from its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from beit.config import DiscreteVAEConfig, EncoderConfig
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


def kind_of(model: nn.Module) -> str:
    """The `kind` of model.json for a model, or its class name where it has none."""
    return next((name for name, kind in KINDS.items() if isinstance(model, kind.model)), type(model).__name__)


_HOLDERS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("beit", "dalle"),
    "pretrained": ("beit", "unilm", "huggingface"),
    "classifier": ("beit", "unilm", "timm", "huggingface"),
    "segmenter": ("beit", "unilm", "huggingface"),
    "probe": ("beit",),
}
"""The formats that hold a kind."""


def holders(model: nn.Module) -> str:
    """The remedy where a format cannot hold `model`."""
    formats = _HOLDERS.get(kind_of(model))
    return f"choose --to {'|'.join(formats)}" if formats else "no format holds it"
