"""The range of pixels of more than 8 bits: stated once, kept with the model, and used by whatever uses the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import finetune_config, pretrain_config, tokenizer_config

import beit
from beit.checkpoints.own import save_model
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.use import PredictConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier
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


def test_a_program_gives_sixteen_bits_in_any_form(dark: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "tokenizer", dark / "a" / "0.png"
    tokenizer(tokenizer_config(dark, run, kind="kmeans", holdout=0.25, value_range=(0.0, 4095.0)))
    model, values = beit.load_tokenizer(run), np.asarray(Image.open(file))
    assert model.value_range == (0, 4095)
    numbers, units = torch.from_numpy(values.copy())[None], torch.from_numpy(values / 4095).float()[None]
    expected = model.encode(units[None])[0]
    assert torch.equal(model.encode(numbers[None])[0], expected) and len(expected.unique()) > 1
    forms = [file, Image.open(file), values, values[..., None], numbers, units, values / 4095]
    for form in forms:
        one = beit.predict(model, form)
        assert isinstance(one, beit.Prediction) and np.array_equal(np.asarray(one.tokens), expected)
    coarse = model.encode((units[None] * 255).round().to(torch.uint8))[0]
    assert np.array_equal(beit.predict(model, (units * 255).round().to(torch.uint8)).tokens, coarse)  # type: ignore[union-attr]
    for wrong, words in ((values.astype(np.int32), "images are of torch.int32"), (values * 1.0, "images run from")):
        with pytest.raises(UserError, match=words):
            beit.predict(model, wrong)
    with pytest.raises(UserError, match=r"give arrays \(H, W, 1\) or tensors \(1, H, W\)"):
        beit.predict(model, np.zeros((16, 16, 3), np.uint16))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"bits": 16, "value_range": [7, 900]}, (7, 900)),
        ({"bits": 16, "value_range": None}, (0, 65535)),
        ({"bits": 8, "value_range": [7, 900]}, None),
        ({}, None),
    ],
)
def test_a_model_knows_its_range(extra: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    config = EncoderConfig(image_size=(16, 16), patch_size=8, width=16, depth=1, num_heads=2, bias="shared")
    save_model(ImageClassifier(BeitEncoder(config), 2), tmp_path, provenance={}, classes=["a", "b"], extra=extra)
    assert beit.load_model(tmp_path).encoder.value_range == expected
    resized, images = beit.load_encoder(tmp_path, image_size=24), torch.zeros(1, 3, 24, 24, dtype=torch.uint16)
    assert resized.value_range == expected
    if expected is None:
        with pytest.raises(UserError, match=r"images are of torch.uint16; give uint8, or floats"):
            resized(images)
    else:
        torch.testing.assert_close(resized(images), resized(torch.zeros(1, 3, 24, 24)))
    beit.checkpoints.convert(tmp_path, tmp_path / "again", to="beit")
    assert beit.load_encoder(tmp_path / "again").value_range == expected


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
