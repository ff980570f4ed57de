"""Label maps as files, in the convention of the data that a segmenter learned from.

A map is an indexed PNG of its image's size, or a 16-bit gray one where a class has the number 255 or a higher one,
for in 8 bits 255 stands for "no class". Its numbers are those of the training maps: class i is i, or i + 1 where 0
stands for "no class" there (`reduce_zero_label`), which is never predicted. classes.tsv says what they mean.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.atomic import replace_file
from beit.config.errors import RunFailed, UserError
from beit.config.use import PredictConfig
from beit.data.label_maps.table import IGNORE, generated_palette
from beit.data.sources.files import FileSource
from beit.visualize.label_maps import Color, overlay
from beit.visualize.pictures import to_pil

LONGEST_OVERLAY = 65_500
"""Pixels of the longer side that libjpeg writes."""


class Legend(NamedTuple):
    """What the numbers in a file mean."""

    names: Sequence[str]
    palette: Sequence[Color]
    first: int
    """The number of class 0."""

    @classmethod
    def described(cls, description: Mapping[str, Any], num_classes: int) -> Legend:
        """That of a segmenter with this model.json; numbers for names where it has none."""
        names = tuple(map(str, description.get("classes") or range(num_classes)))
        palette = description.get("palette") or generated_palette(len(names))
        first = int(description.get("reduce_zero_label", False))
        return cls(names, [(red, green, blue) for red, green, blue in palette], first)


def map_folder(config: PredictConfig) -> Path:
    """Where the maps go. UserError for what is no folder."""
    if config.layer is not None:
        raise UserError(f"--layer is for features, and {config.model} gives label maps; drop it")
    if config.out is None:
        raise UserError(f"{config.model} makes label maps of images; say where to: --out FOLDER")
    folder = Path(config.out)
    if folder.is_file() or folder.suffix in (".csv", ".jsonl", ".npz", ".png"):
        raise UserError(f"--out {config.out}: label maps are written to a folder, a file for each image")
    return folder


def file_names(source: FileSource) -> list[str]:
    """Paths of the images below their roots without suffixes, which all results are called by; where two are alike,
    with their suffixes or numbers."""
    keys = [source.key(index) for index in range(len(source))]
    plain = [str(Path(key).with_suffix("")) for key in keys]
    times = Counter(plain)
    names = [key if times[name] > 1 else name for key, name in zip(keys, plain, strict=True)]
    times = Counter(names)
    return [f"{name}-{index}" if times[name] > 1 else name for index, name in enumerate(names)]


def write_map(classes: Tensor, legend: Legend, path: Path) -> None:
    """Class indices (H, W) as an indexed PNG in the colours of the classes, or as a 16-bit gray one where 8 bits do
    not hold their numbers."""
    if legend.first + len(legend.names) <= IGNORE:
        image = Image.fromarray((classes + legend.first).to(torch.uint8).numpy())
        unused = [(0, 0, 0)] * legend.first
        image.putpalette([value for color in (*unused, *legend.palette) for value in color])
    else:
        image = Image.fromarray((classes + legend.first).numpy().astype(np.uint16))
    write_picture(image, path)


def write_picture(image: Image.Image, path: Path) -> None:
    kind = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    _write(path, lambda draft: image.save(draft, kind, quality=90))


def write_overlay(image: Tensor, classes: Tensor, legend: Legend, path: Path, name: str) -> None:
    """uint8 (3, H, W), called `name`, under the colours of its classes; named alone where a JPEG cannot hold it."""
    if max(classes.shape) > LONGEST_OVERLAY:
        told = f"no overlay of {name}: a JPEG has at most {LONGEST_OVERLAY:,} px on a side"
        print(told, file=sys.stderr)
    else:
        write_picture(to_pil(overlay(image, classes, legend.palette)), path)


def write_legend(legend: Legend, path: Path) -> None:
    """The numbers, names and colours of the classes, as `beit segment --classes` reads them."""
    rows = zip(legend.names, legend.palette, strict=True)
    lines = ["value\tname\tr\tg\tb"]
    lines += [
        "\t".join(map(str, (number, name, *color))) for number, (name, color) in enumerate(rows, legend.first)
    ]
    _write(path, lambda draft: draft.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """RunFailed where that is impossible: nor will it be with the next file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise RunFailed(f"{path} could not be written: {error.strerror or error}") from error
