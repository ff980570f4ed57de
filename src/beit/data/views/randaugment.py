"""RandAugment (1909.13719), with operations that all grow stronger with the level.

The operations, their ranges and their order are those of timm's `rand-m9-mstd0.5-inc1`, which the released
fine-tuning uses.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Color = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Color], Image.Image]
"""(picture, level, fill) -> picture. `level` lies in [-1, 1]; its sign gives the direction where there is one.
`fill` is the colour of what comes into view."""


def _affine(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Operation:
    """The transform by `matrix(level, width, height)`."""

    def operation(picture: Image.Image, level: float, fill: Color) -> Image.Image:
        coefficients, bicubic = matrix(level, *picture.size), Image.Resampling.BICUBIC
        return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, bicubic, fillcolor=fill)

    return operation


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def operation(picture: Image.Image, level: float, fill: Color) -> Image.Image:
        return enhancer(picture).enhance(max(0.1, 1 + 0.9 * level))

    return operation


def _lighter_below_middle(added: int) -> list[int]:
    return [min(255, value + added) if value < 128 else value for value in range(256)]


OPERATIONS: Mapping[str, Operation] = {
    "auto_contrast": lambda picture, level, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level, fill: ImageOps.equalize(picture),
    "invert": lambda picture, level, fill: ImageOps.invert(picture),
    "rotate": lambda picture, level, fill: picture.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill),
    # timm keeps no bit at all at level 1, which today's Pillow refuses.
    "posterize": lambda picture, level, fill: ImageOps.posterize(picture, max(1, 4 - int(4 * abs(level)))),
    "solarize": lambda picture, level, fill: ImageOps.solarize(picture, 256 - int(256 * abs(level))),
    "solarize_add": lambda picture, level, fill: picture.point(_lighter_below_middle(int(110 * abs(level))) * 3),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda level, width, height: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _affine(lambda level, width, height: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _affine(lambda level, width, height: (1, 0, 0.45 * level * width, 0, 1, 0)),
    "translate_y": _affine(lambda level, width, height: (1, 0, 0, 0, 1, 0.45 * level * height)),
}


class RandAugment:
    """Two operations in a row, each drawn from :data:`OPERATIONS` and left out with probability one half."""

    def __init__(self, magnitude: float = 9.0, std: float = 0.5, *, fill: Color = (128, 128, 128)) -> None:
        self.magnitude, self.std, self.fill = magnitude, std, fill

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """`picture` changed by what :meth:`draw` says."""
        for name, level in self.draw(rng):
            picture = OPERATIONS[name](picture, level, self.fill)
        return picture

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Operations to apply, with their levels: |level| is normal around magnitude / 10, within [0, 1]."""
        names = list(OPERATIONS)
        operations = []
        for choice in rng.integers(len(names), size=2).tolist():
            if rng.random() < 0.5:
                magnitude = min(10.0, max(0.0, rng.normal(self.magnitude, self.std)))
                sign = -1 if rng.random() < 0.5 else 1
                operations.append((names[choice], sign * magnitude / 10))
        return operations
