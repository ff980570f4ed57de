"""Which part of an image is shown, and at which size. Sizes are (height, width)."""

import math
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
Filter = Literal["bicubic", "bilinear"]


class Box(NamedTuple):
    """A part of an image in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(size: Size, min_scale: float, rng: np.random.Generator, aspect: float = 1.0) -> Box:
    """The box of a random resized crop (Inception): area uniform in (min_scale, 1) of the image, width / height
    log-uniform in (3/4, 4/3) around `aspect`; after ten boxes that do not fit, the largest allowed one in the centre.
    """
    height, width = size
    low, high = math.log(3 / 4 * aspect), math.log(4 / 3 * aspect)
    for _ in range(10):
        area = height * width * rng.uniform(min_scale, 1.0)
        shape = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    shape = min(max(width / height, math.exp(low)), math.exp(high))
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    w, h = max(w, 1), max(h, 1)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def render(image: Tensor, box: Box, size: Size, mode: Filter = "bicubic") -> Tensor:
    """`box` of `image` at `size`: antialiased, on uint8 or on floats in [0, 1]."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[1:] == size:
        return part
    view = functional.interpolate(part[None], size, mode=mode, antialias=True)[0]
    return view.clamp_(0, 1) if view.is_floating_point() else view


def resize(image: Tensor, size: Size, mode: Filter = "bicubic") -> Tensor:
    """The whole of `image` at `size`, likewise."""
    return render(image, Box(0, 0, image.shape[1], image.shape[2]), size, mode)


def squashed_view(image: Tensor, size: Size, crop_share: float, mode: Filter = "bicubic") -> Tensor:
    """Resize to size / crop_share (antialiased), then cut `size` out of the centre."""
    return _center(resize(image, (int(size[0] / crop_share), int(size[1] / crop_share)), mode), *size)


def center_view(image: Tensor, size: Size, crop_share: float = 1.0, mode: Filter = "bicubic") -> Tensor:
    """Resize until size / crop_share is just covered (antialiased), then cut `size` out of the centre."""
    rows, columns = int(size[0] / crop_share), int(size[1] / crop_share)
    # A strip of 1 x 1,000,000 pixels would be enormous once resized; four times what a view can show is kept of it.
    fit = 4 * min(image.shape[1] / rows, image.shape[2] / columns)
    image = _center(image, min(image.shape[1], math.ceil(fit * rows)), min(image.shape[2], math.ceil(fit * columns)))
    _, height, width = image.shape
    # In whole numbers: int(147 * (32 / 98)) is 47.
    covering = max(rows, columns * height // width), max(columns, rows * width // height)
    return _center(resize(image, covering, mode), *size)


def _center(image: Tensor, height: int, width: int) -> Tensor:
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]
