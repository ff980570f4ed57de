"""`beit check`: everything that is wrong with a data set, by name, before anything is trained."""

from __future__ import annotations

import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from beit.config.errors import UserError
from beit.config.run import TrainingConfig
from beit.config.use import CheckConfig
from beit.data.label_maps.pairs import open_pairs
from beit.recipes.check.report import show, verdicts
from beit.recipes.check.run import check, inspect, inspect_maps
from beit.stages.session import open_images
from beit.stages.tasks.labels import open_with_labels

REAL = os.environ.get("BEIT_REAL_DATA")


def config(data: Path, **values: Any) -> CheckConfig:
    return CheckConfig(data=str(data), **{"workers": 0, **values})


def save(path: Path, seed: int, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def plant(root: Path) -> None:
    for i in range(6):
        save(root / "train" / ("cat", "dog")[i % 2] / f"{i}.png", i, side=40 if i else 230)
    save(root / "train" / "dog" / "copy.png", 1)
    save(root / "val" / "cat" / "leak.png", 2)
    save(root / "val" / "dog" / "new.png", 9)
    (root / "val" / "dog" / "broken [red].png").write_bytes(b"<html>")
    save(root / "extra" / "x.png", 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_report(tmp_path: Path, workers: int) -> None:
    plant(tmp_path)
    report = inspect(config(tmp_path, workers=workers))
    assert report.classes == {"cat": {"train": 3, "val": 1}, "dog": {"train": 4, "val": 2}}
    assert report.broken == [(str(tmp_path / "val/dog/broken [red].png"), "not an image in a known format")]
    names = sorted([Path(name).name for name in group] for group in report.duplicates)
    assert names == [["1.png", "copy.png"], ["2.png", "leak.png"]]
    assert [[Path(name).name for name in group] for group in report.across(report.duplicates)] == names[1:]
    assert any("extra/ ignored" in note for note in report.notes)
    page = io.StringIO()
    show(report, Console(file=page, width=200))
    text = page.getvalue()
    assert "broken [red].png: not an image" in text and "leak.png (val, cat)" in text
    assert "shorter sides of 40 to 230 px, half of them up to 40" in text and "cat: 3 train, 1 val" in text


def test_runs_from_a_config_and_refuses_what_training_refuses(tmp_path: Path) -> None:
    plant(tmp_path)
    assert "train" in check(config(tmp_path)).results["splits"]
    with pytest.raises(UserError, match="no such folder"):
        inspect(config(tmp_path / "nowhere"))


def test_what_is_ready_is_followed_by_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path)
    check(config(tmp_path / "train"))
    assert capsys.readouterr().out.endswith(f"\nnext: beit plan --data {tmp_path / 'train'}\n")
    check(config(tmp_path / "train", holdout=0.5, group_by="(.*)"))
    assert capsys.readouterr().out.endswith(f"--data {tmp_path / 'train'} --holdout 0.5 --group-by '(.*)'\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"<html>")
    check(config(tmp_path / "bad", holdout=0.0))
    assert "next:" not in capsys.readouterr().out


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_the_awkward_folder() -> None:
    report = inspect(config(Path(f"{REAL}/awkward")))
    assert len(report.broken) == 7 and not report.across(report.duplicates)
    assert all("broken_" in name for name, _ in report.broken)


@pytest.mark.slow
def test_label_maps_are_counted_and_wrong_ones_named(tmp_path: Path) -> None:
    halves = np.repeat(np.array([[0, 1]], dtype=np.uint8), 20, axis=1).repeat(40, axis=0)
    for split, count in (("training", 70), ("validation", 2)):
        for i in range(count):
            save(tmp_path / f"images/{split}/{i}.png", i)
            path = tmp_path / f"annotations/{split}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(halves + 5 * (split == "validation")).save(path)
    (tmp_path / "classes.tsv").write_text("value\tname\n0\tvoid\n1\t[sky]\n2\ta\n3\tb\n4\tc\n5\tcar\n")
    Image.fromarray(halves[:, :30]).save(tmp_path / "annotations/training/3.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "annotations/training/69.png")
    (tmp_path / "images/validation/0.png").unlink()
    report = inspect(config(tmp_path))
    assert report.maps is not None
    assert report.maps == inspect_maps(config(tmp_path, workers=2))
    assert report.maps.ignores_zero, "0 is called void"
    assert report.maps.pixels == {"train": {"void": 68 * 800, "[sky]": 68 * 800}}
    size, colour, number = report.maps.mistakes
    assert "training/3.png has 30x40 pixels" in size and "training/69.png is a colour picture" in colour
    assert "validation/1.png holds the number 6, but the classes of" in number
    spare = "1 label map without an image ignored, the first being annotations/validation/0.png"
    assert f"{tmp_path}: {spare}" in report.maps.notes
    page = io.StringIO()
    show(report, Console(file=page, width=200))
    text = page.getvalue()
    assert "[sky]" in text and "50.00%" in text
    assert "label maps and classes that segmentation would not take: 3" in text
    assert "not ready for segmentation: mend 3 mistakes" in text.splitlines()[-1]
    (tmp_path / "annotations/training/4.png").unlink()
    report = inspect(config(tmp_path))
    assert report.maps and not report.maps.pixels
    assert "images/training/4.png has no label map" in report.maps.mistakes[0]


@pytest.mark.parametrize(
    ("table", "number", "mistake"),
    [
        ("value,name\n0,a\n1,b\n", 1, None),
        ("value,name\n1,a\n2,b\n", 2, None),
        ("value,name\n1,a\n2,b\n", 3, "holds the number 3, but the classes of"),
        ("value,name\n0,a\n2,b\n", 2, "has no class 1"),
        ("number,name\n0,a\n1,b\n", 1, "must start with a line that names its columns"),
        (None, 1, None),
        (None, 255, "holds 0 and 255 alone"),
    ],
)
def test_what_segmentation_refuses_is_not_called_ready(
    tmp_path: Path, table: str | None, number: int, mistake: str | None
) -> None:
    for i in range(4):
        save(tmp_path / f"images/training/{i}.png", i)
        path = tmp_path / f"annotations/training/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[0, number]], dtype=np.uint8).repeat(40, 0).repeat(20, 1)).save(path)
    if table:
        (tmp_path / "classes.csv").write_text(table)
    report = inspect(config(tmp_path, holdout=0.3))
    page = io.StringIO()
    show(report, Console(file=page, width=200))
    last = page.getvalue().splitlines()[-1]
    assert report.maps is not None and last.startswith("not ready" if mistake else "ready")
    assert all(mistake in line for line in report.maps.mistakes) if mistake else not report.maps.mistakes


@pytest.mark.parametrize("kind", ["a file", "folders", "label maps"])
def test_what_is_ready_is_what_training_takes(kind: str, tmp_path: Path) -> None:
    """Where only some images have labels, those are counted for the verbs that need them, and all for the others."""
    photos = tmp_path / "photos"
    for index in range(20):
        save(photos / ("" if kind == "folders" and index < 6 else "ab"[index % 2]) / f"{index}.png", index)
    save(photos / "b" / "copy.png", 13)
    options: dict[str, Any] = {}
    if kind == "a file":
        rows = [f"{'ab'[index % 2]}/{index}.png,{'xy'[index % 2]}\n" for index in range(9)]
        (tmp_path / "labels.csv").write_text("".join(rows))
        options = {"labels": str(tmp_path / "labels.csv")}
    elif kind == "label maps":
        halves = np.repeat(np.array([[0, 1]], dtype=np.uint8), 20, axis=1).repeat(40, axis=0)
        for index in range(7):
            path = tmp_path / "maps" / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(halves).save(path)
        options = {"label_maps": str(tmp_path / "maps")}
    training = TrainingConfig(data=str(photos), out="", **options)
    if kind == "label maps":
        labeled = open_images(training, partial(open_pairs, label_maps=options["label_maps"]))
    else:
        labeled, _ = open_with_labels(training)
    everything = open_images(training)
    report = inspect(config(photos, **options))
    lines = [line for line in verdicts(report, 0.05) if "alike" not in line]
    for line, images in zip(lines, (everything, labeled), strict=True):
        train, val = len(images.train), len(images.held_back)
        assert f": {train:,} images to train on, {val:,} (val) to evaluate on" in line
        assert ("few images tell little" in line) == (images is labeled), line
    assert (len(everything.train) + len(everything.held_back), lines[1][:9]) == (21, "ready for")
    assert len(labeled.train) + len(labeled.held_back) == {"a file": 9, "folders": 15, "label maps": 7}[kind]
