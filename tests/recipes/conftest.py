"""Small photographs' stand-ins and the smallest runs, for the recipes end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import pretrain_config, probe_config, segment_config, tokenizer_config

import beit.recipes.tokenizer.run as recipe
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.segment import segment
from beit.recipes.tokenizer.run import tokenizer
from beit.stages.auto import choices


@pytest.fixture(autouse=True, scope="session")
def short_looks() -> Iterator[None]:
    """Codebooks of a few thousand patches, for these images have no more to tell; and a short look at the
    machine's rate, which each run takes twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "VIEWS", 128)
        patch.setattr(choices, "PRODUCTS_FOR", 0.02)
        yield


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
        (folder / split / "red" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing of " + split.encode())
    return folder


@pytest.fixture(scope="session")
def probed(colours: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of probes on that encoder, with the colours as classes."""
    out = tmp_path_factory.mktemp("runs") / "probe"
    probe(probe_config(colours, out, pretrained))
    return out


PAINT = {1: (200, 50, 40), 2: (50, 180, 60), 3: (40, 60, 210)}
"""What the classes of `regions` look like."""


@pytest.fixture(scope="session")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images of three coloured regions with label maps: 1 to 3, and 0 where a region ends."""
    root, rng = tmp_path_factory.mktemp("regions"), np.random.default_rng(2)
    for split, count in (("training", 16), ("validation", 6)):
        for index in range(count):
            height, width = 40 + 4 * (index % 3), 56
            label_map = np.empty((height, width), dtype=np.uint8)
            ends = [0, *sorted(rng.integers(8, width - 8, 2).tolist()), width]
            for number, left, right in zip(rng.permutation([1, 2, 3]), ends, ends[1:], strict=False):
                label_map[:, left:right] = number
            pixels = np.array([PAINT[number] for number in (1, 2, 3)])[label_map - 1]
            pixels = (pixels + rng.normal(0, 15, pixels.shape)).clip(0, 255).astype(np.uint8)
            label_map[:, ends[1:3]] = 0
            for folder, array, suffix in (("images", pixels, "jpg"), ("annotations", label_map, "png")):
                path = root / folder / split / f"{index}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    lines = ["0\tunlabelled\t0\t0\t0", "1\tred\t255\t0\t0", "2\tgreen\t0\t255\t0", "3\tblue\t0\t0\t255"]
    (root / "classes.tsv").write_text("\n".join(["value\tname\tr\tg\tb", *lines]) + "\n")
    return root


@pytest.fixture(scope="session")
def segmenter(regions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a segmenter with enough steps to tell three colours apart."""
    out = tmp_path_factory.mktemp("runs") / "segmenter"
    plain = {"photometric": False, "category_share": 1.0, "lr": 1e-2, "lr_scaling": "none", "log_every": 10}
    segment(segment_config(regions, out, steps=40, reduce_zero_label=True, **plain))
    return out
