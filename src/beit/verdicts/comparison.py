"""Two runs on the same held-back images: which is better, and whether by more than chance."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from beit.atomic import replace_file
from beit.config.values import counted
from beit.metrics.intervals import FIGURES, bootstrap
from beit.training.run.record import RunRecord, distinct_names

JUDGED = "judged.npz"


class Judged(NamedTuple):
    """What is kept of the images that a model was judged on, last of all."""

    score: str
    """One of :data:`beit.metrics.intervals.FIGURES`."""
    image: NDArray[np.uint64]
    """A number (N,) for each image, the same in every run."""
    unit: NDArray[np.int64]
    """A number for what it belongs to by --group-by."""
    rows: NDArray[np.int64]
    """(N, K): see there."""

    def write(self, run: Path) -> None:
        """Keep it in `run`."""
        replace_file(run / JUDGED, lambda draft: np.savez_compressed(draft, **self._asdict()))


def read_judged(run: RunRecord) -> Judged | None:
    """What a run has kept; None where it has nothing, or nothing that can be read."""
    try:
        with np.load(BytesIO((run.folder / JUDGED).read_bytes()), allow_pickle=False) as file:
            judged = Judged(str(file["score"]), *(file[name] for name in Judged._fields[1:]))
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return None
    return judged if judged.score in FIGURES and len({*map(len, judged[1:])}) == 1 else None


def comparisons(runs: Sequence[RunRecord], spread: Callable[[str, Mapping[str, Any]], float | None]) -> list[str]:
    """The best of the runs of each verb beside each other of them, in words. `spread` says of a verb and a
    configuration by how much seeds of that recipe differ in their score; None where nobody knows."""
    kept = [(run, name, read_judged(run)) for run, name in zip(runs, distinct_names(runs), strict=True)]
    lines = []
    for verb in dict.fromkeys(run.verb for run in runs):
        rivals = [(run, name, judged) for run, name, judged in kept if judged and run.verb == verb]
        rivals.sort(key=lambda rival: FIGURES[rival[2].score](rival[2].rows.sum(0)), reverse=True)
        for run, name, judged in rivals[1:]:
            best, best_name, best_judged = rivals[0]
            points = [spread(verb, one.config) for one in (best, run)]
            seeds = "not known" if None in points else f"up to {100 * max(filter(None, points)):.1f} points"
            line = _compare(best_name, best_judged, name, judged)
            lines.append(f"{line}. One run each; how much seeds of this recipe differ: {seeds}.")
    return lines


def _compare(name: str, first: Judged, other_name: str, second: Judged) -> str:
    """`first` less `second` on the images of both."""
    images, rows, other_rows = np.intersect1d(first.image, second.image, return_indices=True)
    if first.score != second.score or not len(images):
        return f"{name} and {other_name} were not judged on the same images"
    figure, a, b = FIGURES[first.score], first.rows[rows], second.rows[other_rows]
    one, other = (round(100 * figure(table.sum(0)), 1) for table in (a, b))  # and what is read is their difference
    low, high = bootstrap(lambda one, other: figure(one) - figure(other), a, b, units=first.unit[rows])
    effect = "is better than" if low > 0 else "is worse than" if high < 0 else "cannot be told apart from"
    same = f"the same {counted(len(images), 'image')}"
    return (
        f"{name} {effect} {other_name}: {one:.1f} and {other:.1f} % on {same}, "
        f"a difference of {one - other:.1f} points (95 % interval {100 * low:z.1f} to {100 * high:z.1f})"
    )
