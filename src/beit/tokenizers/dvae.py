"""The discrete VAE of DALL-E (arXiv 2102.12092, appendix A), at any width, depth, stride and vocabulary.

    images (B, C, H, W) -> encoder -> logits (B, V, h, w) -> argmax, or Gumbel-softmax while training
        -> decoder -> statistics (B, 2 C, H, W): means and log-scales of the logit-Laplace pixel distribution

Parameter names are those of OpenAI's package but for `.w`/`.b`, which are `.weight`/`.bias` here.
"""

import math
from abc import abstractmethod
from collections import OrderedDict
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit.config.architecture import DiscreteVAEConfig
from beit.tokenizers.base import CategoricalTokenizer, VisualTokenizer
from beit.tokenizers.objective import gumbel_softmax, map_pixels, median_images


class PixelAutoencoder(VisualTokenizer):
    """DALL-E's encoder and decoder, with `channels` between them, by default one for each token.

    Images are float in [0, 1] or uint8, (B, C, H, W); this module maps them to the pixel range of its networks.
    The computation follows `torch.autocast` of the caller (bf16 is meant) except for the layers on either side of
    the tokens and of the pixels, which stay in the dtype of the weights.
    """

    def __init__(self, config: DiscreteVAEConfig, channels: int | None = None) -> None:
        super().__init__()
        self.vocab_size, self.stride, self.image_size = config.vocab_size, config.stride, config.image_size
        channels = channels or config.vocab_size
        self.encoder = Layers(_encoder_layers(config, channels))
        self.decoder = Layers(_decoder_layers(config, channels))
        init_weights(self)

    def encoded(self, images: Tensor) -> Tensor:
        """What the encoder makes of images, (B, channels, h, w), float32 for float32 weights even under autocast."""
        pixels = map_pixels(self.whole_tokens(images), next(self.parameters()).dtype)
        return cast(Tensor, self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images in [0, 1], (B, C, H, W), from tokens int64 (B, h, w)."""
        return median_images(self.statistics(tokens))

    @abstractmethod
    def statistics(self, tokens: Tensor) -> Tensor:
        """The pixel distribution p(x | z) of tokens int64 (B, h, w), (B, 2 C, H, W)."""


class DiscreteVAE(PixelAutoencoder, CategoricalTokenizer):
    """A visual tokenizer that can be trained.

    Args:
        config: the architecture. The default is OpenAI's: 53,786,240 parameters in the encoder and 43,829,766 in
            the decoder.
    """

    kind = "dvae"

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__(config)
        self.config = config

    @property
    def codebook(self) -> Tensor:
        """(V, code_width): what the decoder reads for each token. It is the decoder's input convolution."""
        convolution = cast(nn.Conv2d, self.decoder.blocks.get_submodule("input"))
        return convolution.weight[:, :, 0, 0].t() + cast(Tensor, convolution.bias)

    def forward(
        self, images: Tensor, temperature: float | Tensor, uniform: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The training pass: logits, and the pixel statistics (B, 6, H, W) that tokens relaxed by Gumbel-softmax at
        `temperature` are decoded to: three means, then three log-scales of p(x | z). Both are float32.
        `uniform` as in :func:`beit.tokenizers.objective.gumbel_softmax`."""
        logits = self.logits(images)
        return logits, self.decoder(gumbel_softmax(logits, temperature, uniform))

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log q(z | x), (B, V, h, w), float32 for float32 weights even under autocast."""
        return self.encoded(images)

    def statistics(self, tokens: Tensor) -> Tensor:
        codes = F.embedding(tokens, self.codebook).permute(0, 3, 1, 2)
        return cast(Tensor, self.decoder.blocks[1:](codes))


class Layers(nn.Module):
    """Layers one after the other; a module for their official name, `blocks`."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(layers)
        self.checkpoint_activations = False
        """Recompute each group in the backward pass instead of keeping its activations: less memory, more time."""

    def forward(self, x: Tensor) -> Tensor:
        again = self.checkpoint_activations and torch.is_grad_enabled()
        for name, layer in self.blocks.named_children():
            x = checkpoint(layer, x, use_reentrant=False) if again and name.startswith("group") else layer(x)
        return x


def _encoder_layers(config: DiscreteVAEConfig, channels: int) -> OrderedDict[str, nn.Module]:
    """Mapped pixels (B, C, H, W) -> (B, channels, h, w); a max-pool of 2 after every group but the last."""
    widths = _group_widths(config)
    first = _FullPrecisionConv if config.pixel_bits > 8 else nn.Conv2d
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=first(config.channels, config.width, 7, padding=3))
    for index, (n_in, n_out) in enumerate(pairwise([config.width, *widths]), start=1):
        group = _group(n_in, n_out, config, kernels=(3, 3, 3, 1))
        if index < len(widths):
            group["pool"] = nn.MaxPool2d(2)
        layers[f"group_{index}"] = nn.Sequential(group)
    layers["output"] = _output(widths[-1], channels)
    return layers


def _decoder_layers(config: DiscreteVAEConfig, channels: int) -> OrderedDict[str, nn.Module]:
    """Distributions over tokens, or codes, (B, channels, h, w) -> pixel statistics (B, 2 C, H, W).

    Groups in the reverse order of the encoder's, each but the first at twice the size of the one before it.
    """
    widths = _group_widths(config)[::-1]
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=_FullPrecisionConv(channels, config.code_width, 1))
    for index, (n_in, n_out) in enumerate(pairwise([config.code_width, *widths]), start=1):
        group = _group(n_in, n_out, config, kernels=(1, 3, 3, 3), upsample=index > 1)
        layers[f"group_{index}"] = nn.Sequential(group)
    layers["output"] = _output(widths[-1], 2 * config.channels)
    return layers


class ResidualBlock(nn.Module):
    """id_path(x) + gain * res_path(x), pre-activated; with `upsample`, at twice the size (nearest neighbour).

    OpenAI's decoder upsamples before the block. Its first convolutions are 1x1 and commute with nearest-neighbour
    upsampling, so that doing it after them gives the same numbers at a quarter of their cost.
    """

    def __init__(
        self, n_in: int, n_out: int, *, kernels: tuple[int, int, int, int], gain: float, upsample: bool = False
    ) -> None:
        super().__init__()
        n_hidden = n_out // 4
        self.gain = gain
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()
        self.id_path = _conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        sizes = [n_in, n_hidden, n_hidden, n_hidden, n_out]
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels, start=1):
            # The first activation would overwrite the input of the identity path.
            path[f"relu_{i}"] = nn.ReLU(inplace=i > 1)
            path[f"conv_{i}"] = _conv(sizes[i - 1], sizes[i], kernel)
            if i == 1 and upsample:
                path["upsample"] = self.upsample
        self.res_path = nn.Sequential(path)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.upsample(self.id_path(x)), self.res_path(x), alpha=self.gain)


class _FullPrecisionConv(nn.Conv2d):
    """A convolution that autocast leaves alone: next to tokens and pixels 8 bits of mantissa are too few."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def init_weights(model: nn.Module) -> None:
    """Initialises every convolution of `model` as DALL-E does.

    ======  =============================
    weight  N(0, 1 / (n_in * kernel^2))
    bias    0
    ======  =============================
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            nn.init.zeros_(cast(Tensor, module.bias))


def _group_widths(config: DiscreteVAEConfig) -> list[int]:
    """Channels of the encoder's groups; between two groups the size halves and the width doubles."""
    return [config.width * 2**group for group in range(int(math.log2(config.stride)) + 1)]


def _group(
    n_in: int, n_out: int, config: DiscreteVAEConfig, *, kernels: tuple[int, int, int, int], upsample: bool = False
) -> OrderedDict[str, nn.Module]:
    num_layers = (int(math.log2(config.stride)) + 1) * config.blocks_per_group
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(config.blocks_per_group):
        blocks[f"block_{i + 1}"] = ResidualBlock(
            n_out if i else n_in, n_out, kernels=kernels, gain=1 / num_layers**2, upsample=upsample and i == 0
        )
    return blocks


def _output(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(relu=nn.ReLU(inplace=True), conv=_FullPrecisionConv(n_in, n_out, 1)))


def _conv(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
