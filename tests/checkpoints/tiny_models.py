"""Small models of every variant, with weights that leave no term of the network at zero."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel

Model = MaskedImageModel | ImageClassifier


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


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any variant: each kind of position, with and without LayerScale, any head, square or not."""
    model: Model = tiny(
        draw(st.sampled_from(["masked", "mean", "cls"])),
        position=draw(st.sampled_from(["shared_bias", "block_bias", "absolute", "none"])),
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
