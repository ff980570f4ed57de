"""The kinds of models that our own format holds: their classes, and what each is built from."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

from torch import nn

from beit.config.architecture import DALLE_PIXELS, UNIT_PIXELS, EncoderConfig, TokenArchitecture
from beit.config.errors import require
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.dvae import DiscreteVAE
from beit.untrusted import Facts, printable

Architecture = EncoderConfig | TokenArchitecture


class Kind(NamedTuple):
    """A kind of model: its class, built from an encoder or, without one, from its configuration."""

    model: type[nn.Module]
    options: tuple[str, ...] = ()
    """Attributes that it is built with besides its architecture; keys of model.json."""
    later: tuple[str, ...] = ()
    """More such attributes, which may be None, and which files lack that were written before there were any."""
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]] = DALLE_PIXELS
    """Mean and deviation of pixels, of a kind without an encoder, which has its own."""

    @property
    def config(self) -> type[Architecture]:
        """Its architecture: what it is made of, or that of its encoder."""
        architecture: type[Architecture] = get_type_hints(self.model.__init__).get("config", EncoderConfig)
        return architecture

    def build(self, config: Architecture, options: Facts) -> nn.Module:
        """The model, with first values."""
        return self.model(BeitEncoder(config) if isinstance(config, EncoderConfig) else config, **options)


KINDS: Mapping[str, Kind] = {
    "tokenizer": Kind(DiscreteVAE),
    "pretrained": Kind(
        MaskedImageModel, ("vocab_size",), later=("encoder_sees", "num_masked", "decoder_depth", "decoder_width")
    ),
    "classifier": Kind(ImageClassifier, ("num_classes", "pool")),
    "segmenter": Kind(SemanticSegmenter, ("num_classes", "decoder", "layers", "channels", "transposed", "auxiliary")),
    "probe": Kind(LinearProbe, ("num_classes", "layer", "pool")),
}
TOKENIZERS = {
    "fsq": "beit.tokenizers.fsq.FiniteScalarVAE",
    "plain": "beit.tokenizers.plain_dvae.PlainDVAE",
    "kmeans": "beit.tokenizers.kmeans.PatchKMeans",
    "features": "beit.tokenizers.kmeans.FeatureKMeans",
}
"""Where tokenizers other than the discrete VAE are, by their kind."""


def tokenizer_of_kind(name: str) -> Kind:
    """A tokenizer by the `tokenizer_kind` of model.json, which files of earlier releases lack: a discrete VAE. The
    others are imported where there is one. UserError for an unknown name."""
    if name == "dvae":
        return KINDS["tokenizer"]
    require(name in TOKENIZERS, f"tokenizer_kind is {printable(name)}, which this release does not know; update beit")
    module, _, model = TOKENIZERS[name].rpartition(".")
    options = ("vocab_size", "layer") if name == "features" else ()
    pixels = UNIT_PIXELS if name == "kmeans" else DALLE_PIXELS
    return Kind(getattr(importlib.import_module(module), model), options, pixels=pixels)


def kind_of(model: nn.Module) -> str:
    """The `kind` of model.json for a model, or its class name where it has none."""
    if isinstance(model, VisualTokenizer) and model.kind:
        return "tokenizer"
    return next((name for name, kind in KINDS.items() if isinstance(model, kind.model)), type(model).__name__)


def encoder_of(model: nn.Module) -> BeitEncoder | None:
    """The encoder in a model, or the model that is one."""
    encoder = getattr(model, "encoder", model)
    return encoder if isinstance(encoder, BeitEncoder) else None


def options_of(model: nn.Module) -> dict[str, Any]:
    """What a model is built with besides its architecture."""
    kind = entry_of(model)
    if kind is None:
        return {}
    later = {name: getattr(model, name) for name in kind.later if getattr(model, name) is not None}
    return {name: getattr(model, name) for name in kind.options} | later


def config_of(model: nn.Module) -> Architecture:
    """The architecture of a model that has a kind: its encoder's, or its own."""
    kind = entry_of(model)
    source: Any = model.encoder if kind is not None and kind.config is EncoderConfig else model
    config: Architecture = source.config
    return config


def entry_of(model: nn.Module) -> Kind | None:
    """The kind of a model; None where it has none."""
    if isinstance(model, VisualTokenizer):
        return tokenizer_of_kind(model.kind) if model.kind else None
    return KINDS.get(kind_of(model))
