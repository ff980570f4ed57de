"""Architectures: saved with the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from annotated_types import Ge, Le

from beit.config.errors import require
from beit.config.values import NonNegativeFloat, PositiveFloat, PositiveInt, ShareBelowOne, check_limits, counted

PIXEL_STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation that encoders are trained with."""
DALLE_PIXELS = ((-0.125, -0.125, -0.125), (1.25, 1.25, 1.25))
"""DALL-E's pixel map 0.1 + 0.8 x, written as (x - mean) / std; its tokenizer has no other."""
UNIT_PIXELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Pixels as they are, in [0, 1]."""
Normalization = Literal["half", "imagenet", "data"]
"""By 0.5 and 0.5, by ImageNet's statistics, or by those of the images."""
MAX_DEPTH = 512
"""Blocks of a network: a file that asks for a million is an attack."""

Position = Literal["absolute", "sincos", "none", "shared_bias", "block_bias"]
"""What is added to the tokens: see :func:`positions` for the last two."""
Bias = Literal["shared", "block", "none"]
"""What is added to the scores of attention: one relative position bias for all blocks, one for each, or none."""

InitScheme = Literal["beit", "torch"]
"""How first values are drawn: see :func:`beit.models.encoder.init_weights`."""


def positions(position: Position, bias: Bias | None) -> tuple[Position, Bias]:
    """The two knobs of positions as they are meant: `position` absolute, sincos or none, and `bias`.

    Earlier releases had one knob. Its words shared_bias and block_bias are `none` with that bias, and its absolute
    and none are without any; so they are read where no bias is stated.
    """
    biases: dict[Position, Bias] = {"shared_bias": "shared", "block_bias": "block"}
    if position in biases:
        return "none", bias or biases[position]
    return position, bias or "none"


Side = Annotated[PositiveInt, Le(2**13)]
"""A length in pixels: that of the largest images that are read, for networks of larger ones fit no machine."""
Sides = tuple[Side, Side]
"""Height and width in pixels."""


Size = TypeVar("Size", bound=Sides | None)


def sides(value: int | Size) -> Size:
    """A length as height and width; None stays None."""
    return cast(Size, (value, value)) if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True)
class EncoderKnobs:
    """What an encoder's architecture and the flags of `beit pretrain` have in common (defaults: BEiT-base)."""

    patch_size: PositiveInt = 16
    """Side of a patch in pixels."""
    width: PositiveInt = 768
    """Channels of every token."""
    depth: Annotated[PositiveInt, Le(MAX_DEPTH)] = 12
    """Transformer blocks."""
    num_heads: PositiveInt = 12
    """Attention heads; their number must divide `width`."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP as a multiple of `width`."""
    layer_scale_init: NonNegativeFloat | None = 0.1
    """First value of LayerScale; null for none (the paper's plain ViT)."""
    drop_path_rate: ShareBelowOne = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    dropout: ShareBelowOne = 0.0
    """Dropout after the MLP and the attention projection."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(EncoderKnobs):
    """Architecture of a :class:`beit.BeitEncoder` (paper section 2.5 and table 12; defaults: BEiT-base)."""

    image_size: Sides = (224, 224)
    """Height and width in pixels that the position information is stored for; multiples of `patch_size`."""
    position: Position = "shared_bias"
    """Learned absolute embeddings, fixed sine-cosine ones, or none; once made, see :func:`positions`."""
    bias: Bias | None = None
    """One relative position bias for all blocks, one for each block, or none; once made, never null."""
    position_grid: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns that coordinates of sine-cosine positions are scaled to; null for those of `image_size`."""
    num_registers: Annotated[int, Ge(0)] = 0
    """Tokens of no place between the class token and the patches (DINOv2's registers, DeiT's distillation token)."""
    qv_bias: bool = True
    """Whether queries and values have biases."""
    final_norm: bool = False
    """Whether the encoder keeps a norm for whoever reads its blocks, as plain ViTs do; BEiT's lies in its heads."""
    layer_norm_eps: NonNegativeFloat = 1e-6
    """Epsilon of every LayerNorm."""
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted from images in [0, 1], per channel; their number is that of the channels."""
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Divides images after the subtraction, per channel."""
    pixel_bits: PositiveInt = 8
    """Above 8 the patches are projected in float32 whatever the precision, for bfloat16 holds 8 bits."""

    def __post_init__(self) -> None:
        check_limits(self)
        for name, value in zip(("position", "bias"), positions(self.position, self.bias), strict=True):
            object.__setattr__(self, name, value)
        size, patch = "{}x{}".format(*self.image_size), self.patch_size
        whole = not any(side % patch for side in self.image_size)
        require(whole, f"--image-size {size} is not a multiple of --patch-size {patch}; choose a multiple")
        divisible = self.width % self.num_heads == 0
        require(divisible, f"--width {self.width} is not divisible by --num-heads {self.num_heads}")
        quarters = self.position != "sincos" or self.width % 4 == 0
        require(quarters, f"--position sincos needs a --width that is a multiple of 4, not {self.width}")
        alike = 0 < self.channels == len(self.pixel_std)
        require(alike, f"--pixel-mean has {counted(self.channels, 'channel')}, --pixel-std {len(self.pixel_std)}")
        placed = not self.num_registers or self.bias == "none"
        require(placed, "registers have no place in a relative position bias; choose bias none")
        for name, pixel, least in (("mean", self.pixel_mean, -math.inf), ("std", self.pixel_std, 0)):
            fits = all(least < value < math.inf for value in pixel)
            require(fits, f"--pixel-{name} cannot be {pixel}, for images in [0, 1]")

    @property
    def channels(self) -> int:
        """Of images."""
        return len(self.pixel_mean)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def positions(self) -> str:
        """Both knobs of positions in words; those that earlier releases had keep their one word."""
        words = [] if self.position == "none" else [str(self.position)]
        words += [] if self.bias == "none" else [f"{self.bias}_bias"]
        return " and ".join(words) or "none"


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEKnobs:
    """What a tokenizer's architecture and the flags of `beit tokenizer` have in common (defaults: OpenAI's)."""

    vocab_size: Annotated[int, Ge(2)] = 8192
    """Entries of the codebook."""
    width: PositiveInt = 256
    """Channels after the first layer; each group of blocks doubles them."""
    stride: int = 8
    """Pixels per token along each axis; a power of two. The number of groups is log2(stride) + 1."""
    blocks_per_group: PositiveInt = 2
    """Residual blocks in each group."""
    code_width: PositiveInt = 128
    """Channels of a codebook entry as the decoder receives it."""


@dataclass(frozen=True, kw_only=True)
class TokenArchitecture:
    """What the architectures of all tokenizers have in common."""

    vocab_size: Annotated[int, Ge(2)]
    """Entries of the codebook."""
    stride: PositiveInt
    """Pixels per token along each axis: side of a patch."""
    image_size: Sides = (112, 112)
    """Height and width in pixels that the tokenizer is meant for; it runs at any multiple of `stride`."""
    channels: PositiveInt = 3
    """Of images."""
    pixel_bits: PositiveInt = 8
    """Above 8 the first convolution is made in float32 whatever the precision, for bfloat16 holds 8 bits."""

    def __post_init__(self) -> None:
        check_limits(self)
        size = "{}x{}".format(*self.image_size)
        whole = not any(side % self.stride for side in self.image_size)
        require(whole, f"tokenizer image size {size} is not a multiple of --stride {self.stride}")


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig(DiscreteVAEKnobs, TokenArchitecture):
    """Architecture of a :class:`beit.tokenizers.DiscreteVAE` (DALL-E, arXiv 2102.12092; defaults: OpenAI's)."""

    def __post_init__(self) -> None:
        is_power = self.stride >= 2 and self.stride.bit_count() == 1
        require(is_power, f"--stride {self.stride} is not a power of two of at least 2")
        super().__post_init__()
        blocks = self.blocks_per_group * self.stride.bit_length()
        require(blocks <= MAX_DEPTH, f"--blocks-per-group makes {blocks} blocks, more than {MAX_DEPTH}")
        require(self.width % 4 == 0, f"--width {self.width} of a tokenizer must be a multiple of 4")


def pixel_constants(normalization: Normalization | None, pixels: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an :class:`EncoderConfig` for images that are as the `pixels` of a configuration say."""
    about = {"channels": 3, "bits": 8, **(pixels or {})}
    known = PIXEL_STATISTICS.get(normalization or "half") if about["channels"] == 3 else None
    mean, std = known or ((0.5,) * about["channels"],) * 2
    mean, std = tuple(about.get("mean", mean)), tuple(about.get("std", std))
    return {"pixel_mean": mean, "pixel_std": std, "pixel_bits": about["bits"]}


def default_crop(image_size: tuple[int, int]) -> float:
    """Share of the resized image's side that a classifier is shown when it is judged, for images of this height and
    width (released code)."""
    return 0.875 if 32 < max(image_size) < 384 else 1.0
