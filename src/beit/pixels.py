"""What the numbers of an image mean: black is 0; white is 255 in uint8 and 1 in floats. And the sizes of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LONGEST = 4
"""The longer side of a scaled image is at most so many times `base`: 2048 for 512 (mmsegmentation)."""


def white(images: Tensor) -> float:
    """The value of white in `images`."""
    return 255.0 if images.dtype == torch.uint8 else 1.0


def to_unit(images: Tensor) -> Tensor:
    """`images` as floats in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


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
