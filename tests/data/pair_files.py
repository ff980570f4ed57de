"""Pairs of images and label maps on disk, for the tests that open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from beit.config.errors import UserError
from beit.data.label_maps.pairs import PairSource, open_pairs
from beit.data.sources.holdout import Holdout

NUMBERS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 4


def save(path: Path, picture: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def write_pairs(root: Path, *stems: str, numbers: NDArray[Any] = NUMBERS) -> Path:
    """A pair for each of `stems`, such as "training/street"."""
    for red, stem in enumerate(stems):
        save(root / f"images/{stem}.png", Image.new("RGB", numbers.shape[::-1], (red, 100, 50)))
        save(root / f"annotations/{stem}.png", Image.fromarray(numbers))
    return root


def pairs(root: Path, split: Any = "train", **options: Any) -> PairSource:
    return open_pairs([str(root)], holdout=Holdout(0.3), **options)[split]


def mistake(root: Path, split: Any = "train", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        pairs(root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def keys(source: PairSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def table_file(folder: Path, text: str, name: str = "classes.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)
