"""Label maps -> pictures: classes in their colours, over the image, with a legend."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from beit.config.segment import IGNORE
from beit.visualize.pictures import GAP, HIDDEN, NAME_SIZE, PAPER, Color, lay_out, to_uint8, write

SWATCH = 14
"""Width of a legend's patch of colour."""
OPACITY = 0.55
"""Of the colours over an image."""


def paint(label_map: Tensor, palette: Sequence[Color]) -> Tensor:
    """Class indices (H, W) in the colours of `palette`, uint8 (3, H, W); light grey where there is no class."""
    colors = torch.tensor([*palette, *[HIDDEN] * (IGNORE + 1 - len(palette))], dtype=torch.uint8)
    return colors[label_map.cpu().long()].permute(2, 0, 1)


def overlay(image: Tensor, label_map: Tensor, palette: Sequence[Color]) -> Tensor:
    """An image (3, H, W) under the colours of its classes (H, W); uint8 (3, H, W)."""
    colors = paint(label_map, palette).float()
    return torch.lerp(to_uint8(image).float(), colors, OPACITY).round().to(torch.uint8)


def with_legend(sheet: Image.Image, classes: Sequence[tuple[str, Color]]) -> Image.Image:
    """`sheet` with the names and colours of `classes` below it."""
    entries = []
    for name, color in classes:
        text = ImageOps.expand(write(name, NAME_SIZE, sheet.width), (6, 0, 0, 0), PAPER)
        entries.append(ImageOps.expand(text, (SWATCH, 0, 0, 0), color))
    columns = max(1, sheet.width // (max(entry.width for entry in entries) + GAP))
    legend = lay_out([entries[start : start + columns] for start in range(0, len(entries), columns)])
    both = Image.new("RGB", (max(sheet.width, legend.width), sheet.height + legend.height), PAPER)
    both.paste(sheet)
    both.paste(legend, (0, sheet.height))
    return both
