"""Finite scalar quantisation (arXiv 2309.15505) between the encoder and the decoder of the discrete VAE.

    images (B, C, H, W) -> encoder -> channels (B, C, h, w) -> each rounded to one of its levels -> codes in [-1, 1]
        -> decoder -> statistics (B, 2 C, H, W)

The token is the number that the C levels write as digits, the first the lowest.

No codebook is learned, so none collapses: there is no divergence and no temperature.
"""

from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from beit.config.tokenizer import FiniteScalarVAEConfig
from beit.pixels import per_channel
from beit.tokenizers.dvae import PixelAutoencoder

MARGIN = 1e-3
"""The outermost levels lie so far inside the range of tanh that they can be reached (the paper's code)."""


class FiniteScalarVAE(PixelAutoencoder):
    """A visual tokenizer that is trained like :class:`beit.tokenizers.dvae.DiscreteVAE`, by reconstruction alone."""

    kind = "fsq"

    def __init__(self, config: FiniteScalarVAEConfig) -> None:
        super().__init__(config, len(config.levels))
        self.config = config

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The training pass: tokens, int64 (B, h, w), and the pixel statistics (B, 6, H, W) of p(x | z), float32.
        Gradients go through the rounding as if it were not there."""
        codes = self.codes(images)
        return codes_to_tokens(codes.detach(), self.config.levels), self.decoder(codes)

    def codes(self, images: Tensor) -> Tensor:
        """What the decoder reads, (B, C, h, w): of channel i one of `levels[i]` values from -1 to 1."""
        return quantize(self.encoded(images), self.config.levels)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens, int64 (B, h, w)."""
        return codes_to_tokens(self.codes(images), self.config.levels)

    def statistics(self, tokens: Tensor) -> Tensor:
        codes = tokens_to_codes(tokens, self.config.levels)
        statistics: Tensor = self.decoder(codes.to(next(self.parameters()).dtype))
        return statistics


def quantize(channels: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Channels (B, C, h, w) of any value as codes: each bounded by tanh, rounded to one of its levels, and scaled to
    [-1, 1]. The gradient is that of the bounding alone (straight through the rounding)."""
    count = per_channel(levels, channels)
    half = (count - 1) * (1 + MARGIN) / 2
    offset = (count % 2 == 0).to(channels.dtype) / 2  # an even number of levels lies around -1/2
    bounded = (channels + torch.atanh(offset / half)).tanh() * half - offset
    rounded = bounded + (bounded.round() - bounded).detach()
    return rounded / (count // 2)


def codes_to_tokens(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Codes (B, C, h, w) as the numbers that their levels write, int64 (B, h, w)."""
    half = per_channel(levels, codes) // 2
    digits = (codes * half + half).round().long()
    return (digits * per_channel(_places(levels), digits)).sum(dim=1)


def tokens_to_codes(tokens: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`codes_to_tokens`, float32."""
    count = per_channel(levels, tokens)
    digits = tokens[:, None] // per_channel(_places(levels), tokens) % count
    return (digits - count // 2) / (count // 2)


def _places(levels: tuple[int, ...]) -> tuple[int, ...]:
    """What a one is worth at each digit: 1, then the products of the levels before it."""
    return tuple(accumulate(levels[:-1], mul, initial=1))
