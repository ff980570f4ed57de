"""Colour jitter, and images between torch and Pillow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision weigh colours


class Jitter(NamedTuple):
    """Factors of colour changes, 1 for none, and the order in which Pillow would make them."""

    brightness: float
    contrast: float
    saturation: float
    order: tuple[int, ...]


def draw_jitter(strength: float, rng: np.random.Generator) -> Jitter | None:
    """Factors uniform in (1 - strength, 1 + strength), in random order."""
    if strength == 0:
        return None
    brightness, contrast, saturation = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3).tolist()
    return Jitter(brightness, contrast, saturation, tuple(rng.permutation(3).tolist()))


def apply_jitter(jitter: Jitter, *views: Tensor) -> list[Tensor]:
    """The same change of colours for several views of one crop, each uint8 (3, H, W).

    Pillow's three blends (with black, with the mean gray, with each pixel's gray) are affine maps of a pixel, and
    commute as long as nothing is clipped in between. So they are one 3x3 matrix here, clipped and rounded once.
    """
    brightness, contrast, saturation, _ = jitter
    scale = brightness * contrast
    row = [scale * (1 - saturation) * weight for weight in _GRAY]
    matrix = torch.tensor([[row[j] + (i == j) * scale * saturation for j in range(3)] for i in range(3)])
    planes = [view.to(torch.float32).reshape(3, -1) for view in views]
    means = planes[-1].mean(dim=1).tolist()  # of the same crop, so the last (smallest) view will do
    gray = sum(weight * mean for weight, mean in zip(_GRAY, means, strict=True))
    # With half a step, to round when the fraction is cut off.
    shift = brightness * (1 - contrast) * gray + 0.5
    changed = [torch.mm(matrix, plane).add_(shift).clamp_(0, 255.5) for plane in planes]
    # numpy converts to bytes three times as fast as torch.
    return [
        torch.from_numpy(plane.numpy().astype(np.uint8)).view(view.shape)
        for plane, view in zip(changed, views, strict=True)
    ]


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
