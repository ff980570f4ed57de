"""Augmentation for classification: RandAugment, random erasing, and the training view made of them.

The operations, their ranges and their order are those of timm's `rand-m9-mstd0.5-inc1` and `create_transform`, which
the released fine-tuning uses. All randomness comes from the generator that is passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from beit.data.batches import LabeledBatch
from beit.data.views.images import (
    Box,
    Size,
    apply_jitter,
    draw_box,
    draw_jitter,
    from_pillow,
    render,
    to_pillow,
)

Color = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Color], Image.Image]
"""(picture, level, fill) -> picture. `level` lies in [-1, 1]; its sign gives the direction where there is one.
`fill` is the colour of what comes into view."""

# ------------------------------------------------------------------------------------------------------------
# RandAugment (1909.13719), with operations that all grow stronger with the level


def _affine(picture: Image.Image, matrix: tuple[float, ...], fill: Color) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill
    )


def _rotate(picture: Image.Image, level: float, fill: Color) -> Image.Image:
    return picture.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterize(picture: Image.Image, level: float, fill: Color) -> Image.Image:
    # timm keeps no bit at all at level 1, which today's Pillow refuses.
    return ImageOps.posterize(picture, max(1, 4 - int(4 * abs(level))))


def _solarize(picture: Image.Image, level: float, fill: Color) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * abs(level)))


def _solarize_add(picture: Image.Image, level: float, fill: Color) -> Image.Image:
    added = int(110 * abs(level))
    return picture.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(picture: Image.Image, level: float, fill: Color) -> Image.Image:
        return enhancer(picture).enhance(max(0.1, 1 + 0.9 * level))

    return operation


OPERATIONS: Mapping[str, Operation] = {
    "auto_contrast": lambda picture, level, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level, fill: ImageOps.equalize(picture),
    "invert": lambda picture, level, fill: ImageOps.invert(picture),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda picture, level, fill: _affine(picture, (1, 0.3 * level, 0, 0, 1, 0), fill),
    "shear_y": lambda picture, level, fill: _affine(picture, (1, 0, 0, 0.3 * level, 1, 0), fill),
    "translate_x": lambda picture, level, fill: _affine(
        picture, (1, 0, 0.45 * level * picture.width, 0, 1, 0), fill
    ),
    "translate_y": lambda picture, level, fill: _affine(
        picture, (1, 0, 0, 0, 1, 0.45 * level * picture.height), fill
    ),
}


class RandAugment:
    """`count` operations in a row, each drawn from :data:`OPERATIONS` and left out with probability one half."""

    def __init__(
        self, magnitude: float = 9.0, std: float = 0.5, *, count: int = 2, fill: Color = (128, 128, 128)
    ) -> None:
        self.magnitude, self.std, self.count, self.fill = magnitude, std, count, fill

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """`picture` changed by what :meth:`draw` says."""
        for name, level in self.draw(rng):
            picture = OPERATIONS[name](picture, level, self.fill)
        return picture

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Operations to apply, with their levels: |level| is normal around magnitude / 10, within [0, 1]."""
        names = list(OPERATIONS)
        drawn = []
        for choice in rng.integers(len(names), size=self.count).tolist():
            if rng.random() < 0.5:
                magnitude = min(10.0, max(0.0, rng.normal(self.magnitude, self.std)))
                sign = -1 if rng.random() < 0.5 else 1
                drawn.append((names[choice], sign * magnitude / 10))
        return drawn


# ------------------------------------------------------------------------------------------------------------
# Random erasing (1708.04896)


def draw_erased_box(size: Size, rng: np.random.Generator) -> Box | None:
    """A box of 1/50 to 1/3 of the image, height / width log-uniform in (0.3, 1 / 0.3); None if ten do not fit."""
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        shape = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if h < height and w < width:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    return None


def erase(
    image: Tensor, box: Box, mean: tuple[float, ...], std: tuple[float, ...], rng: np.random.Generator
) -> Tensor:
    """`image`, uint8 (3, H, W), with normal noise in `box`: pixels of the network's own mean and deviation.

    timm's mode "pixel" puts the noise behind the normalisation; here it is clipped to what a pixel can be.
    """
    noise = rng.standard_normal((3, box.height, box.width), dtype=np.float32)
    channels = np.array([mean, std], dtype=np.float32)[:, :, None, None]
    pixels = np.clip(255 * (channels[0] + channels[1] * noise) + 0.5, 0, 255).astype(np.uint8)
    image = image.clone()
    image[:, box.top : box.top + box.height, box.left : box.left + box.width] = torch.from_numpy(pixels)
    return image


# ------------------------------------------------------------------------------------------------------------
# The view


class ClassificationView:
    """A labelled image as fine-tuning sees it: random resized crop, flip, colour jitter, RandAugment, random erasing.

    `mean` and `std` are the network's pixel constants, in [0, 1]: erased boxes and uncovered borders are made of
    them.
    """

    def __init__(
        self,
        image_size: Size,
        *,
        min_scale: float = 0.08,
        flip: float = 0.5,
        color_jitter: float = 0.0,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        erasing: float = 0.25,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        self.image_size, self.min_scale, self.flip = image_size, min_scale, flip
        self.color_jitter, self.erasing, self.mean, self.std = color_jitter, erasing, mean, std
        red, green, blue = (min(255, round(255 * value)) for value in mean)
        fill = (red, green, blue)
        self.randaugment = RandAugment(magnitude, magnitude_std, fill=fill) if magnitude > 0 else None

    def __call__(self, image: Tensor, label: int, rng: np.random.Generator) -> LabeledBatch:
        aspect = self.image_size[1] / self.image_size[0]
        box = draw_box((image.shape[1], image.shape[2]), self.min_scale, rng, aspect)
        view = render(image, box, self.image_size)
        if rng.random() < self.flip:
            view = view.flip(-1)
        if jitter := draw_jitter(self.color_jitter, rng):
            view = apply_jitter(jitter, view)[0]
        if self.randaugment is not None:
            view = from_pillow(self.randaugment(to_pillow(view), rng))
        if rng.random() < self.erasing and (erased := draw_erased_box(self.image_size, rng)):
            view = erase(view, erased, self.mean, self.std, rng)
        return LabeledBatch(view, torch.tensor(label))
