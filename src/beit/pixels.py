"""What the numbers of an image mean: black is 0; white is 255 in uint8 and 1 in floats."""

from __future__ import annotations

import torch
from torch import Tensor


def white(images: Tensor) -> float:
    """The value of white in `images`."""
    return 255.0 if images.dtype == torch.uint8 else 1.0


def to_unit(images: Tensor) -> Tensor:
    """`images` as floats in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
