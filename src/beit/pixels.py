"""What the numbers of an image mean: black is 0; white is 255 in uint8 and 1 in floats. And the sizes of images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.config.errors import UserError, require

GRAY = (0.299, 0.587, 0.114)
"""The parts of red, green and blue in gray (ITU-R 601), as Pillow and torchvision weigh colours."""
LONGEST = 4
"""The longer side of a scaled image is at most so many times `base`: 2048 for 512 (mmsegmentation)."""


def white(images: Tensor) -> float:
    """The value of white in `images`; UserError for numbers of which none is agreed to be white."""
    if images.dtype == torch.uint8:
        return 255.0
    require(images.is_floating_point(), f"images are of {images.dtype}; give uint8, or floats in [0, 1]")
    return 1.0


def to_unit(images: Tensor) -> Tensor:
    """`images` as floats in [0, 1]."""
    return images.float() / 255 if white(images) == 255 else images


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """`values` (C, 1, 1), in the dtype and on the device of `like`."""
    # Filled on the device: copying a tensor from the host would make a GPU wait in every step.
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])


def cut_patches(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) as square patches, row by row: (B, N, C, side, side)."""
    channels, height, width = images.shape[-3:]
    cells = images.reshape(-1, channels, height // side, side, width // side, side)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def from_unit(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in [0, 1], or beyond by interpolation, as uint8, or as the floats that they are within [0, 1]."""
    if dtype == torch.uint8:
        # numpy converts to bytes three times as fast as torch.
        return torch.from_numpy((pixels * 255).add_(0.5).clamp_(0, 255.5).numpy().astype(np.uint8))
    return pixels.clamp(0, 1)


def checked(images: Tensor, value_range: Sequence[float] | None = None, *, look: bool = True) -> Tensor:
    """`images` (..., C, H, W) as networks take them: those of uint16 as float32 in [0, 1], by the numbers that are
    black and white, of all channels or of one after another; others, and with no such numbers, as they are.

    UserError for an empty batch, and for floats that are not finite, or further outside [0, 1] than interpolation
    takes them. The latter costs a `look` at all of them, so that training does without; nothing is looked at where a
    graph is recorded.
    """
    if images.dtype == torch.uint16 and value_range is not None:
        values = images.float()
        black, white = (per_channel(ends, values) for ends in (value_range[::2], value_range[1::2]))
        return ((values - black) / (white - black)).clamp(0, 1)
    recorded = torch.compiler.is_compiling() or images.is_meta
    if not (recorded or images.shape[0]):
        raise UserError("the batch is empty; give one image or more")
    if look and not recorded and images.is_floating_point() and images.numel():
        low, high = map(float, images.detach().aminmax())
        require(math.isfinite(high - low), "images hold numbers that are not finite; give uint8, or floats in [0, 1]")
        given = f"images run from {low:.3g} to {high:.3g}; give uint8, or floats in [0, 1]"
        mend = "pixels of 0 to 255 are to be divided by 255, and the model itself subtracts its mean"
        require(low >= -0.25 and high <= 1.25, f"{given}: {mend}")
    return images


def scale_size(size: tuple[int, int], base: int | None, ratio: float = 1.0) -> tuple[int, int]:
    """`size` (height, width) with its shorter side at `base` (None: as it is) times `ratio`, its longer side at most
    four times so long."""
    if base is not None:
        ratio *= min(base / min(size), LONGEST * base / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


class Limits(NamedTuple):
    """How large a picture may be, which is decided before it is decoded."""

    megapixels: float = 64
    gibibytes: float = 1

    def check(self, height: int, width: int, bytes_per_pixel: float) -> None:
        """ValueError where a picture is larger."""
        megapixels, needs = height * width / 1e6, height * width * bytes_per_pixel / 2**30
        limit = f"{width}x{height} is {megapixels:.0f} megapixels; the limit (--max-megapixels) is"
        if megapixels > self.megapixels:
            raise ValueError(f"{limit} {self.megapixels:g}")
        if needs > self.gibibytes:
            raise ValueError(f"decoding needs {needs:.1f} GiB; --max-gibibytes allows {self.gibibytes:g}")
