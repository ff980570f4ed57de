"""Colour jitter, and images between torch and Pillow."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.pixels import GRAY, white


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
    """The same change of colours for several views of one crop, each (C, H, W), uint8 or float in [0, 1]. What is
    not RGB has no saturation.

    Pillow's three blends (with black, with the mean gray, with each pixel's gray) are affine maps of a pixel, and
    commute as long as nothing is clipped in between. So they are one 3x3 matrix here, clipped and rounded once.
    """
    brightness, contrast, saturation, _ = jitter
    count, is_byte = len(views[0]), views[0].dtype == torch.uint8
    weights, saturation = (GRAY, saturation) if count == 3 else ((1 / count,) * count, 1.0)
    scale = brightness * contrast
    row = [scale * (1 - saturation) * weight for weight in weights]
    matrix = torch.tensor([[row[j] + (i == j) * scale * saturation for j in range(count)] for i in range(count)])
    planes = [view.to(torch.float32).reshape(count, -1) for view in views]
    means = planes[-1].mean(dim=1).tolist()  # of the same crop, so the last (smallest) view will do
    gray = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    # With half a step of bytes, to round when the fraction is cut off.
    half = 0.5 if is_byte else 0.0
    shift, highest = brightness * (1 - contrast) * gray + half, white(views[0]) + half
    changed = [torch.mm(matrix, plane).add_(shift).clamp_(0, highest) for plane in planes]
    # numpy converts to bytes three times as fast as torch.
    changed = [torch.from_numpy(x.numpy().astype(np.uint8)) if is_byte else x for x in changed]
    return [plane.view(view.shape) for plane, view in zip(changed, views, strict=True)]


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
