"""Two runs side by side: paired on the images that both were judged on, and honest where they were not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beit.recipes.train.run as journey_run
from beit.config.use import TrainConfig
from beit.presets.trials import RELEASED, seed_spread
from beit.recipes.train.run import TOO_FEW, next_steps, verdict
from beit.training.run.record import RunRecord
from beit.verdicts.comparison import JUDGED, Judged, comparisons, read_judged
from beit.verdicts.rules import MORE_JUDGED


def run(folder: Path, right: Any, *, first: int = 0, **config: Any) -> RunRecord:
    """A run that was judged on images from number `first` on, with these answers."""
    folder.mkdir()
    rows = np.stack([np.asarray(right, dtype=np.int64), np.ones(len(right), dtype=np.int64)], 1)
    images = np.arange(first, first + len(right))
    Judged("top1", images.astype(np.uint64), images, rows).write(folder)
    return RunRecord(name=folder.name, folder=folder, status={"verb": "finetune"}, config=config)


def test_runs_are_compared_on_the_images_of_both(tmp_path: Path) -> None:
    """Of 200 images that the second has, the first has half; on these they differ as they do not on all."""
    numbers = np.arange(200)
    scratch = run(tmp_path / "scratch", numbers[:100] < 70)
    pretrained = run(tmp_path / "pretrained", (numbers < 72) | (numbers > 100))
    [line] = comparisons([scratch, pretrained], seed_spread)
    assert line.startswith("pretrained cannot be told apart from scratch: 72.0 and 70.0 % on the same 100 images")
    assert line.endswith("seeds of this recipe differ: not known.")
    better = run(tmp_path / "better", numbers[:100] < 90)
    [line] = comparisons([scratch, better], seed_spread)
    assert line.startswith("better is better than scratch: 90.0 and 70.0 % on the same 100 images")
    assert "a difference of 20.0 points (95 % interval 1" in line


def test_where_pre_training_does_not_pay_is_said_and_what_would(tmp_path: Path) -> None:
    """Better, worse, not to be told apart from scratch, and not comparable."""
    worse, unsure = "Pre-training does not pay here", "That pre-training pays here is not shown"
    numbers = np.arange(200)
    scratch = run(tmp_path / "scratch", numbers < 140)
    elsewhere = run(tmp_path / "elsewhere", numbers < 140, first=200)
    for place, (right, other, said) in enumerate(
        [(180, scratch, ""), (100, scratch, worse), (141, scratch, unsure), (100, elsewhere, "")]
    ):
        (tmp_path / str(place)).mkdir()
        task = replace(run(tmp_path / str(place) / "classifier", numbers < right), results={"verdict": []})
        lines = verdict({"classifier": task, "scratch": replace(other, name="scratch")})
        assert [line for line in (worse, unsure) if line in " ".join(lines)] == [said] * bool(said), lines


def test_a_journey_ends_with_commands_that_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journey_run, "HF_HUB_OFFLINE", False)
    config = TrainConfig(data="my photos", out="runs/mine", labels_per_class=40, budget="15m")
    good, poor = (
        RunRecord(
            status={"verb": "finetune"}, results={"verdict": [{"mend": mend}], "next": "beit predict --model x"}
        )
        for mend in ("", "more labels")
    )
    assert next_steps(config, good) == ["next: beit predict --model x"]
    assert [line[:9] for line in next_steps(config, good, unsure=True)] == ["next: bei", "or from a", "or 4 time"]
    said = "beit train --data 'my photos' --labels-per-class 40"
    mend, released, longer = next_steps(config, poor)
    assert mend == "to mend first: more labels"
    assert released.endswith(f"{said} --init {RELEASED} --budget 15m --out runs/mine-released")
    assert released.startswith("next, from a released encoder (")
    assert longer == f"or 4 times as long: {said} --budget 60m --out runs/mine-60m"
    [_, longer] = next_steps(replace(config, init="given"), poor)
    assert longer.endswith("--labels-per-class 40 --init given --budget 60m --out runs/mine-60m")
    assert next_steps(replace(config, parts={}), poor) == ["to mend first: more labels"]
    assert next_steps(replace(config, parts={}), good, unsure=True) == ["next: beit predict --model x"]
    monkeypatch.setattr(journey_run, "HF_HUB_OFFLINE", True)
    assert [line[:6] for line in next_steps(config, poor)] == ["to men", "next, "], "what must be fetched is advised"


def test_where_few_images_are_judged_the_commands_hold_more_of_them_back(tmp_path: Path) -> None:
    config = TrainConfig(data="photos", out="runs/mine")
    poor = RunRecord(status={"verb": "finetune"}, results={"verdict": [{"mend": f"{MORE_JUDGED}; a longer run"}]})
    assert all("--holdout 0.5" in line for line in next_steps(config, poor))
    assert "--holdout 0.5" not in next_steps(replace(config, holdout=0.4), poor)[1]
    numbers, of_few = np.arange(12), {"low": 0.1, "high": 0.9, "images": 12, "units": 12}
    scratch, task = run(tmp_path / "scratch", numbers < 8), run(tmp_path / "classifier", numbers < 7)
    task = replace(task, results={"verdict": [], "interval": of_few})
    assert verdict({"classifier": task, "scratch": scratch})[-1].endswith(TOO_FEW)


def test_what_cannot_be_compared_is_said_or_left_out(tmp_path: Path) -> None:
    first = run(tmp_path / "first", [1, 0, 1])
    elsewhere = run(tmp_path / "elsewhere", [1, 1, 0], first=3)
    [line] = comparisons([first, elsewhere], seed_spread)
    assert "were not judged on the same images" in line
    for content in (b"", b"PK\x03\x04 cut off", b"no archive"):
        (elsewhere.folder / JUDGED).write_bytes(content)
        assert read_judged(elsewhere) is None and comparisons([first, elsewhere], seed_spread) == []
    (elsewhere.folder / JUDGED).unlink()
    assert comparisons([first, elsewhere], seed_spread) == [] == comparisons([], seed_spread)


@pytest.mark.parametrize(
    ("verb", "config", "spread"),
    [
        ("segment", {"preset": "camvid", "steps": 1101, "decoder": "upernet"}, 0.002),
        ("segment", {"preset": "camvid", "steps": 1100, "decoder": "upernet"}, None),
        ("finetune", {"preset": "tiny", "steps": 625}, 0.008),
        ("finetune", {"preset": None, "steps": 625}, None),
    ],
)
def test_seeds_differ_by_what_was_tried(verb: str, config: dict[str, Any], spread: float, tmp_path: Path) -> None:
    assert seed_spread(verb, config) == spread
    if spread and verb == "finetune":
        [line] = comparisons([run(tmp_path / name, [1, 0, 1], **config) for name in "ab"], seed_spread)
        assert line.endswith("differ: up to 0.8 points.") and "cannot be told apart" in line
