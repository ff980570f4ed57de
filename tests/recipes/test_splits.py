"""One rule of splits through the verbs: what is held back, what is judged once, and what a start has seen before."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import finetune_config, pretrain_config, probe_config

from beit.config.errors import UserError
from beit.config.use import EvaluateConfig
from beit.recipes.evaluate.run import evaluate
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.probe.run import probe
from beit.stages.session import open_images

RULE = {"holdout": None, "eval_images": 4}


@pytest.fixture(scope="module")
def tested(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours with their val as a test: 60 images to train on, of which 12 are held back, and 22 to judge by."""
    root = tmp_path_factory.mktemp("tested") / "set"
    shutil.copytree(colours / "train", root / "train")
    (root / "train/red/damaged.png").unlink()
    shutil.copytree(colours / "val", root / "Testing")
    return root


@pytest.fixture(scope="module")
def encoder(tested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an encoder trained on pixels of that set."""
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    pretrain(pretrain_config(tested, run, target="pixels", **RULE))
    return run


@pytest.fixture(scope="module")
def classifier(tested: Path, encoder: Path) -> Path:
    """The run of a classifier from that encoder."""
    run = encoder.parent / "finetune"
    finetune(finetune_config(tested, run, init=str(encoder), **RULE))
    return run


def held_back(run: Path) -> list[str]:
    return (run / "held-back.txt").read_text().splitlines()


def judge(model: Path, data: Path, **values: Any) -> dict[str, Any]:
    return evaluate(EvaluateConfig(model=str(model), data=str(data), workers=0, **values))


@pytest.mark.slow
def test_verbs_hold_back_the_same_and_test_is_judged_once(
    tested: Path, encoder: Path, classifier: Path
) -> None:
    assert held_back(encoder) == held_back(classifier) and len(held_back(encoder)) == 12
    assert all(Path(name).is_relative_to(tested / "train") for name in held_back(encoder))
    last = json.loads((classifier / "results.json").read_text())["last"]
    assert last["test/top1"] == pytest.approx(judge(classifier, tested)["top1"], abs=1e-6)
    lines = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test/top1" in line] == [4]
    assert sum("eval/top1" in line for line in lines) == 2
    log = (classifier / "log.txt").read_text()
    assert "was trained on 0 of the 4 val images and 0 of the 22 test images, by their paths" in log
    assert "judged on test, once: step 4" in log


@pytest.mark.slow
def test_evaluate_judges_test_else_val_else_what_the_run_held_back_else_all(
    tested: Path, classifier: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = judge(classifier, tested)
    assert (figures["split"], figures["images"]) == ("test", 21)
    assert (judge(classifier, tested, split="val")["images"]) == 12
    assert (judge(classifier, tested, split="train")["images"]) == 48
    capsys.readouterr()
    figures = judge(classifier, tested, split="all")
    assert (figures["split"], figures["images"]) == ("all", 81)
    assert "the model was trained on 48 of these 82 images" in capsys.readouterr().err
    assert judge(classifier, colours)["split"] == "val"
    figures = judge(classifier, tested / "train")
    assert (figures["split"], figures["images"]) == ("val", 12)
    assert "the model's run held 12 of 60 images back as val" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tested)
    assert (judge(classifier, tmp_path / "link" / "train")["images"]) == 12
    shutil.copytree(tested / "train", tmp_path / "elsewhere")
    assert (judge(classifier, tmp_path / "elsewhere")["split"]) == "all"
    assert "judged on all images: the data have no test and no val" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no test images; choose --split train or --split val"):
        judge(classifier, tmp_path / "elsewhere", split="test")


@pytest.mark.slow
def test_a_probe_chooses_on_val_and_is_judged_on_test(tested: Path, encoder: Path, tmp_path: Path) -> None:
    probe(probe_config(tested, tmp_path / "run", encoder, holdout=None))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["last"]["test/best_layer"] == results["last"]["eval/best_layer"] == results["best_layer"]
    assert judge(tmp_path / "run", tested)["top1"] == pytest.approx(results["last"]["test/top1"], abs=1e-6)
    assert 0 <= results["last"]["test/knn_top1"] <= 1
    with pytest.raises(UserError, match="--holdout 0 leaves no image to choose the layer on"):
        probe(probe_config(tested, tmp_path / "none", encoder, holdout=0.0))


@pytest.mark.slow
def test_a_run_without_val_and_one_with_other_data_for_it(
    tested: Path, colours: Path, tmp_path: Path
) -> None:
    finetune(finetune_config(tested, tmp_path / "none", **RULE | {"holdout": 0.0}))
    results = json.loads((tmp_path / "none/results.json").read_text())
    assert "eval/top1" not in results["last"] and not results["best"] and "test/top1" in results["last"]
    assert held_back(tmp_path / "none") == []
    said = (tmp_path / "none/log.txt").read_text()
    assert "none held back, so that nothing is chosen and no verdict given, 22 (test) once at the end" in said
    other = {**RULE, "eval_data": str(tested / "train" / "blue"), "eval_images": 100}
    pretrain(pretrain_config(colours, tmp_path / "other", target="pixels", **other))
    assert len(held_back(tmp_path / "other")) == 20
    with pytest.raises(UserError, match="--eval-data and --holdout exclude each other"):
        pretrain_config(colours, tmp_path / "other", target="pixels", **other | {"holdout": 0.5})


def test_images_to_judge_on_are_not_trained_on(tested: Path) -> None:
    train = tested / "train"
    for sources in ({"data": (str(train), str(train / "red"))}, {"eval_data": str(train / "red")}):
        config = pretrain_config(train, tested / "none", target="pixels", holdout=None)
        with pytest.raises(UserError, match="both to be trained on and to be judged on, the first being"):
            open_images(dataclasses.replace(config, **sources))
