"""Small photographs' stand-ins and the smallest runs, for the recipes end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import pretrain_config, probe_config, tokenizer_config

from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
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


@pytest.fixture(scope="session")
def pretrained(images: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an encoder."""
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    pretrain(pretrain_config(images, out, tokenizer=str(trained_tokenizer)))
    return out


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes that differ in colour, for training and evaluation, two of them damaged."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(1)
    for split, count in (("train", 20), ("val", 7)):
        for name, colour in {"blue": (60, 60, 200), "green": (60, 190, 60), "red": (200, 60, 60)}.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 40, (34, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index:02}.png")
        (folder / split / "red" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    return folder


@pytest.fixture(scope="session")
def probed(colours: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of probes on that encoder, with the colours as classes."""
    out = tmp_path_factory.mktemp("runs") / "probe"
    probe(probe_config(colours, out, pretrained))
    return out
