"""Label maps -> pictures: classes in their colours, over the image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from beit.config.segment import IGNORE
from beit.visualize.pictures import GAP, HIDDEN, INK, MARGIN, NAME_SIZE, PAPER, to_uint8

Color = tuple[int, int, int]
SWATCH = 14
"""Side of a legend's square of colour."""


def paint(label_map: Tensor, palette: Sequence[Color]) -> Tensor:
    """Class indices (H, W) in the colours of `palette`, uint8 (3, H, W); light grey where there is no class."""
    colors = torch.tensor([*palette, *[HIDDEN] * (IGNORE + 1 - len(palette))], dtype=torch.uint8)
    return colors[label_map.cpu().long()].permute(2, 0, 1)


def overlay(image: Tensor, label_map: Tensor, palette: Sequence[Color], opacity: float = 0.55) -> Tensor:
    """An image (3, H, W) under the colours of its classes (H, W); uint8 (3, H, W)."""
    colors = paint(label_map, palette).float()
    return torch.lerp(to_uint8(image).float(), colors, opacity).round().to(torch.uint8)


def with_legend(sheet: Image.Image, classes: Sequence[tuple[str, Color]]) -> Image.Image:
    """`sheet` with the names and colours of `classes` below it."""
    font = ImageFont.load_default(NAME_SIZE)
    row = SWATCH + 8
    places, left, top = [], MARGIN, sheet.height
    for name, _ in classes:
        width = SWATCH + 6 + round(font.getlength(name)) + 2 * GAP
        if left > MARGIN and left + width > sheet.width - MARGIN:
            left, top = MARGIN, top + row
        places.append((left, top))
        left += width
    taller = Image.new("RGB", (sheet.width, top + row + MARGIN), PAPER)
    taller.paste(sheet)
    draw = ImageDraw.Draw(taller)
    for (name, color), (left, top) in zip(classes, places, strict=True):
        draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), fill=color)
        draw.text((left + SWATCH + 6, top), name, INK, font)
    return taller
