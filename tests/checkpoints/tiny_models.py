"""Small models of every variant, with weights that leave no term of the network at zero."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from beit.checkpoints.own import options_of
from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter

Model = MaskedImageModel | ImageClassifier
IMAGENET: dict[str, Any] = {"pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.229, 0.224, 0.225)}


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Random values for every parameter, so that no bias, table or scale is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise + (parameter.dim() == 1) * 0.5)
    return model.eval()


def tiny(head: str = "masked", **changes: Any) -> Any:
    """A shaken model; head "masked" predicts 50 tokens, "mean" and "cls" classify 5 classes."""
    small: dict[str, Any] = {"image_size": (32, 32), "patch_size": 8, "width": 32, "depth": 2, "num_heads": 4}
    encoder = BeitEncoder(EncoderConfig(**{**small, **changes}))
    if head == "masked":
        return shaken(MaskedImageModel(encoder, 50))
    return shaken(ImageClassifier(encoder, 5, "mean" if head == "mean" else "cls"))


def shaken_norms(model: nn.Module) -> Any:
    """A shaken model of which the running statistics and counts are not trivial either."""
    generator = torch.Generator().manual_seed(1)
    for module in shaken(model).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            assert module.num_batches_tracked is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.num_batches_tracked += 7
    return model.eval()


def segmenter(decoder: dict[str, Any] | None = None, num_classes: int = 5, **changes: Any) -> SemanticSegmenter:
    """One of UPerNet on four blocks, unless `decoder` says otherwise; with the statistics of ImageNet."""
    small: dict[str, Any] = {
        "image_size": (64, 64),
        "patch_size": 16,
        "width": 32,
        "depth": 4,
        "num_heads": 4,
    }
    options: dict[str, Any] = {
        "decoder": "upernet",
        "layers": (0, 1, 2, 3),
        "channels": 32,
        **(decoder or {}),
    }
    encoder = BeitEncoder(EncoderConfig(**{**small, **IMAGENET, **changes}))
    model: SemanticSegmenter = shaken_norms(SemanticSegmenter(encoder, num_classes, **options))
    return model


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any variant: each kind of position, with and without LayerScale, any head, square or not."""
    model: Model = tiny(
        draw(st.sampled_from(["masked", "mean", "cls"])),
        position=draw(st.sampled_from(["absolute", "none"])),
        bias=draw(st.sampled_from(["shared", "block", "none"])),
        layer_scale_init=draw(st.sampled_from([None, 0.1])),
        image_size=draw(st.sampled_from([(32, 32), (16, 24), (24, 16), (8, 32)])),
        depth=draw(st.integers(1, 2)),
        mlp_ratio=draw(st.sampled_from([4.0, 2.3, 1.0])),
        layer_norm_eps=draw(st.sampled_from([1e-6, 1e-12])),
        pixel_mean=draw(st.sampled_from([(0.5, 0.5, 0.5), (0.48, 0.45, 0.40)])),
    )
    return model


def outputs(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Logits for `images`, with every second patch hidden where the model can hide."""
    with torch.no_grad():
        if isinstance(model, ImageClassifier):
            return model(images)  # type: ignore[no-any-return]
        height, width = model.encoder.grid_of(images)
        mask = (torch.arange(height * width) % 2 == 0).expand(len(images), -1)
        return model(images, mask)  # type: ignore[no-any-return]


def assert_same(loaded: Any, model: Any) -> None:
    """The same kind of model, with the same weights, options and architecture (but rates, and the norms' eps)."""
    assert type(loaded) is type(model)
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == weights[key].dtype and torch.equal(tensor, weights[key]), key
    assert options_of(loaded) == options_of(model)
    names = ("image_size", "patch_size", "width", "depth", "num_heads", "position", "pixel_mean", "pixel_std")
    for name in names:
        assert getattr(loaded.encoder.config, name) == getattr(model.encoder.config, name), name
