"""What the numbers of an image mean: black is 0; white is 255 in uint8 and 1 in floats. And the sizes of images."""

from __future__ import annotations

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
