"""`beit check`: everything that is wrong with a data set, by name, before anything is trained."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from beit.config import CheckConfig, UserError
from beit.recipes.check import check, inspect, show

REAL = os.environ.get("BEIT_REAL_DATA")


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
    steps: list[tuple[int, int]] = []
    report = inspect([str(tmp_path)], workers=workers, on_progress=lambda *at: steps.append(at))
    assert report.train and report.evaluation
    assert report.train.classes == {"cat": 3, "dog": 4} and report.evaluation.classes == {"cat": 1, "dog": 2}
    assert report.train.sizes == {"32 to 63": 6, "224 to 383": 1}
    assert report.broken == [(str(tmp_path / "val/dog/broken [red].png"), "not an image in a known format")]
    names = [[Path(name).name for name in group] for group in report.duplicates]
    assert sorted(names) == [["1.png", "copy.png"], ["2.png", "leak.png"]]
    assert [(Path(a).name, Path(b).name) for a, b in report.leaked] == [("2.png", "leak.png")]
    assert any("extra/ ignored" in note for note in report.notes)
    assert steps[-1] == (10, 10)
    page = io.StringIO()
    show(report, Console(file=page, width=200))
    assert "broken [red].png: not an image" in page.getvalue() and "2.png" in page.getvalue()


def test_runs_from_a_config_and_refuses_what_training_refuses(tmp_path: Path) -> None:
    plant(tmp_path)
    assert check(CheckConfig(data=str(tmp_path), workers=0)).train is not None
    with pytest.raises(UserError, match="no such folder"):
        inspect([str(tmp_path / "nowhere")])


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_the_awkward_folder() -> None:
    report = inspect([f"{REAL}/awkward"])
    assert len(report.broken) == 7 and not report.leaked
    assert all("broken_" in name for name, _ in report.broken)
