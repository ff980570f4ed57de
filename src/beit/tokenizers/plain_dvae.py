"""The other published discrete VAE: strided convolutions and residual blocks, as the released code's "customized"
tokenizer and DALLE-pytorch have it, which differ in the order of their layers. To use, not to train.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.pixels import per_channel, white
from beit.tokenizers.base import CategoricalTokenizer

Pixel = tuple[float, ...]


class Layer(NamedTuple):
    """One layer: a strided convolution of 4x4 with ReLU, a residual block, or a 1x1 convolution."""

    kind: Literal["stride", "residual", "pointwise"]
    n_in: int
    n_out: int


class PlainDVAE(CategoricalTokenizer):
    """A visual tokenizer; names of weights are the published ones.

    Args:
        encoder, decoder: their layers in order; "stride" halves the size in one and doubles it in the other.
        vocab_size, code_width: the codebook's.
        image_size: height and width in pixels that it was trained at.
        pixel_mean, pixel_std: what images in [0, 1] are normalised with.
    """

    def __init__(
        self,
        encoder: Sequence[Layer],
        decoder: Sequence[Layer],
        vocab_size: int,
        code_width: int,
        *,
        image_size: tuple[int, int],
        pixel_mean: Pixel,
        pixel_std: Pixel,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.stride = 2 ** sum(layer.kind == "stride" for layer in encoder)
        self.image_size = image_size
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.codebook = nn.Embedding(vocab_size, code_width)
        self.encoder = nn.Sequential(*(_module(layer, up=False) for layer in encoder))
        self.decoder = nn.Sequential(*(_module(layer, up=True) for layer in decoder))

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the tokens, (B, V, h, w), in the precision of the weights."""
        self.require_whole_tokens(images)
        pixels = images.to(self.codebook.weight.dtype) / white(images)
        logits: Tensor = self.encoder(
            (pixels - per_channel(self.pixel_mean, pixels)) / per_channel(self.pixel_std, pixels)
        )
        return logits

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W), from tokens int64 (B, h, w)."""
        pixels = self.decoder(self.codebook(tokens).permute(0, 3, 1, 2))
        images: Tensor = pixels * per_channel(self.pixel_std, pixels) + per_channel(self.pixel_mean, pixels)
        return images.clamp(0, 1)


class ResidualBlock(nn.Module):
    """x + three convolutions of x, (B, D, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.net(x))


def _module(layer: Layer, up: bool) -> nn.Module:
    if layer.kind == "residual":
        return ResidualBlock(layer.n_out)
    if layer.kind == "pointwise":
        return nn.Conv2d(layer.n_in, layer.n_out, 1)
    convolution = nn.ConvTranspose2d if up else nn.Conv2d
    return nn.Sequential(convolution(layer.n_in, layer.n_out, 4, stride=2, padding=1), nn.ReLU())
