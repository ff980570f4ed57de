"""`beit train` and `beit plan`: one command, whose parts are ordinary runs, and end as they would by themselves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image
from run_results import same_weights, stopped_in_step

import beit
from beit.cli.main import main
from beit.config.errors import UserError
from beit.config.files import read_yaml
from beit.config.finetune import FinetuneConfig
from beit.config.use import PlanConfig, TrainConfig
from beit.recipes.train import run as journey_run
from beit.recipes.train.parts import begin, choose_parts, fit_task, imagined_tokenizer
from beit.recipes.train.run import time_left, train
from beit.stages import train as train_stage
from beit.stages.auto.rehearsal import Pace
from beit.stages.session import open_session

pytestmark = pytest.mark.slow

PARTS = ("tokenizer", "pretrain", "classifier", "scratch")


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a step takes a minute; the real rehearsal is not waited for."""
    as_on_it(monkeypatch)


def as_on_it(patch: pytest.MonkeyPatch) -> None:
    """Pre-training leaves time for more steps of the tasks than were planned."""
    time_left = journey_run.time_left
    patch.setattr(train_stage, "measure", lambda *arguments, **options: Pace(60.0, 1.0, 0.0))
    patch.setattr(journey_run, "time_left", lambda *arguments: time_left(*arguments) and 560.0)


def cli(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as leave:
        main([str(word) for word in words])
    return int(leave.value.code or 0)


@pytest.fixture(scope="module")
def journey(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journey of 20 minutes."""
    out = tmp_path_factory.mktemp("journey") / "run"
    with pytest.MonkeyPatch.context() as patch:
        as_on_it(patch)
        train(TrainConfig(data=str(colours), out=str(out), budget="20m", workers=0))
    return out


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def test_the_parts_fit_one_another_and_the_budget(journey: Path) -> None:
    config = read(journey / "config.yaml")
    assert tuple(config["parts"]) == PARTS
    assert all((journey / name / "model/model.json").exists() for name in PARTS)
    steps = {name: read(journey / name / "config.yaml")["steps"] for name in PARTS[1:]}
    assert steps["classifier"] == steps["scratch"] and sum(steps.values()) in range(16, 20)
    assert steps == {name: config["parts"][name]["steps"] for name in steps}
    taught, alone = (beit.load_model(journey / name).encoder.config for name in PARTS[2:])
    assert taught == alone
    assert beit.checkpoints.describe(journey / "classifier")["provenance"]["data"] == config["data"].split()
    results = json.loads((journey / "results.json").read_text())
    assert {"classifier", "scratch", "verdict", "seconds"} <= results.keys()
    assert results["verdict"][0].startswith("classifier: ") and any("scratch" in x for x in results["verdict"])
    assert json.loads((journey / "status.json").read_text())["state"] == "done"
    assert (journey / "report.html").exists()


def test_killed_in_each_part_it_ends_with_the_weights_of_its_configuration(journey: Path, tmp_path: Path) -> None:
    again, file = tmp_path / "again", journey / "config.yaml"
    values = {**read_yaml(file, TrainConfig), "out": str(again)}
    for part in PARTS[1:]:
        with stopped_in_step(2, part):
            train(TrainConfig(**values))
    assert json.loads((again / "status.json").read_text())["state"] != "done"
    assert cli("train", "--config", file, "--out", again) == 0
    assert all(same_weights(journey / name, again / name) for name in PARTS)


@pytest.mark.parametrize(("seconds", "steps"), [(1.0, 2), (500.0, 3), (730.0, 5)])
def test_a_task_takes_what_pretraining_leaves_and_half_of_its_plan_at_least(
    seconds: float, steps: int, journey: Path, colours: Path
) -> None:
    parts = read_yaml(journey / "config.yaml", TrainConfig)["parts"]
    assert parts["classifier"]["steps"] == 4
    config = TrainConfig(data=str(colours), out=str(journey), budget="20m", workers=0)
    fitting = fit_task(begin(config, journey), parts, seconds, (said := list[str]()).append)
    assert {name: values["steps"] for name, values in fitting.items() if name in ("classifier", "scratch")} == {
        "classifier": steps,
        "scratch": steps,
    }
    assert f"{steps} steps instead of the 4 of the plan" in said[0]
    assert {**fitting, "classifier": 0, "scratch": 0} == {**parts, "classifier": 0, "scratch": 0}


@pytest.mark.parametrize(("elapsed", "left"), [(500.0, 664.0), (650.0, None), (740.0, None), (800.0, 364.0)])
def test_steps_stay_as_planned_while_their_time_is_there(elapsed: float, left: float | None, tmp_path: Path) -> None:
    """420 s were planned for both trainings of the task."""
    times = {"tokenizer": 1.0, "pretrain": 700.0, "classifier": 200.0, "scratch": 200.0}
    noted = {"budget": "20m", "times": times}.get
    run: Any = SimpleNamespace(path=tmp_path, elapsed=elapsed, noted=noted)
    assert time_left(run, PARTS, False) == left
    run.noted = {}.get
    assert time_left(run, PARTS, False) is None, "nothing was planned for a budget"


def test_a_stopped_journey_goes_on_with_the_parts_it_chose(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(data=str(colours), out=str(tmp_path / "run"), budget="20m", workers=0)
    with stopped_in_step(2, "pretrain"):
        train(config)

    def refuse(*_: object) -> None:
        raise AssertionError("chosen twice")

    monkeypatch.setattr(journey_run.journeys, "choose_parts", refuse)
    assert "classifier" in train(config).results
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        (tmp_path / "run/results.json").unlink()
        train(TrainConfig(data=str(colours), out=config.out, budget="20m", workers=0, seed=1))


def test_a_journey_stands_for_the_part_that_is_meant(journey: Path, colours: Path, tmp_path: Path) -> None:
    assert beit.checkpoints.describe(journey)["kind"] == "classifier"
    assert beit.load_tokenizer(journey).vocab_size == 64
    config = FinetuneConfig(data=str(colours), init=str(journey), out=str(tmp_path / "run"))
    session = open_session("finetune", config, dry_run=True, overwrite=False)
    assert session is not None and session.config.init == str(journey / "pretrain")
    found = beit.evaluate(beit.EvaluateConfig(model=str(journey), data=str(colours), workers=0)).results
    held_back = (journey / "classifier/held-back.txt").read_text().splitlines()
    assert (found["split"], found["images"] + found["damaged"]) == ("val", len(held_back)) and held_back
    assert cli("report", journey, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert ">Pretrain</h2>" in page and ">Finetune</h2>" in page


def test_images_without_labels_make_an_encoder(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(TrainConfig(data=str(images), out=str(out), budget="4m", workers=0))
    assert sorted(read(out / "config.yaml")["parts"]) == ["pretrain", "tokenizer"]
    assert beit.checkpoints.describe(out)["kind"] == "pretrained"


def test_label_maps_make_a_segmenter(regions: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = TrainConfig(data=str(regions), out=str(out), budget="6m", scratch=False, workers=0)
    train(config)
    assert beit.checkpoints.describe(out)["kind"] == "segmenter"


def test_maps_in_a_folder_apart_for_some_of_the_images(
    regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images without one serve the encoder; 20 % of the others are held back, by every verb the same."""
    photos, maps, out = tmp_path / "photos", tmp_path / "maps", tmp_path / "run"
    shutil.copytree(regions / "images/training", photos / "a")
    maps.mkdir()
    for number in range(10):
        (maps / "a").mkdir(exist_ok=True)
        shutil.copy(regions / f"annotations/training/{number}.png", maps / "a")
    shutil.copy(regions / "classes.tsv", maps)
    shared = {"data": str(photos), "label_maps": str(maps), "reduce_zero_label": True, "workers": 0}
    train(TrainConfig(**shared, out=str(out), budget="6m", scratch=False))
    assert beit.checkpoints.describe(out)["classes"] == ["red", "green", "blue"]
    held_back = {x: {*(out / x / "held-back.txt").read_text().splitlines()} for x in ("pretrain", "segmenter")}
    stems = {Path(name).stem for name in held_back["segmenter"]}
    assert len(stems) == 2 and stems < {*map(str, range(10))} and held_back["segmenter"] <= held_back["pretrain"]
    assert re.search(r"8 of 1\d images with a label map", capsys.readouterr().out)
    found = beit.evaluate(beit.EvaluateConfig(model=str(out), data=str(photos), label_maps=str(maps), workers=0))
    assert found.results["images"] == 2 and "miou" in found.results
    assert cli("check", photos, "--label-maps", maps, "--workers", "0") == 0
    assert "ready for segmentation: " in capsys.readouterr().out
    with pytest.raises(UserError, match="has no map of an image of --data; give both the same name"):
        train(TrainConfig(**{**shared, "data": str(photos / "a")}, out=str(tmp_path / "other"), budget="6m"))


def test_a_plan_says_what_train_would_do_and_writes_nothing(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("plan", colours, "--budget", "20m", "--labels-per-class", "5", "--no-scratch") == 0
    text = capsys.readouterr().out
    command = next(line for line in text.splitlines() if line.startswith("next: beit train"))
    assert "--labels-per-class 5" in command and "--no-scratch" in command and "--budget 20m" in command
    assert "expect: not known" in text and "--init beit_base_patch16_224_pt22k" in text
    assert "classifier" in text and "scratch" not in text.replace("--no-scratch", "")
    assert not any(tmp_path.iterdir())


def test_a_plan_makes_no_tokenizer_and_is_of_the_time_that_is_given(
    journey: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies in the folder: a finished run of 20 minutes there says nothing of a plan for 40."""

    def refuse(*_: object) -> None:
        raise AssertionError("made for a plan")

    monkeypatch.setattr("beit.recipes.tokenizer.run.sample", refuse)
    begun = begin(TrainConfig(data=str(colours), out=str(journey), budget="40m", workers=0), journey)
    monkeypatch.setattr("beit.recipes.train.parts.save_model", lambda *_, **options: None)
    tokenizer, pretraining, classifier, scratch = choose_parts(begun, imagined_tokenizer)
    assert sum(part.config.steps or 0 for part in (pretraining, classifier, scratch)) in range(34, 40)
    assert tokenizer.seconds >= 10 and (journey / "tokenizer/model/model.json").exists()


def test_a_start_is_advised_only_where_it_would_be_taken(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    assert "--init" not in " ".join(begin(PlanConfig(data=str(tmp_path)), tmp_path / "run").words())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels_per_class": 5}, "--labels-per-class is for a classifier"),
        ({"init": "somewhere"}, "leaves nothing to train"),
        ({"budget": "soon"}, "--budget soon is no time"),
        ({"parts": {"painter": {}}}, "'painter' is no part of this journey"),
        ({"parts": {"pretrain": {"stepz": 3}}}, "pretrain has no 'stepz'"),
    ],
)
def test_what_does_not_fit_is_said(values: Any, message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(TrainConfig(**{"data": str(images), "out": str(tmp_path / "run"), **values}))
    assert not (tmp_path / "run").exists()
