"""The other published discrete VAE: strided convolutions and residual blocks, as the released code's "customized"
tokenizer and DALLE-pytorch have it, which differ in the order of their layers.
"""

import torch
from torch import Tensor, nn

from beit.config.tokenizer import Layer, PlainVAEConfig
from beit.pixels import per_channel, white
from beit.tokenizers.base import CategoricalTokenizer
from beit.tokenizers.objective import gumbel_softmax


class PlainDVAE(CategoricalTokenizer):
    """A visual tokenizer; names of weights are the published ones."""

    kind = "plain"

    def __init__(self, config: PlainVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.stride, self.image_size = config.vocab_size, config.stride, config.image_size
        self.codebook = nn.Embedding(config.vocab_size, config.code_width)
        self.encoder = nn.Sequential(*(_module(layer, up=False) for layer in config.encoder))
        self.decoder = nn.Sequential(*(_module(layer, up=True) for layer in config.decoder))

    def forward(
        self, images: Tensor, temperature: float | Tensor, uniform: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training pass: logits, and the normalised pixels (B, 3, H, W) that tokens relaxed by Gumbel-softmax at
        `temperature` are decoded to. `uniform` as in :func:`beit.tokenizers.objective.gumbel_softmax`."""
        logits = self.logits(images)
        codes = gumbel_softmax(logits, temperature, uniform).movedim(1, -1) @ self.codebook.weight
        return logits, self.decoder(codes.movedim(-1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1] -> (x - pixel_mean) / pixel_std in the precision of the weights."""
        pixels = images.to(self.codebook.weight.dtype) / white(images)
        return (pixels - per_channel(self.config.pixel_mean, pixels)) / per_channel(self.config.pixel_std, pixels)

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the tokens, (B, V, h, w), in the precision of the weights."""
        logits: Tensor = self.encoder(self.normalize(self.whole_tokens(images)))
        return logits

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W), from tokens int64 (B, h, w)."""
        return self.images_of(self.decoder(self.codebook(tokens).permute(0, 3, 1, 2)))

    def images_of(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) as images in [0, 1]."""
        mean, std = self.config.pixel_mean, self.config.pixel_std
        return (pixels * per_channel(std, pixels) + per_channel(mean, pixels)).clamp(0, 1)


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
    kind, n_in, n_out = layer
    if kind == "residual":
        return ResidualBlock(n_out)
    if kind == "pointwise":
        return nn.Conv2d(n_in, n_out, 1)
    convolution = nn.ConvTranspose2d if up else nn.Conv2d
    return nn.Sequential(convolution(n_in, n_out, 4, stride=2, padding=1), nn.ReLU())
