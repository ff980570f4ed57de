"""What pre-training says of its features on the way: against the model it leaves, with labels and without."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import as_two_ranks
from run_results import log, metrics, same_weights, stopped_in_step
from tiny_runs import pretrain_config

import beit
from beit.config.errors import Interrupted
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.data.views.geometry import center_view
from beit.metrics.neighbours import effective_rank, knn_accuracy
from beit.recipes.pretrain import pretrain
from beit.stages.scores.features import FeatureSource

pytestmark = pytest.mark.slow

PIXELS: dict[str, Any] = {"target": "pixels", "eval_images": 100}


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-training on images that lie in class folders."""
    out = tmp_path_factory.mktemp("monitored") / "run"
    pretrain(pretrain_config(colours, out, **PIXELS))
    return out


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def features(run: Path, colours: Path, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the run's model/ makes of the whole images of a split, (images, blocks, F), and their classes."""
    source = open_splits([str(colours)], holdout=Holdout(0.2), labeled=True)[split]
    whole = [index for index in range(len(source)) if "damaged" not in source.name(index)]
    images = torch.stack([center_view(source.image(index), (32, 32)) for index in whole])
    with torch.no_grad():
        states = beit.load_encoder(run).states(images, [0, 1])
    pooled = torch.stack([state[:, 1:].mean(dim=1) for state in states], dim=1)
    return pooled, torch.tensor([source.label(index) for index in whole])


def test_the_figures_are_those_of_the_model_that_is_left(run: Path, colours: Path) -> None:
    (bank, labels), (queries, answers) = (features(run, colours, split) for split in ("train", "val"))
    last = results(run)["last"]
    blocks = [knn_accuracy(bank[:, i], labels, queries[:, i], answers, num_classes=3) for i in (0, 1)]
    assert (len(bank), len(queries)) == (60, 21) and max(blocks) > 1 / 3
    assert last["eval/knn_top1"] == pytest.approx(max(blocks))
    assert last["eval/knn_last_block"] == pytest.approx(blocks[1])
    assert last["eval/knn_best_block"] == blocks.index(max(blocks))
    assert last["eval/knn_chance"] == pytest.approx(1 / 3)
    assert last["eval/effective_rank"] == pytest.approx(effective_rank(bank[:, 1]), rel=1e-4)
    assert last["eval/effective_rank_ceiling"] == 16


def test_the_untrained_network_stands_beside_and_the_best_is_kept(run: Path) -> None:
    first, *others = metrics(run)
    assert first["step"] == 0 and results(run)["first"].items() <= first.items()
    evaluations = [record for record in others if "eval/knn_top1" in record]
    assert [record["step"] for record in evaluations] == [2, 4]
    best = max(evaluations, key=lambda record: record["eval/knn_top1"])  # the earlier of equals
    said = results(run)["best"]
    assert (said["step"], said["monitor"]) == (best["step"], "eval/knn_top1")
    assert said["remark"] == "chosen on these images"
    assert json.loads((run / "model-best/model.json").read_text())["provenance"]["step"] == best["step"]
    assert isinstance(beit.load_model(run / "model-best"), beit.MaskedImageModel)
    text = log(run)
    assert "names 22 held-back ones by k-NN, after the nearest of 61 training images" in text  # two are damaged
    before = 100 * first["eval/knn_top1"]
    assert f"of 21 held-back images right, {before:.1f} % before the first step; guessing would get 33.3 %" in text
    interval = results(run)["interval"]
    assert (interval["figure"], interval["images"]) == ("eval/knn_top1", 21)


def test_stopped_anywhere_it_ends_the_same(run: Path, colours: Path, tmp_path: Path) -> None:
    for step in (1, 3):
        with stopped_in_step(step):
            pretrain(pretrain_config(colours, tmp_path / "run", **PIXELS))
    pretrain(pretrain_config(colours, tmp_path / "run", **PIXELS))
    assert same_weights(run, tmp_path / "run") and same_weights(run / "model-best", tmp_path / "run/model-best")
    ours, theirs = results(tmp_path / "run"), results(run)
    assert (ours["first"], ours["best"]) == (theirs["first"], theirs["best"])


def test_without_labels_there_is_the_rank_alone(images: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(images, tmp_path / "run", **PIXELS))
    last = results(tmp_path / "run")["last"]
    assert 1 <= last["eval/effective_rank"] <= last["eval/effective_rank_ceiling"] == 16
    assert not any("knn" in name for name in last)
    assert results(tmp_path / "run")["best"]["monitor"] == "eval/loss"
    assert not (tmp_path / "run" / "model-best").exists()
    assert "k-NN needs held-back images, each of one class by its folder or --labels" in log(tmp_path / "run")


def test_images_of_several_classes_or_none_held_back_leave_the_rank(colours: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("".join(f"train/{kind}/{i:02}.png,{kind};x\n" for kind in ("red", "blue") for i in range(9)))
    several, alone = tmp_path / "several", tmp_path / "alone"
    pretrain(pretrain_config(colours / "train", alone, holdout=0.0, **PIXELS))
    pretrain(pretrain_config(colours, several, labels=str(file), **PIXELS))
    for run in (several, alone):
        assert "k-NN needs held-back images" in log(run) and "model-best" not in log(run)
        assert "eval/effective_rank" in results(run)["last"] and "eval/knn_top1" not in results(run)["last"]


def test_labels_from_a_file_change_no_weights(images: Path, tmp_path: Path) -> None:
    file, names = tmp_path / "labels.csv", sorted(path.name for path in images.iterdir())
    file.write_text("".join(f"{name},{'ab'[index % 2]}\n" for index, name in enumerate(names)))
    pretrain(pretrain_config(images, tmp_path / "without", **PIXELS))
    pretrain(pretrain_config(images, tmp_path / "with", labels=str(file), **PIXELS))
    assert results(tmp_path / "with")["last"]["eval/knn_chance"] == 0.5
    assert f"labels ({file}) are used for that alone" in log(tmp_path / "with")
    assert same_weights(tmp_path / "without", tmp_path / "with")


@pytest.mark.parametrize(
    "call", [1, 3]
)  # of the passes over bank and held-back images: before the first step, after 2
def test_asked_to_stop_while_it_is_measured(
    call: int, run: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, compute = iter(range(1, 100)), FeatureSource.compute

    def interrupted(self: FeatureSource, *values: Any, **named: Any) -> None:
        if next(passes) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        compute(self, *values, **named)

    monkeypatch.setattr(FeatureSource, "compute", interrupted)
    with pytest.raises(Interrupted, match=f"at step {call - 1} of 4"):
        pretrain(pretrain_config(colours, tmp_path / "run", **PIXELS))
    assert next(passes) == call + 1, "the measurement was left at once"
    pretrain(pretrain_config(colours, tmp_path / "run", **PIXELS))
    assert same_weights(run, tmp_path / "run") and results(run)["best"] == results(tmp_path / "run")["best"]


def test_two_ranks_measure_what_one_measures(colours: Path, tmp_path: Path) -> None:
    """Also of an encoder that sees the visible patches alone in training: here it is shown them all."""
    one, two = tmp_path / "one", tmp_path / "two"
    values = {**PIXELS, "encoder_sees": "visible", "masking": "random", "num_masked": 12, "steps": 2}
    pretrain(pretrain_config(colours, one, **values))
    as_two_ranks(pretrain, pretrain_config(colours, two, **values))
    first, second = (results(run)["first"] for run in (one, two))
    assert second == pytest.approx(first, rel=1e-5) and first["eval/knn_chance"] == pytest.approx(1 / 3)
    skipped = [{line for line in log(folder).splitlines() if line.startswith("skipped ")} for folder in (one, two)]
    assert skipped[1] == skipped[0] and skipped[0], "what the other rank alone has met is logged as well"
