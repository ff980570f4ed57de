"""Small photographs' stand-ins and the smallest runs, for the recipes end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import tokenizer_config

from beit.recipes.tokenizer import tokenizer


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 smooth images of 40x36 pixels in a flat folder, and one that is damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{index:02}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "00.jpg").read_bytes()[:300])
    return folder


@pytest.fixture(scope="session")
def trained_tokenizer(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tokenizer."""
    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    tokenizer(tokenizer_config(images, out))
    return out
