"""How runs end: the verdict in words, its interval, the yardsticks beside it, and what comparisons are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_results import log, metrics, stopped_in_step
from tiny_runs import finetune_config

import beit
from beit.config.use import EvaluateConfig, ReportConfig
from beit.data.label_file import Labels
from beit.data.label_maps.pairs import open_pairs
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import Subset
from beit.data.views.geometry import center_view
from beit.metrics.intervals import wilson
from beit.recipes.evaluate.run import evaluate
from beit.recipes.finetune import finetune
from beit.recipes.report import report
from beit.stages import announcement
from beit.stages.judgement import mistakes
from beit.stages.scores.yardsticks import beside_classifier, beside_segmenter
from beit.stages.session import Images
from beit.training.run.record import read_run
from beit.training.signals import StopSignals
from beit.verdicts.comparison import Judged, read_judged

pytestmark = pytest.mark.slow

PLAIN: dict[str, Any] = {"eval_images": 100, "mixup": 0, "cutmix": 0}


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three colours that has learned next to nothing, its images in groups of ten."""
    out = tmp_path_factory.mktemp("judged") / "run"
    with stopped_in_step(3):
        finetune(finetune_config(colours, out, group_by=r"val/(\w+/\d)", **PLAIN))
    finetune(finetune_config(colours, out, group_by=r"val/(\w+/\d)", **PLAIN))
    return out


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def test_what_is_kept_of_each_image_is_what_the_model_says(run: Path, colours: Path) -> None:
    source = open_splits([str(colours)], holdout=Holdout(0.2), labeled=True)["val"]
    whole = [index for index in range(len(source)) if "damaged" not in source.name(index)]
    images = torch.stack([center_view(source.image(index), (32, 32)) for index in whole])
    right = beit.load_model(run)(images).argmax(1) == torch.tensor([source.label(index) for index in whole])
    judged = read_judged(read_run(run))
    assert judged is not None and judged.score == "top1"
    assert judged.rows[:, 0].tolist() == right.tolist() and judged.rows[:, 1].tolist() == [1] * 21
    answers = beit.load_model(run)(images).softmax(1)
    assert judged.rows[:, 3].tolist() == answers.argmax(1).tolist()
    assert judged.rows[:, 4] / 1e6 == pytest.approx(answers.amax(1).detach().numpy(), abs=1e-2)
    confusion = results(run)["confusion"]
    assert sum(confusion[name].get(name, 0) for name in confusion) == right.sum()
    assert {name: entry["images"] for name, entry in results(run)["classes"].items()} == dict.fromkeys(confusion, 7)
    assert [path.stem for path in (run / "samples").glob("*mistakes*")] == ["step-000004-mistakes"]
    interval = results(run)["interval"]
    # Seven images of a colour are one group: 00 to 06.
    assert (interval["figure"], interval["images"], interval["units"]) == ("eval/top1", 21, 3)
    assert 0 <= interval["low"] <= right.double().mean() <= interval["high"] <= 1


def test_the_surest_mistakes_and_the_worst_maps_come_first() -> None:
    rows = np.array([[1, 1, 0, 0, 990_000], [0, 1, 0, 1, 400_000], [0, 1, 1, 0, 900_000]])
    judged = Judged("top1", np.arange(3, dtype=np.uint64), np.arange(3), rows)
    assert mistakes(judged, ["cat", "dog"]) == [(2, "cat 90 %, is dog"), (1, "dog 40 %, is cat")]
    rows = np.array([[5, 4, 6, 4, 5, 5], [1, 2, 6, 4, 9, 1]])  # of two classes: both, true, predicted
    judged = Judged("miou", np.arange(2, dtype=np.uint64), np.arange(2), rows)
    words = "mean intersection over union"  # (1/14 + 2/3) / 2 and (5/6 + 4/5) / 2
    assert mistakes(judged, ["road", "sky"]) == [(1, f"{words} 36.9 %"), (0, f"{words} 81.7 %")]
    rows = np.array([[1, 1, 2], [2, 2, 2], [0, 1, 1]])  # of several classes: both, named, true
    judged = Judged("f1", np.arange(3, dtype=np.uint64), np.arange(3), rows)
    assert [row for row, _ in mistakes(judged, ["a", "b"])] == [2, 0]


def test_a_run_has_its_page_while_it_goes_on(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement, "PAGE_EVERY", 0.0)
    with stopped_in_step(4):
        finetune(finetune_config(colours, tmp_path / "run", evaluations=3, **PLAIN))
    page = tmp_path / "run" / "report.html"
    assert "Still running" in page.read_text()
    finetune(finetune_config(colours, tmp_path / "run", evaluations=3, **PLAIN))
    assert "Still running" not in page.read_text()
    assert f"open {page} in a browser" in log(tmp_path / "run")


def test_the_run_ends_with_its_verdict(run: Path) -> None:
    """Also of a run that was stopped; the yardsticks are measured once."""
    last = results(run)["last"]
    assert last["eval/histogram_top1"] == 1 and last["eval/commonest_top1"] == pytest.approx(1 / 3)
    assert sum("eval/histogram_top1" in record for record in metrics(run)) == 1
    [verdict, *_] = results(run)["verdict"]
    assert "of 21 held-back images are named right (95 % interval" in verdict["text"]
    assert (
        "over 3 groups" in verdict["text"] and "a linear classifier of colour histograms 100.0 %" in verdict["text"]
    )
    text = log(run)
    assert (
        verdict["text"] in text
        and "few images tell little (for example 15 of 22 right would stand for" in text.partition("\n")[0]
    )
    assert verdict["mend"] and f"to mend first: {verdict['mend']}" in text and "next: beit predict" not in text


def test_evaluate_and_report_say_it_too(
    run: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate(EvaluateConfig(model=str(run), data=str(colours), workers=0, precision="float32")).results
    low, high = wilson(round(21 * figures["top1"]), 21)
    assert figures["interval"] == {"figure": "top1", "low": low, "high": high, "images": 21, "units": 21}
    assert f"of 21 held-back images are named right (95 % interval {100 * low:.1f} %" in capsys.readouterr().out
    other = tmp_path / "other"
    finetune(finetune_config(colours, other, seed=1, **PLAIN))
    capsys.readouterr()
    page = report(ReportConfig(runs=(str(run), str(other)), out=str(tmp_path / "page.html"))).results["page"]
    line = capsys.readouterr().out.partition("\n")[0]
    assert "on the same 21 images" in line and "seeds of this recipe differ: not known" in line
    assert line in page.read_text().replace("\u00a0", " ")


def test_the_commonest_class_of_each_place_is_named(regions: Path) -> None:
    """Against an answer that is computed pixel by pixel."""
    splits = open_pairs([str(regions)], holdout=Holdout(0.2), reduce_zero_label=True)
    images = Images(splits["train"], splits["val"])
    measure = beside_segmenter(images)
    assert measure is not None
    miou = measure(None, "float32", StopSignals())["eval/place_miou"]

    def at(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        rows, columns = (
            ((2 * np.arange(side) + 1) * old // (2 * side)) for side, old in zip(size, label_map.shape, strict=True)
        )
        return label_map[rows][:, columns]

    maps = [at(splits["train"].label(index).numpy(), (48, 48)) for index in range(16)]
    counts = np.stack([np.sum([label_map == kind for label_map in maps], 0) for kind in range(3)])
    both, union = np.zeros(3), np.zeros(3)
    for index in range(6):
        truth = splits["val"].label(index).numpy()
        answer = np.where(truth < 3, at(counts.argmax(0), truth.shape), 255)
        for kind in range(3):
            both[kind] += ((truth == kind) & (answer == kind)).sum()
            union[kind] += ((truth == kind) | (answer == kind)).sum()
    assert miou == pytest.approx((both / union).mean())


def test_nothing_stands_beside_what_is_not_judged(colours: Path) -> None:
    source = open_splits([str(colours)], holdout=Holdout(0.2), labeled=True)["train"]
    assert beside_classifier(Images(source, Subset(source, [])), Labels(("blue", "green", "red"))) is None
