"""`beit segment` end to end on a CPU, from every kind of start, and what it says and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_results import log, metrics, same_weights, stopped_in_step, weights
from tiny_runs import finetune_config, pretrain_config, segment_config

import beit
from beit.checkpoints.own import read_description
from beit.config.errors import UserError
from beit.config.segment import SegmentConfig
from beit.config.use import PredictConfig
from beit.presets import configure
from beit.recipes.finetune import finetune
from beit.recipes.predict.run import predict, predictions
from beit.recipes.pretrain import pretrain
from beit.recipes.segment import segment

pytestmark = pytest.mark.slow

REAL = os.environ.get("BEIT_REAL_DATA")


@pytest.fixture(scope="module")
def pretrained(regions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    pretrain(pretrain_config(regions, run, target="pixels", steps=2))
    return run


def test_a_run_learns_and_leaves_what_it_promises(segmenter: Path) -> None:
    last = metrics(segmenter)[-1]
    assert last["eval/miou"] > 0.8 and last["eval/macc"] > 0.8 and last["eval/aacc"] > 0.9
    assert {"miou", "macc", "aacc", "loss", "lr", "grad_norm"} <= metrics(segmenter)[1].keys()
    results = json.loads((segmenter / "results.json").read_text())
    assert results["best"]["monitor"] == "eval/miou"
    by_class = results["classes"]
    assert list(by_class) == ["red", "green", "blue"]
    assert np.mean([entry["iou"] for entry in by_class.values()]) == pytest.approx(last["eval/miou"])
    assert sum(entry["share"] for entry in by_class.values()) == pytest.approx(1)
    said = read_description(segmenter)
    assert said["kind"] == "segmenter" and said["classes"] == ["red", "green", "blue"]
    assert said["palette"] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert (said["resize"], said["crop"], said["stride"]) == (None, [32, 32], [21, 21])
    assert said["reduce_zero_label"] is True and said["ignore_value"] == 255
    model = beit.load_model(segmenter)
    assert isinstance(model, beit.SemanticSegmenter)
    assert list((segmenter / "samples").glob("step-000040-segmentation.*"))
    text = log(segmenter)
    assert "with label maps of 3 classes" in text and "in windows of 32x32 px that are 21x21 px apart" in text
    assert "0 ('unlabelled') is ignored" in text and "0 in a label map: no class (--reduce-zero-label)" in text


def test_the_rate_falls_in_a_straight_line_under_its_warm_up(regions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = segment_config(regions, run, reduce_zero_label=True, lr=1e-3, warmup_steps=2, log_every=1)
    segment(config)
    factor = 1 - (1 - 1 / 2) * (1 - 1e-6)  # mmsegmentation's, in the second step
    expected = [1e-9, 0.75e-3 * factor, 0.5e-3, 0.25e-3]
    assert [line["lr"] for line in metrics(run) if "lr" in line] == pytest.approx(expected)


def test_the_first_step_starts_from_the_pretrained_encoder(regions: Path, pretrained: Path, tmp_path: Path) -> None:
    run, start = tmp_path / "run", weights(pretrained)
    segment(segment_config(regions, run, init=str(pretrained), crop=(32, 48), decoder="pup", layers=(0, 1), lr=1e-12))
    assert read_description(run)["image_size"] == [32, 48]
    now = weights(run)
    shared = [name for name in start if name.startswith("encoder.") and "rel_pos" not in name]
    assert shared and all(torch.allclose(now[name], start[name], atol=1e-8) for name in shared)
    text = log(run)
    assert f"from {pretrained} (pretrained): 2 blocks of width 16" in text
    assert "positions resized from 4x4 to 4x6 patches" in text
    assert "the shared position bias copied into 2 blocks" in text
    assert "new pup decoder of 8 channels on blocks 0, 1, 4 classes" in text


def test_another_segmenter_keeps_its_decoder_for_the_same_classes(
    regions: Path, segmenter: Path, tmp_path: Path
) -> None:
    same, smaller = tmp_path / "same", tmp_path / "smaller"
    settled = {"init": str(segmenter), "reduce_zero_label": True, "steps": 1, "lr": 1e-12}
    segment(segment_config(regions, same, **settled))
    assert "kept upernet decoder" in log(same)
    before, after = weights(segmenter), weights(same)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    learned = [name for name in before if not name.endswith(statistics)]
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in learned)
    segment(segment_config(regions, smaller, **{**settled, "channels": 4}))
    assert "for that of --init differs in channels" in log(smaller)


def test_other_classes_get_a_new_decoder(
    regions: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "classes.csv"
    table.write_text("value,name\n1,tomato\n2,leaf\n3,sky\n")
    config = segment_config(
        regions, tmp_path / "run", init=str(segmenter), reduce_zero_label=True, classes=str(table)
    )
    segment(config, dry_run=True)
    assert "new upernet decoder of 8 channels on blocks 0, 0, 1, 1, 3 classes, for that of --init has other" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "run").exists()


def test_a_classifier_lends_its_encoder(
    regions: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intermediate fine-tuning (paper table 3), and label maps without a class table."""
    classifier = tmp_path / "classifier"
    finetune(finetune_config(colours, classifier, steps=1))
    bare = tmp_path / "bare"
    shutil.copytree(regions, bare, ignore=shutil.ignore_patterns("classes.tsv"))
    config = segment_config(bare, tmp_path / "run", init=str(classifier), auxiliary_weight=0.0)
    segment(config, dry_run=True)
    said = capsys.readouterr().out
    assert "(classifier): 2 blocks" in said and "with label maps of 4 classes" in said
    assert "layers learn at" in said


def test_a_stopped_run_continues_to_the_same_weights(regions: Path, pretrained: Path, tmp_path: Path) -> None:
    """The running statistics of batch norms and of their moving average among them."""
    values = {"init": str(pretrained), "save_every": "1", "ema_decay": 0.9, "drop_path_rate": 0.5}
    values |= {"accumulate": 2, "reduce_zero_label": True}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    segment(segment_config(regions, whole, **values))
    with stopped_in_step(3):
        segment(segment_config(regions, stopped, **values))
    segment(segment_config(regions, stopped, **{**values, "workers": 1}))
    assert same_weights(whole, stopped)
    trained = weights(whole)
    assert any(name.endswith("running_var") for name in trained)
    assert int(trained["decode_head.bottleneck.bn.num_batches_tracked"]) == 8  # four steps of two passes
    figures = [[line.get(name) for name in ("loss", "miou", "eval/miou")] for line in metrics(whole)]
    assert figures == [[line.get(name) for name in ("loss", "miou", "eval/miou")] for line in metrics(stopped)]
    ours, theirs = (json.loads((run / "results.json").read_text())["classes"] for run in (whole, stopped))
    assert ours == theirs


def test_whole_images_are_judged_by_the_papers_decoder(regions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    paper = {"decoder": "pup", "transposed": True, "layers": (1,), "window": "whole", "resize": 32}
    segment(segment_config(regions, run, **paper, steps=1))
    said = read_description(run)
    assert (said["decoder"], said["stride"], said["resize"], said["transposed"]) == ("pup", None, 32, True)
    assert "judged on whole images with 32 px on the shorter side" in log(run)


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_ade20k_as_published(tmp_path: Path) -> None:
    """Read, trained on for a step, with its 150 names; its two images stand in for both splits."""
    sample, root = Path(REAL or "") / "ade20k_sample", tmp_path / "ade20k"
    for part in ("images", "annotations"):
        for split in ("training", "validation"):
            shutil.copytree(sample / part / "validation", root / part / split)
    for image in (root / "images/training").iterdir():
        image.write_bytes(image.read_bytes() + b"\0")  # or nothing would be left to train on
    shutil.copy(sample / "objectInfo150.csv", root)
    run = tmp_path / "run"
    small = {"crop": 64, "patch_size": 16, "width": 16, "depth": 2, "num_heads": 2, "channels": 8}
    short = {
        "steps": 1,
        "warmup_steps": 0,
        "batch_size": 2,
        "workers": 0,
        "resize": 96,
        "precision": "float32",
    }
    segment(configure(SegmentConfig, "base", data=str(root), out=str(run), **{**small, **short}))
    said = read_description(run)
    assert said["reduce_zero_label"] and len(said["classes"]) == 150 and said["classes"][0] == "wall"
    assert 0 <= metrics(run)[-1]["eval/aacc"] <= 1
    out, images = tmp_path / "out", (str(sample / "images"),)
    plain = {"workers": 0, "precision": "float32"}
    config = PredictConfig(images=images, model=str(run), out=str(out), **plain)
    predict(config)
    records = list(predictions(config))
    table = [line.split("\t") for line in (out / "classes.tsv").read_text().splitlines()]
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    names = {int(row["value"]): row["name"] for row in rows if row["value"] != "0"}
    assert names == dict(enumerate(said["classes"], 1)) and names[3] == "sky" and names[150] == "flag"
    assert len(records) == 2
    for record in records:
        file = Path(record["image"]).relative_to(sample / "images").with_suffix(".png")
        numbers = np.array(Image.open(out / "maps" / file)).ravel()
        assert {names[number] for number in numbers.tolist()} == set(record["classes"])


# ------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"crop": (32, 36)}, "--crop 32 36 does not hold whole patches of 8 px; choose --crop 32 32"),
        ({"layers": (0, 0, 0, 0)}, "--layers 0 0 0 0 must end with the last block of the encoder, 1"),
        ({"batch_size": 2, "accumulate": 2}, "--batch-size 2 leaves one image to a pass"),
        ({"transposed": True}, "--transposed is for --decoder pup"),
        ({"window": "whole", "stride": 8}, "--stride is for --window slide"),
        ({"scale": (2.0, 0.5)}, "--scale 2.0 0.5: name the smaller first"),
        ({"scale": (0.5, float("inf"))}, "--scale 0.5 inf: both must be finite and above 0"),
        ({"layers": ()}, "of 2 blocks; give ascending numbers from 0 to 1"),
        ({"layers": (1, 0)}, "--layers 1 0 of 2 blocks; give ascending"),
        ({"layers": (-1, 0, 0, 1)}, "--layers -1 0 0 1 of 2 blocks; give ascending"),
        ({"stride": 40}, "--stride 40 40 is larger than the windows"),
        ({"crop": 0}, "--crop must be positive"),
        ({"patch_size": None}, "name --patch-size"),
        ({"classes": "nowhere.csv"}, "nowhere.csv"),
        ({"reduce_zero_label": False, "classes": "CLASSES"}, "add --reduce-zero-label"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_no_trace(
    values: dict[str, Any], expected: str, regions: Path, tmp_path: Path
) -> None:
    if values.get("classes") == "CLASSES":
        (tmp_path / "classes.csv").write_text("value,name\n1,red\n2,green\n3,blue\n")
        values = {**values, "classes": str(tmp_path / "classes.csv")}
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        segment(segment_config(regions, tmp_path / "run", **{"reduce_zero_label": True, **values}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_crop_that_does_not_fit_the_encoder_is_refused(regions: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--crop 30 30 does not hold whole patches of 8 px; choose --crop 32 32"):
        segment(segment_config(regions, tmp_path / "run", init=str(pretrained), crop=30))


def test_a_wrong_map_shows_before_anything_is_written(regions: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(regions, root)
    for part in ("images", "annotations"):
        for copy in range(34):  # 40, and more than those that are read as a set is opened
            path = next((root / part / "validation").glob("0.*"))
            shutil.copy(path, path.with_stem(f"0-{copy:02d}"))
    Image.fromarray(np.full((5, 5), 1, dtype=np.uint8)).save(root / "annotations/validation/0-11.png")
    with pytest.raises(UserError, match="make the map of the image as it is"):
        segment(segment_config(root, tmp_path / "run", reduce_zero_label=True))
    assert not (tmp_path / "run").exists()


def test_a_damaged_map_is_no_damaged_image(regions: Path, tmp_path: Path) -> None:
    shutil.copytree(regions, tmp_path / "copy")
    damaged = tmp_path / "copy/annotations/training/3.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    segment(segment_config(tmp_path / "copy", tmp_path / "run", reduce_zero_label=True))
    said = log(tmp_path / "run")
    assert f"skipped {damaged}: " in said and "damaged files skipped: 1\n" in said
