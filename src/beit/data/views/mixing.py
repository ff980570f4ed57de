"""Soft targets: label smoothing, mixup and cutmix of a whole batch, on whatever device it is.

The images of a batch are mixed in pairs, those at the places 2j and 2j + 1, or as far apart as `repeats` views of one
image ask for, so that a batch that is split into parts of whole pairs mixes the same.
"""

import math

import numpy as np
import torch
from torch import Tensor

from beit.data.views.geometry import Box, Size
from beit.pixels import to_unit


def smoothed(targets: Tensor, smoothing: float, *, multilabel: bool = False) -> Tensor:
    """Targets (B, C) of 0 and 1 -> float, with the share `smoothing` spread evenly: over all C classes, or, where
    each class is a question of its own, over yes and no."""
    return targets.float() * (1 - smoothing) + smoothing / (2 if multilabel else targets.shape[1])


def partners(values: Tensor, repeats: int = 1) -> Tensor:
    """`values` of a batch, (B, ...), each in the place of the other of its pair, or of none in its own."""
    places = torch.arange(len(values), device=values.device)
    others = places ^ distance(repeats)
    return values[torch.where(others < len(values), others, places)]


def distance(repeats: int) -> int:
    """Places between the two of a pair: a power of two, as batches are, and no view of the same image."""
    return 1 << (repeats - 1).bit_length()


def mixup(images: Tensor, targets: Tensor, share: float, repeats: int = 1) -> tuple[Tensor, Tensor]:
    """Each image and its target, at `share`, mixed with those of the other of its pair (1710.09412).

    images uint8 or float in [0, 1] -> float in [0, 1].
    """
    pixels = to_unit(images)
    others = partners(pixels, repeats), partners(targets, repeats)
    return torch.lerp(others[0], pixels, share), torch.lerp(others[1], targets, share)


def cutmix(images: Tensor, targets: Tensor, box: Box, repeats: int = 1) -> tuple[Tensor, Tensor]:
    """`box` of each image taken from the other of its pair; targets mixed by area (1905.04899)."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    mixed = images.clone()
    mixed[:, :, rows, columns] = partners(images, repeats)[:, :, rows, columns]
    share = 1 - box.height * box.width / (images.shape[2] * images.shape[3])
    return mixed, torch.lerp(partners(targets, repeats), targets, share)


def cut_box(size: Size, share: float, center: tuple[int, int]) -> Box:
    """The box around `center` (row, column) that leaves about `share` of an image; cut off at the image's border."""
    height, width = (int(side * math.sqrt(1 - share)) for side in size)
    top, left = max(0, center[0] - height // 2), max(0, center[1] - width // 2)
    bottom, right = center[0] + (height + 1) // 2, center[1] + (width + 1) // 2
    return Box(top, left, min(size[0], bottom) - top, min(size[1], right) - left)


class BatchMixing:
    """Every batch mixed in one of the two ways, as the released fine-tuning does; an alpha of 0 turns a way off."""

    def __init__(
        self, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0, cutmix_share: float = 0.5, repeats: int = 1
    ) -> None:
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_share = mixup_alpha, cutmix_alpha, cutmix_share
        self.repeats = repeats

    def __call__(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) and targets (B, C) -> the same, mixed; `rng` decides how."""
        if not self.mixup_alpha and not self.cutmix_alpha:
            return images, targets
        cut = not self.mixup_alpha or (self.cutmix_alpha > 0 and rng.random() < self.cutmix_share)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        share = rng.beta(alpha, alpha)
        if not cut:
            return mixup(images, targets, share, self.repeats)
        height, width = images.shape[2:]
        center = int(rng.integers(height)), int(rng.integers(width))
        return cutmix(images, targets, cut_box((height, width), share, center), self.repeats)
