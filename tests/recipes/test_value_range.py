"""The range of pixels of more than 8 bits: stated once, kept with the model, and used by whatever uses the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import finetune_config, pretrain_config, tokenizer_config

import beit
from beit.config.errors import UserError
from beit.config.use import PredictConfig
from beit.recipes.finetune import finetune
from beit.recipes.predict.run import predictions
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer.run import tokenizer


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    """Two classes of gray images that use 12 of 16 bits, and say so nowhere."""
    for index in range(12):
        folder = tmp_path / "dark" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(index).integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{index}.png")
    return tmp_path / "dark"


def test_a_stated_range_goes_with_the_model(dark: Path, tmp_path: Path) -> None:
    run = tmp_path / "tokenizer"
    config = {"kind": "kmeans", "holdout": 0.25, "value_range": (0.0, 4095.0)}
    tokenizer(tokenizer_config(dark, run, **config))
    assert json.loads((run / "model" / "model.json").read_text())["value_range"] == [0, 4095]
    assert "nearly black" not in " ".join((run / "log.txt").read_text().split())
    values = np.asarray(Image.open(dark / "a" / "0.png"))
    expected = (values / 4095).astype(np.float32)[None]
    tokens = beit.load_tokenizer(run).encode(torch.from_numpy(expected)[None])[0]
    for stated in (None, (0.0, 4095.0)):
        images = (str(dark / "a" / "0.png"),)
        [record] = predictions(PredictConfig(images=images, model=str(run), value_range=stated, workers=0))
        np.testing.assert_array_equal(record["tokens"], tokens)


def test_a_range_that_nobody_states_is_found_and_said(dark: Path, tmp_path: Path) -> None:
    tokenizer(tokenizer_config(dark, tmp_path / "run", kind="kmeans", holdout=0.25))
    log = " ".join((tmp_path / "run" / "log.txt").read_text().split())  # which is wrapped
    assert log.count("of each channel, for want of --value-range: ") == 1 and "nearly black" not in log
    black, white = json.loads((tmp_path / "run/model/model.json").read_text())["value_range"]
    assert 0 < black < 10 and 4085 < white < 4096


def test_a_model_of_bytes_says_what_stays_nearly_black(dark: Path, tmp_path: Path, images: Path) -> None:
    tokenizer(tokenizer_config(images, tmp_path / "bytes", kind="kmeans"))
    config = pretrain_config(dark, tmp_path / "run", tokenizer=str(tmp_path / "bytes"), image_size=16, patch_size=4)
    pretrain(config)
    log = " ".join((tmp_path / "run" / "log.txt").read_text().split())
    assert log.count("nearly black; --value-range 0 4") == 1


def test_a_range_is_two_values(dark: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--value-range 7 7 has one value for black and white; give two"):
        finetune(finetune_config(dark, tmp_path / "run", from_scratch=True, value_range=(7.0, 7.0)))
    assert not (tmp_path / "run").exists()
