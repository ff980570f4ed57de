"""What the images that a model was judged on say of it: intervals, the verdict, and what comparisons need."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit.data.base import Source
from beit.data.sources.holdout import named_groups, units_of
from beit.figures import SCORES, figure_of
from beit.metrics.classification import accuracy_by_class
from beit.metrics.intervals import FIGURES, bootstrap, wilson
from beit.stages.overlap import image_hashes
from beit.training.device import Compute
from beit.training.method import Method
from beit.training.run.directory import SAMPLES
from beit.training.run.record import Curve, RunRecord, read_run
from beit.verdicts.comparison import Judged
from beit.verdicts.rules import verdicts
from beit.visualize.drawings import draw_mistakes

COUNTED = ("top1", "knn_top1")
"""Scores that are shares of images."""
MISTAKES = 12
"""Images that are drawn for what is wrong about them, at most."""


class Judgement:
    """What is kept of each image at the last evaluation, or of those that are judged once, by all ranks together."""

    def __init__(self, compute: Compute, group_by: str | None) -> None:
        self._compute, self._group_by = compute, group_by
        self._source: Source | None = None
        self._table: dict[str, Tensor] = {}

    def keep(
        self, source: Source, passes: Iterable[tuple[list[int], Any, dict[str, Tensor]]]
    ) -> Iterator[dict[str, Tensor]]:
        """The sums of the passes over `source`, without what they have of each image."""
        self._source, self._table = source, {"whole": torch.zeros(len(source), dtype=torch.bool)}
        for numbers, _, sums in passes:
            self._table["whole"][numbers] = True
            if (each := sums.pop("each", None)) is not None:
                empty = torch.zeros(len(source), each.shape[1], dtype=torch.int64)
                self._table.setdefault("each", empty)[numbers] = each.long().cpu()
            yield sums

    def interval(
        self, score: str, figures: Mapping[str, Any], images: int | None = None
    ) -> tuple[Judged | None, dict[str, Any] | None]:
        """What is kept of the images, and the interval of `score` on them, or on so many `images`: by Wilson of a
        share of images that stand for themselves, by the bootstrap of other scores; None where there is none."""
        self._table = table = self._compute.sums(self._table)
        judged = None
        if self._source is not None and "each" in table:
            keys = [self._source.key(index) for index in range(len(self._source))]
            groups = named_groups(keys, self._group_by) if self._group_by else ()
            columns = image_hashes(self._source), units_of(len(keys), groups), table["each"].long()
            whole = table["whole"].bool().numpy()
            judged = Judged(score, *(np.asarray(column)[whole] for column in columns))
        count = int(table["whole"].sum()) if images is None and table else images
        name = next((name for name in (f"test/{score}", f"eval/{score}", score) if name in figures), "")
        value = figures.get(name, math.nan)
        if not count or value is None or not math.isfinite(value) or not (judged or score in COUNTED):
            return judged, None
        units = len({*judged.unit.tolist()}) if judged else count
        if judged is None or (score in COUNTED and units == count):
            low, high = wilson(round(value * count), count)
        else:
            low, high = bootstrap(FIGURES[score], judged.rows, units=judged.unit)
        return judged, {"figure": name, "low": low, "high": high, "images": count, "units": units}

    def verdict(self, run: Path, method: Method, results: Mapping[str, Any]) -> dict[str, Any]:
        """`verdict`, `interval` and `next` of results.json, and how the classes of a classifier fare; the images that
        were judged are kept in the run, and the worst of them drawn."""
        score, next_command = method.evaluation.monitor, method.notes.next_command
        judged, interval = self.interval(score, results["last"], results.get("knn_images"))

        def conclude() -> dict[str, Any]:
            record, found = read_run(run), {"interval": interval, "next": next_command}
            if judged is not None:
                judged.write(run)
                names = [*map(str, record.classes)]
                if score == "top1":
                    truth, answer = torch.from_numpy(judged.rows[:, 2:4]).unbind(1)
                    found |= accuracy_by_class(truth, answer, names)
                self._draw(mistakes(judged, names), run / SAMPLES, results["steps"])
            said = verdicts(replace(record, status={}, results={**results, **found}))
            return {**found, "verdict": [verdict._asdict() for verdict in said]}

        return self._compute.from_main(conclude)

    def _draw(self, worst: Sequence[tuple[int, str]], folder: Path, step: int) -> None:
        """The images that fare worst, of those that could be read, with how."""
        numbers = self._table["whole"].nonzero().flatten().tolist()
        if worst and self._source is not None:
            draw_mistakes([(self._source.image(numbers[row]), text) for row, text in worst], folder, step)

    def of_figures(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """`verdict` and `interval` of the figures of an evaluation, as if a run had come to them on a `split`."""
        score = next((name for name in SCORES if name in figures), "")
        split = {"val": "held-back", "train": "training"}.get(figures["split"], figures["split"])
        results = {**figures, "split": split, "interval": self.interval(score, figures)[1]}
        numbers = {name: np.full(1, value) for name, value in figures.items() if isinstance(value, float)}
        curves = {f"eval/{name}": Curve(np.zeros(1), value) for name, value in numbers.items()}
        said = verdicts(RunRecord(curves=curves, results=results))
        return {"verdict": [verdict._asdict() for verdict in said], "interval": results["interval"]}


def mistakes(judged: Judged, names: Sequence[str]) -> list[tuple[int, str]]:
    """The images that fare worst, by their rows, and how: of those that a classifier is wrong about, the ones that it
    is surest of."""
    rows, figure = judged.rows, FIGURES[judged.score]
    scores = np.array([figure(row) for row in rows])
    sureness = rows[:, 4] if judged.score == "top1" else np.zeros(len(rows))
    worst = [row for row in np.lexsort((-sureness, scores))[:MISTAKES].tolist() if scores[row] < 1]
    if judged.score == "top1":
        answers = ((row, rows[row, 2:].tolist()) for row in worst)
        return [(row, f"{names[a]} {share / 1e4:.0f} %, is {names[t]}") for row, (t, a, share) in answers]
    return [(row, f"{figure_of(judged.score).phrase(scores[row])}") for row in worst]
