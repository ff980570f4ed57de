from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from beit.figures import BASELINES, FIGURES
from beit.training.run.record import Curve, read_curves
from beit.visualize.curves import MAX_POINTS, draw_charts


def curve(*values: float) -> Curve:
    return Curve(np.arange(1.0, len(values) + 1), np.array(values))


def test_reads_what_is_there_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_curves(path) == ({}, 0)
    lines = [
        {"step": 1, "epoch": 0.1, "images": 8, "loss": 5.0, "note": "words", "flag": True},
        {"step": 2, "loss": None, "eval/loss": 4.5},
        {"step": 3, "loss": 4.0},
        {"step": 2, "loss": 4.6},
        {"step": 4, "loss": float("nan")},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\nnot json\n[1]\n{"loss": 3}\n{"step": 5, "lo')
    curves, unreadable = read_curves(path)
    assert unreadable == 3, "the half-written last line is no fault"
    assert set(curves) == {"loss", "eval/loss"}
    assert curves["loss"].steps.tolist() == [1, 2, 3]
    assert curves["loss"].values.tolist() == [5.0, 4.6, 4.0]


def test_one_chart_holds_training_held_back_and_baselines() -> None:
    run = {"eval/loss": curve(5, 3.5), "loss": curve(5, 3.25), "brand_new": curve(1, 2), "lr": curve(0, 1e-3)}
    run |= {f"eval/{name}": curve(4.5, 4.5) for name in BASELINES}
    charts = draw_charts({"a": run})
    assert [chart.figure.name for chart in charts] == ["loss", "brand_new", "lr"]
    labels = [entry.label for entry in charts[0].legend]
    assert labels[:2] == ["held-back images", "training"] and len(labels) == 5
    assert [entry.value for entry in charts[0].legend][:2] == ["3.500", "3.250"]
    assert charts[0].figure.title == "Masked-token loss" and charts[1].figure.title == "brand_new"


def test_runs_side_by_side_are_told_apart_by_name_and_colour() -> None:
    hard = {"eval/unigram_loss": curve(5, 5), "eval/copy_neighbour_loss": curve(4, 4)}
    chart = draw_charts({"a": {"eval/loss": curve(5, 3)} | hard, "b": {"eval/loss": curve(5, 2)}})[0]
    assert [entry.label.split(",")[0] for entry in chart.legend] == ["a", "a", "b"]
    assert [entry.value for entry in chart.legend] == ["3.000", "4.000", "2.000"], "the hardest baseline alone"
    assert len({entry.color for entry in chart.legend}) == 2


def test_a_drawing_is_small_safe_xml_and_always_the_same() -> None:
    rng = np.random.default_rng(0)
    long = Curve(np.arange(50_000.0), rng.normal(size=50_000))
    chart = draw_charts({"<script>$x^$": {"loss": long, "grad_norm": curve(1, 1000), "top1": curve(0.5)}})[0]
    assert len(chart.svg) < 60_000
    root = ElementTree.fromstring(chart.svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags.isdisjoint({"script", "image", "a", "foreignObject"}) and "prefers-color-scheme: dark" in chart.svg
    assert chart.svg == draw_charts({"other": {"loss": long}})[0].svg


@pytest.mark.parametrize("values", [[0.0], [1e-9, 1e-9], [3.0] * 50, [-1e30, 1e30], list(range(2 * MAX_POINTS + 1))])
@pytest.mark.parametrize("name", ["loss", "top1", "grad_norm", "lr"])
def test_any_finite_values_can_be_drawn(name: str, values: list[float]) -> None:
    assert draw_charts({"run": {name: curve(*values)}})[0].svg.startswith("<svg")


def test_numbers_are_written_for_people() -> None:
    assert FIGURES["top1"].format(0.8714) == "87.1\u00a0%"
    assert FIGURES["loss"].format(4.79) == "4.790"
    assert FIGURES["loss"].format(-1.5) == "\u22121.500"
    assert FIGURES["lr"].format(1.5e-5) == "1.50e\u22125"
    assert FIGURES["codes_used"].format(8191.6) == "8,192"
