"""Tensors -> pictures: contact sheets, hidden patches, grids of visual tokens.

An `image` is a Tensor (C, H, W), uint8 or float in [0, 1]; see :func:`to_uint8` for its colours. Functions between
tensors return uint8 (3, H, W).
"""

import colorsys
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from beit.atomic import replace_file

Color = tuple[int, int, int]
PAPER, INK = (255, 255, 255), (38, 40, 45)
HIDDEN, MISTAKE = (203, 205, 209), (178, 34, 34)
MARGIN, GAP, CELL, COLUMNS = 16, 12, 192, 4
CAPTION_SIZE, NAME_SIZE = 15, 12
GOLDEN_RATIO = 0.6180339887498949


def to_uint8(image: Tensor) -> Tensor:
    """Image (C, H, W), uint8 or float in [0, 1] (clamped) -> uint8 (3, H, W) on the CPU: the first three channels as
    red, green and blue, one as gray, two as red and green."""
    if image.ndim != 3:
        raise ValueError(f"expected an image (C, H, W), got {tuple(image.shape)}")
    image, missing = image.detach().cpu(), max(0, 3 - len(image))
    image = image.expand(3, -1, -1) if len(image) == 1 else functional.pad(image[:3], (0, 0, 0, 0, 0, missing))
    if image.is_floating_point():
        return image.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(f"expected uint8 or float in [0, 1], got {image.dtype}")
    return image


def to_pil(image: Tensor) -> Image.Image:
    """Image (3, H, W) -> RGB picture of W x H pixels."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().numpy())


def shade_hidden(image: Tensor, mask: Tensor) -> Tensor:
    """Cover the hidden patches of an image (3, H, W) with light grey; `mask` is bool (h, w), True = hidden."""
    image = to_uint8(image)
    hidden = functional.interpolate(mask.cpu()[None, None].float(), size=image.shape[1:], mode="nearest")[0]
    return torch.where(hidden.bool(), torch.tensor(HIDDEN, dtype=torch.uint8)[:, None, None], image)


def token_palette(vocab_size: int) -> Tensor:
    """One fixed colour per token, uint8 (vocab_size, 3): hues a golden ratio apart, so that neighbours differ."""
    colors = []
    for token in range(vocab_size):
        lightness, saturation = (0.42, 0.57, 0.72)[token % 3], (0.42, 0.66)[token // 3 % 2]
        colors.append(colorsys.hls_to_rgb(token * GOLDEN_RATIO % 1.0, lightness, saturation))
    return torch.tensor(colors).mul(255).round().to(torch.uint8)


def token_picture(tokens: Tensor, vocab_size: int, cell: int = 16) -> Tensor:
    """Grid of tokens, int64 (h, w) -> image (3, h * cell, w * cell) with one square of colour per token."""
    picture = token_palette(vocab_size)[tokens.cpu()].permute(2, 0, 1)
    return picture.repeat_interleave(cell, 1).repeat_interleave(cell, 2)


def contact_sheet(columns: Mapping[str, Sequence[Tensor] | Tensor]) -> Image.Image:
    """A labelled sheet: one row per image, one column per rendering of it, the column's name above.

    `columns` maps a caption to images (a sequence of (3, H, W) or one Tensor (B, 3, H, W)), as many in each column.
    The pictures of a row are drawn at the size of its first, brought close to CELL pixels: small images grow by a
    whole factor and keep their pixels, large ones shrink.
    """
    rows = list(zip(*columns.values(), strict=True))
    if not rows:
        raise ValueError("a contact sheet needs at least one column with at least one image")
    sizes = [_cell_size(row[0]) for row in rows]
    width = max(width for width, _ in sizes)
    header = [write(caption, CAPTION_SIZE, width) for caption in columns]
    pictures = [[_fit(image, size) for image in row] for row, size in zip(rows, sizes, strict=True)]
    return lay_out([header, *pictures])


def captioned_grid(images: Sequence[Tensor] | Tensor, captions: Sequence[tuple[str, bool]]) -> Image.Image:
    """Images (3, H, W) in rows of COLUMNS, each above its caption; a caption marked False is drawn as a mistake."""
    pictures = [_fit(image, _cell_size(image)) for image in images]
    width = max(picture.width for picture in pictures)
    texts = [write(text, NAME_SIZE, width, INK if right else MISTAKE) for text, right in captions]
    starts = range(0, len(pictures), COLUMNS)
    return lay_out([cells[start : start + COLUMNS] for start in starts for cells in (pictures, texts)])


def write(text: str, size: int, width: int, color: Color = INK) -> Image.Image:
    """Text in lines that fit `width` pixels, at least roughly, as a picture."""
    font = ImageFont.load_default(size)
    lines = textwrap.fill(text, max(1, int(width / font.getlength("n"))))
    _, _, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), lines, font)
    picture = Image.new("RGB", (math.ceil(right), math.ceil(bottom)), PAPER)
    ImageDraw.Draw(picture).multiline_text((0, 0), lines, color, font)
    return picture


def lay_out(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows, and in columns as wide as the widest, on white paper."""
    step = max(picture.width for row in rows for picture in row) + GAP
    heights = [max(picture.height for picture in row) + GAP for row in rows]
    width, height = max(map(len, rows)) * step - GAP, sum(heights) - GAP
    sheet = Image.new("RGB", (2 * MARGIN + width, 2 * MARGIN + height), PAPER)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for index, picture in enumerate(row):
            sheet.paste(picture, (MARGIN + index * step, top))
        top += height
    return sheet


def save_picture(picture: Image.Image, folder: Path, step: int, kind: str) -> None:
    """Write a picture of a run, as it is after `step` steps, to `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}-{kind}.webp"
    replace_file(path, lambda draft: picture.save(draft, "WEBP", quality=90, method=2), durable=False)


def _cell_size(image: Tensor) -> tuple[int, int]:
    """Width and height at which the first picture of a row is drawn."""
    height, width = image.shape[1:]
    factor = CELL / max(height, width)
    if factor > 1:
        factor = round(factor)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _fit(image: Tensor, size: tuple[int, int]) -> Image.Image:
    picture = to_pil(image)
    grows = size[0] >= picture.width and size[1] >= picture.height
    return picture.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)
