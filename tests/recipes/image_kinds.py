"""Small sets of images that are not RGB of 8 bits, in which one thing alone tells the class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
Pixels = NDArray[np.uint16]


def low_byte(rng: np.random.Generator, signal: NDArray[np.bool_]) -> Pixels:
    """Gray whose high byte is the same everywhere: where there is a signal, the low byte is larger."""
    low = rng.integers(0, 120, (SIDE, SIDE)) + 120 * signal
    return (0x4000 + low).astype(np.uint16)


def last_band(rng: np.random.Generator, signal: NDArray[np.bool_]) -> Pixels:
    """Thirteen bands of noise, the last of which is lighter where there is a signal."""
    bands = rng.integers(0, 3000, (SIDE, SIDE, 13))
    bands[..., 12] += 4000 * signal
    return bands.astype(np.uint16)


def last_page(rng: np.random.Generator, signal: NDArray[np.bool_]) -> Pixels:
    """Five pages of noise, likewise."""
    return np.moveaxis(last_band(rng, signal)[..., 8:], 2, 0).copy()


def write_png(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path.with_suffix(".png"))


def write_bands(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")


def write_pages(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack")


KINDS: dict[str, tuple[Callable[..., Pixels], Callable[[Path, Pixels], None], int]] = {
    "low_byte": (low_byte, write_png, 1),
    "bands": (last_band, write_bands, 13),
    "pages": (last_page, write_pages, 5),
}


def without_signal(kind: str, pixels: Pixels) -> Pixels:
    """`pixels` without what tells the class."""
    pixels = pixels.copy()
    if kind == "low_byte":
        pixels &= 0xFF00
    elif kind == "bands":
        pixels[..., 12] = 0
    else:
        pixels[4] = 0
    return pixels


def write_classes(root: Path, kind: str, count: int, *, blind: bool = False) -> Path:
    """`count` images of two classes in folders, those of the second with the signal everywhere."""
    make, write, _ = KINDS[kind]
    for index in range(count):
        label = index % 2
        pixels = make(np.random.default_rng(index), np.full((SIDE, SIDE), bool(label)))
        folder = root / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{index}", without_signal(kind, pixels) if blind else pixels)
    return root


def write_maps(root: Path, kind: str, count: int) -> Path:
    """`count` images with label maps: the signal lies in a half of each, which has a class of its own."""
    make, write, _ = KINDS[kind]
    for index in range(count):
        signal = np.zeros((SIDE, SIDE), dtype=np.bool_)
        signal[:, : SIDE // 2] = index % 2
        signal[:, SIDE // 2 :] = 1 - index % 2
        for folder in (root / "images/training", root / "annotations/training"):
            folder.mkdir(parents=True, exist_ok=True)
        write(root / f"images/training/{index}", make(np.random.default_rng(index), signal))
        Image.fromarray(signal.astype(np.uint8)).save(root / f"annotations/training/{index}.png")
    return root
