"""metrics.jsonl read back: the curve of every figure."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = sys.float_info.max
NOT_FIGURES = {"step", "epoch", "images", "seconds", "time"}


class Curve(NamedTuple):
    """Values of one figure at increasing steps; all finite."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def recent(self) -> float:
        """Mean of the last tenth: the last value of a noisy curve says little."""
        return float(self.values[-max(1, len(self.values) // 10) :].mean())


def read_curves(path: Path) -> tuple[dict[str, Curve], int]:
    """Every figure of a `metrics.jsonl` by name, and the number of lines that could not be read.

    A last line without its newline is still being written and is not counted. A step that was logged twice, before a
    kill and again after it, counts as it was logged last. Values that are not finite numbers are left out.
    """
    if not path.is_file():
        return {}, 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    points: dict[str, dict[float, float]] = {}
    unreadable = 0
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            unreadable += 1
            continue
        for name, value in record.items():
            if name not in NOT_FIGURES and type(value) in (int, float) and abs(value) <= LARGEST:
                points.setdefault(name, {})[step] = value
    curves = {name: Curve(*np.array(sorted(of_name.items()), float).T) for name, of_name in points.items()}
    return curves, unreadable
