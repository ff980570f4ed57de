"""`--preset auto` and `--budget` end to end: a run whose length a rehearsal found is that of its config.yaml."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_results import log, metrics, same_weights, stopped_in_step
from tiny_runs import tokenizer_config

from beit.cli.main import main
from beit.config.errors import UserError
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.tokenizer import TokenizerConfig
from beit.presets import auto
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.tokenizer.run import tokenizer
from beit.stages import train as train_stage
from beit.stages.scores.features import FeatureSource
from beit.training.plan import Job, Pace

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "workers": 0,
    "precision": "float32",
    "holdout": 0.2,
    "save_every": "1",
}


def config_of(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return config


def cli(*words: str | Path) -> None:
    with pytest.raises(SystemExit) as leave:
        main([str(word) for word in words])
    assert not leave.value.code


@pytest.fixture
def steps_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a step takes ten seconds, after a rehearsal as it is."""
    measure = train_stage.measure

    def slow(*arguments: Any, **options: Any) -> Pace:
        measure(*arguments, **options)
        return Pace(step=10.0, evaluation=1.0)

    monkeypatch.setattr(train_stage, "measure", slow)


@pytest.mark.usefixtures("steps_in_a_minute")
def test_a_run_of_a_budget_is_that_of_its_configuration(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    run, again, stopped = tmp_path / "run", tmp_path / "again", tmp_path / "stopped"
    typed = {**SMALL, "data": str(images), "tokenizer": str(trained_tokenizer), "depth": 1, "width": 16}

    def config(out: Path) -> PretrainConfig:
        return PretrainConfig(out=str(out), budget="60s", **typed)

    pretrain(config(run))
    stored = config_of(run)
    assert 1 < stored["steps"] <= 5 and stored["preset"] is None and "budget" not in stored
    assert (stored["image_size"], stored["patch_size"]) == (32, 8), "the grid of the tokenizer"
    assert "auto" not in [stored[name] for name in ("precision", "preset")]
    text = log(run)
    assert f"steps {stored['steps']}, evaluations" in text and "of a budget of 60s" in text
    cli("pretrain", "--config", run / "config.yaml", "--out", again)
    assert same_weights(run, again)
    assert "choices" not in log(again)

    with stopped_in_step(2):
        pretrain(config(stopped))
    pretrain(config(stopped))
    assert same_weights(run, stopped)
    with pytest.raises(UserError, match="budget was '60s' and is now left out"):
        pretrain(PretrainConfig(out=str(run), **typed))


@pytest.mark.usefixtures("steps_in_a_minute")
def test_few_steps_are_of_fewer_images_unless_these_are_typed(
    images: Path, trained_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rehearsal finds how few they are, and another what those of so few images take."""
    monkeypatch.setitem(auto.LEAST_BATCH, "pretrain", 2)
    typed = {**SMALL, "data": str(images), "tokenizer": str(trained_tokenizer), "out": str(tmp_path / "run")}
    del typed["batch_size"]
    outcome = pretrain(PretrainConfig(**typed, depth=1, width=16, budget="60s"))
    assert outcome.config.batch_size == 2 and 1 < outcome.config.steps <= 5
    assert re.search(r"batch_size 2: \d+ would leave few steps \(\d\)", text := log(tmp_path / "run"))
    assert text.count(" batch_size") == 1
    as_typed = PretrainConfig(**typed, batch_size=4, budget="60s")
    assert pretrain(as_typed, dry_run=True, overwrite=True).config.batch_size == 4


@pytest.mark.usefixtures("steps_in_a_minute")
def test_the_schedules_of_a_tokenizer_follow_the_steps_of_its_budget(images: Path, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    typed = {**SMALL, "data": str(images), "width": 8, "blocks_per_group": 1, "log_every": 1}
    tokenizer(TokenizerConfig(out=str(run), budget="1m", **typed))
    temperatures = [line["temperature"] for line in metrics(run) if "temperature" in line]
    assert temperatures[0] == 1 and temperatures[-1] < 0.6
    cli("tokenizer", "--config", run / "config.yaml", "--out", again)
    assert same_weights(run, again)


def test_a_budget_is_kept(images: Path, tmp_path: Path) -> None:
    """The real thing, on any machine: what takes long is the rehearsal, not the run. By processor time, also that of
    loaders: on a busy machine the clock tells of what came in between."""
    run, before = tmp_path / "run", sum(os.times()[:4])
    cli("tokenizer", "--data", images, "--out", run, "--budget", "20s", "--width", "8", "--batch-size", "4")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "done" and sum(os.times()[:4]) - before < 40
    assert config_of(run)["steps"] > 1
    assert status["typed"]["budget"] == status["budget"] == "20s"


@pytest.mark.usefixtures("steps_in_a_minute")
def test_a_probe_is_timed_once_its_features_are_there(
    colours: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, again, counts = tmp_path / "run", tmp_path / "again", list[str]()
    compute = FeatureSource.compute

    def counted(self: FeatureSource, *arguments: Any, title: str, **options: Any) -> None:
        counts.append(title)
        compute(self, *arguments, title=title, **options)

    monkeypatch.setattr(FeatureSource, "compute", counted)
    typed = {"data": str(colours), "init": str(pretrained), "workers": 0, "precision": "float32"}
    probe(ProbeConfig(out=str(run), budget="60s", **typed))
    assert 1 < config_of(run)["steps"] <= 5 and counts == ["training", "held-back"]
    cli("probe", "--config", run / "config.yaml", "--out", again)
    assert same_weights(run, again)


def test_a_dry_run_shows_the_choices_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "BUDGET", "4s")
    cli("tokenizer", "--data", images, "--out", tmp_path / "run", "--dry-run", "--width", "8")
    text = capsys.readouterr().out
    assert "8x8 tokens" in text and "are left of 4s; a step takes" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("steps_in_a_minute")
def test_the_time_of_a_run_of_given_steps_is_told_before_it_starts(
    images: Path, trained_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a rehearsal that leaves the weights as they were, at the start and in a dry run."""
    typed = [
        "--data",
        images,
        "--tokenizer",
        trained_tokenizer,
        "--depth",
        "1",
        "--width",
        "16",
        "--batch-size",
        "4",
    ]
    words = ["pretrain", *typed, "--steps", "360", "--evaluations", "6", "--workers", "0"]
    cli(*words, "--out", tmp_path / "run", "--dry-run")
    assert re.search(r"time +about 1 h 0\d min for the whole run", capsys.readouterr().out)
    cli("tokenizer", "--data", images, "--out", tmp_path / "codes", "--dry-run")
    assert "time  " not in capsys.readouterr().out, "k-means has no steps, and takes seconds"


def test_a_step_too_long_to_rehearse_is_told_by_a_few_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = list[int]()

    def timed(job: Job, **options: Any) -> Pace:
        batches.append(job.plan.config.batch_size)
        return Pace(step=60.0)

    monkeypatch.setattr(train_stage, "measure", timed)
    words = [
        "--target",
        "pixels",
        "--batch-size",
        "512",
        "--steps",
        "10",
        "--preset",
        "tiny",
        "--device",
        "cpu",
    ]
    cli("pretrain", "--data", images, "--out", tmp_path / "run", *words, "--dry-run")
    assert batches == [8]
    assert re.search(r"time +about 10 h 4\d min", capsys.readouterr().out)


def test_weights_do_not_hang_on_the_rehearsal(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer(tokenizer_config(images, tmp_path / "with", steps=12))
    assert "time       about" in log(tmp_path / "with")
    monkeypatch.setattr(train_stage, "estimate", lambda *arguments: None)
    tokenizer(tokenizer_config(images, tmp_path / "without", steps=12))
    assert same_weights(tmp_path / "with", tmp_path / "without")
