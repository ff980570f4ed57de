"""Images that are not RGB of 8 bits, from folders to models, by the commands of docs/images.md."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from image_kinds import KINDS, SIDE, write_classes, write_maps
from PIL import Image
from tiny_runs import finetune_config, pretrain_config, tokenizer_config

import beit
from beit.cli.main import main
from beit.config.errors import UserError
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import EvaluateConfig
from beit.recipes.evaluate.run import evaluate
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer.run import tokenizer

MACHINE = "--workers 0 --batch-size 8 --holdout 0.2"
NETWORK = "--image-size 16 --patch-size 4 --width 16 --depth 2 --num-heads 2"
LEARN = "--lr 4e-3 --lr-batch-size 8 --warmup-steps 0 --evaluations 1"
PLAIN = "--mixup 0 --cutmix 0 --erasing 0 --eval-images 100 --min-crop 0.5"


def run(command: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert left.value.code == 0


@pytest.fixture(scope="module", params=KINDS)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind, and a folder with `data`, `blind`, the same without what tells the classes, and an encoder `p`."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    data, _ = (write_classes(folder / name, kind, 60, blind=name == "blind") for name in ("data", "blind"))
    machine = f"--data {data} {MACHINE} --precision bf16"
    tokens = "dvae --width 8 --blocks-per-group 1 --steps 4" if kind == "bands" else "kmeans"
    stated = "--value-range 0 65535" if kind == "low_byte" else ""
    run(f"tokenizer {machine} {stated} --out {folder}/t --kind {tokens} --vocab-size 16 --stride 4 --image-size 16")
    run(f"pretrain {machine} --tokenizer {folder}/t --out {folder}/p {NETWORK} --steps 4")
    return kind, folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_folder_becomes_a_classifier(started: tuple[str, Path], precision: str, tmp_path: Path) -> None:
    """A class that the low byte alone tells, one band of thirteen or one page of five, is learned by that."""
    kind, folder = started
    run(
        f"finetune --data {folder}/data {MACHINE} --precision {precision} --init {folder}/p --out {tmp_path}/c "
        f"--steps 20 {LEARN} {PLAIN}"
    )
    about = json.loads((tmp_path / "c/model/model.json").read_text())
    assert len(about["pixel_mean"]) == len(about["pixel_std"]) == KINDS[kind][2] and about["bits"] == 16
    assert len(about["value_range"]) == (2 if kind == "low_byte" else 2 * KINDS[kind][2])
    assert json.loads((tmp_path / "c/results.json").read_text())["last"]["eval/top1"] >= 0.9
    judged = {"model": str(tmp_path / "c"), "workers": 0, "split": "all"}
    assert evaluate(EvaluateConfig(data=str(folder / "blind"), **judged)).results["top1"] == 0.5
    run(f"predict --model {tmp_path}/c --out {tmp_path}/labels.csv --workers 0 --images {folder}/data")
    with open(tmp_path / "labels.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert np.mean([Path(row["image"]).parent.name == row["label"] for row in rows]) >= 0.9


@pytest.mark.slow
def test_a_folder_becomes_label_maps(started: tuple[str, Path], tmp_path: Path) -> None:
    """In bfloat16, and where the low byte alone tells, which it could not hold, in float32 as well."""
    kind, folder = started
    maps = write_maps(tmp_path / "maps", kind, 24)
    truth = np.asarray(Image.open(maps / "annotations/training/0.png"))
    for precision in ("bf16", "float32")[: 2 if kind == "low_byte" else 1]:
        run(
            f"segment --data {maps} {MACHINE} --precision {precision} --init {folder}/p --out {tmp_path}/{precision} "
            f"--steps 30 --crop 16 {LEARN} --decoder pup --layers 0 1 --channels 8"
        )
        out = tmp_path / f"predicted-{precision}"
        run(f"predict --model {tmp_path}/{precision} --out {out} --workers 0 --images {maps}/images")
        [number] = [path for path in (out / "maps").rglob("0.png")]
        assert np.mean(np.asarray(Image.open(number)) == truth) > 0.8


def test_black_and_white_of_other_channels_are_looked_for_anew(tmp_path: Path) -> None:
    """Those of thirteen bands, each its own, are none of five pages; what is stated holds for all."""
    many, few = (write_classes(tmp_path / kind, kind, 40) for kind in ("bands", "pages"))
    run(f"pretrain --data {many} {MACHINE} --target pixels --out {tmp_path}/p {NETWORK} --steps 2")
    start = f"finetune --data {few} {MACHINE} --init {tmp_path}/p --image-channels 5 --steps 2 {LEARN} {PLAIN}"
    for out, stated, ends in (("found", "", 10), ("stated", "--value-range 0 65535", 2)):
        run(f"{start} {stated} --out {tmp_path}/{out}")
        about = json.loads((tmp_path / out / "model/model.json").read_text())
        assert len(about["value_range"]) == ends and len(about["pixel_mean"]) == 5


@pytest.mark.parametrize("kind", ["dvae", "fsq", "kmeans", "features"])
def test_every_kind_of_tokenizer_takes_any_channels(kind: str, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", "bands", 12)
    values = {"kind": kind, "vocab_size": 64 if kind == "fsq" else 16, "steps": 2, "precision": "bf16"}
    if kind == "features":
        teacher = pretrain_config(data, tmp_path / "p", target="pixels", image_size=16, patch_size=4, steps=1)
        pretrain(teacher)
        values |= {"teacher": str(tmp_path / "p")}
    tokenizer(tokenizer_config(data, tmp_path / "t", **values))
    model = beit.load_tokenizer(tmp_path / "t")
    assert model.decode(model.encode(torch.rand(1, 13, SIDE, SIDE))).shape == (1, 13, SIDE, SIDE)
    [sheet] = (tmp_path / "t/samples").glob("*2-recon*" if kind in ("dvae", "fsq") else "*recon*")
    assert np.asarray(Image.open(sheet)).std() > 0


def test_what_images_are_is_found_once_and_kept(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", "bands", 40)
    config = pretrain_config(data, tmp_path / "run", target="pixels", image_size=16, patch_size=4)
    pretrain(config)
    text = (tmp_path / "run/config.yaml").read_text()
    assert "channels: 13" in text and "bits: 16" in text
    log = " ".join((tmp_path / "run/log.txt").read_text().split())
    assert "images of 13 channels, of more than 8 bits" in log and "for want of --value-range: " in log
    model = beit.load_encoder(tmp_path / "run")
    values = np.stack([tifffile.imread(path) for path in sorted(data.rglob("*.tif"))])
    black, white = (
        np.array(json.loads((tmp_path / "run/model/model.json").read_text())["value_range"]).reshape(13, 2).T
    )
    units = np.clip((values - black) / (white - black), 0, 1)
    np.testing.assert_allclose(model.config.pixel_mean, units.mean((0, 1, 2)), atol=0.02)
    np.testing.assert_allclose(model.config.pixel_std, units.std((0, 1, 2)), atol=0.02)


def test_channels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", "bands", 12)
    with pytest.raises(UserError, match="--normalization imagenet is for 3 channels, and images have 13"):
        finetune(finetune_config(data, tmp_path / "run", normalization="imagenet", image_size=16))
    typed = tokenizer_config(data, tmp_path / "run").typed
    with pytest.raises(UserError, match="--data demo is RGB of 8 bits; name sets and images of other kinds apart"):
        tokenizer(TokenizerConfig(**{**typed, "data": ("demo", str(data))}))
    tokenizer(tokenizer_config(data, tmp_path / "t", kind="kmeans"))
    with pytest.raises(UserError, match="--image-channels 3: the model takes 13; drop it"):
        pretrain(pretrain_config(data, tmp_path / "run", tokenizer=str(tmp_path / "t"), image_channels=3))
    pages = write_classes(tmp_path / "pages", "pages", 12)
    with pytest.raises(UserError, match="files have 1 and 13 channels; say how many are meant: --image-channels 3"):
        tokenizer(TokenizerConfig(**{**typed, "data": (str(data), str(pages))}))
    assert not (tmp_path / "run").exists()
