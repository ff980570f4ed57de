"""What a loader yields. A sample is the same tuple without the batch axis B; images are uint8 in [0, 255]."""

from typing import NamedTuple

import torch
from torch import Tensor


class ImageBatch(NamedTuple):
    """Images alone: tokenizer training, features, evaluation without labels."""

    image: Tensor
    """uint8 (B, 3, H, W)."""


class PretrainBatch(NamedTuple):
    """One crop of each image, drawn once and rendered twice, and the patches to hide."""

    image: Tensor
    """uint8 (B, 3, H, W), what the encoder sees."""
    token_image: Tensor
    """uint8 (B, 3, h * stride, w * stride), what the tokenizer turns into targets on the grid (h, w)."""
    mask: Tensor
    """bool (B, h, w); True = hidden."""
    number: Tensor = torch.tensor(-1)
    """int64 (B,): of a view that comes again after some epochs, under another mask; -1 of one that does not."""


class LabeledBatch(NamedTuple):
    """Images and their classes."""

    image: Tensor
    """uint8 (B, 3, H, W)."""
    label: Tensor
    """int64 (B,)."""


class SegmentationBatch(NamedTuple):
    """Images and a class for each pixel."""

    image: Tensor
    """uint8 (B, 3, H, W)."""
    label_map: Tensor
    """int64 (B, H, W)."""
