"""metrics.jsonl -> curves -> charts: small SVG drawings that follow the page from light to dark.

Titles and legends are left to the page (they stay sharp, selectable and readable on a phone), so no text of the user
enters a drawing. matplotlib is slow to import and is imported only where a chart is drawn, never through pyplot.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.visualize.figures import Figure, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUN_COLORS = ("#2f6fd0", "#d9722b", "#2f9e6e", "#8f5fc7", "#cf4a5e", "#2794a8", "#a38a1f", "#7a7f87")
REFERENCE_STYLES: tuple[tuple[str, Literal["dotted", "dashed", "solid"]], ...] = (
    ("#8b9098", "dotted"),
    ("#8b9098", "dashed"),
    ("#a9adb3", "solid"),
)
NOT_FIGURES = {"step", "epoch", "images", "seconds", "time"}
MAX_POINTS = 300
STEPS = (1, 2, 2.5, 5, 10)
INK, GRID = "#6b7078", "#e3e4e6"
# The drawing is embedded as an image and cannot see the page's style sheet, but it can ask for the colour scheme.
DARK_STYLE = f"""<style>
text {{ font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif !important }}
@media (prefers-color-scheme: dark) {{
  [style*="fill: {INK}"] {{ fill: #a2a6ad !important }}
  [style*="stroke: {GRID}"] {{ stroke: #34373c !important }}
}}
</style>"""


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


class LegendEntry(NamedTuple):
    label: str
    value: str
    color: str
    dash: Literal["solid", "dashed", "dotted"]
    faint: bool


@dataclass(frozen=True)
class Chart:
    figure: Figure
    legend: tuple[LegendEntry, ...]
    svg: str


class _Line(NamedTuple):
    curve: Curve
    entry: LegendEntry
    width: float
    markers: bool = False


def read_curves(path: Path) -> tuple[dict[str, Curve], int]:
    """Every figure of a `metrics.jsonl` by name, and the number of lines that could not be read.

    A last line without its newline is still being written and is not counted. A step that was logged twice, before a
    kill and again after it, counts as it was logged last. Values that are not finite numbers are left out.
    """
    if not path.is_file():
        return {}, 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    points: dict[str, dict[float, float]] = {}
    unreadable = 0
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, TypeError, KeyError):
            unreadable += number < len(lines) - 1
            continue
        for name, value in record.items():
            if name not in NOT_FIGURES and _is_finite(value):
                points.setdefault(name, {})[step] = float(value)
    return {
        name: Curve(np.array(sorted(by_step)), np.array([by_step[step] for step in sorted(by_step)]))
        for name, by_step in points.items()
    }, unreadable


def draw_charts(runs: Mapping[str, Mapping[str, Curve]]) -> list[Chart]:
    """One chart for every figure of any run; training and held-back curves, references and all runs on one axis.

    `runs` maps the name of a run to its curves. Charts come in the order of :data:`.figures.FIGURES`, unknown
    figures after the known results and before those about the process.
    """
    names = dict.fromkeys(name.removeprefix("eval/") for curves in runs.values() for name in curves)
    present = [figure_of(name, names) for name in names]
    references = {reference for figure in present for reference in figure.references}
    figures = [figure for figure in present if figure.name not in references]
    return [_draw(figure, runs) for figure in sorted(figures, key=Figure.order)]


def _draw(figure: Figure, runs: Mapping[str, Mapping[str, Curve]]) -> Chart:
    lines: list[_Line] = []
    legend: list[LegendEntry] = []
    for (name, curves), color in zip(runs.items(), itertools.cycle(RUN_COLORS), strict=False):
        lines_of_run = _run_lines(figure, curves, color, None if len(runs) == 1 else name)
        lines += lines_of_run
        legend += [line.entry for line in reversed(lines_of_run)]
    return Chart(figure, tuple(legend), _svg(lines, figure))


def _run_lines(figure: Figure, curves: Mapping[str, Curve], color: str, run: str | None) -> list[_Line]:
    """The lines of one run: references below, training, held-back above. `run` is None where it is the only one."""
    train, held_back = curves.get(figure.name), curves.get(f"eval/{figure.name}")
    if train is None and held_back is None:
        return []
    prefix = "eval/" if held_back is not None else ""
    references = [
        (figure_of(name), curves.get(prefix + name) or curves[name])
        for name in figure.references
        if prefix + name in curves or name in curves
    ]
    lines = []
    if run is not None:
        # Side by side, only the hardest comparison of each run is drawn, in the colour of that run.
        references = sorted(references, key=lambda pair: pair[1].recent)[:1]
    for (reference, curve), style in zip(references, REFERENCE_STYLES, strict=False):
        label = reference.title
        if run is not None:
            label, style = f"{run}, {label[:1].lower()}{label[1:]}", (color, "dotted")
        entry = LegendEntry(label, reference.format(curve.recent), *style, faint=False)
        lines.append(_Line(curve, entry, 1.2))
    if train is not None:
        faint = held_back is not None
        label = "training" if figure.group == "result" else "lately"
        if run is not None:
            label = f"{run}, training" if faint else run
        entry = LegendEntry(label, figure.format(train.recent), color, "solid", faint)
        lines.append(_Line(train, entry, 1.2 if faint else 1.8))
    if held_back is not None:
        label = "held-back images" if run is None else f"{run}, held-back images"
        entry = LegendEntry(label, figure.format(held_back.last), color, "solid", False)
        lines.append(_Line(held_back, entry, 1.8, markers=len(held_back.steps) <= 30))
    return lines


def _svg(lines: Sequence[_Line], figure: Figure) -> str:
    """Axes and lines as one `<svg>` element, 480 x 250 CSS pixels before scaling."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "beit", "font.size": 9.5, "axes.axisbelow": True}
    with matplotlib.rc_context(settings):
        drawing = Drawing(figsize=(5.0, 2.6), layout="constrained")
        axes = drawing.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(length=0, colors=INK, pad=6)
        axes.yaxis.get_offset_text().set_color(INK)
        values = np.concatenate([_plot(axes, line) for line in lines])
        _scale(axes, values, figure)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        drawing.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head = text.index(">") + 1
    return text[:head] + DARK_STYLE + text[head:]


def _scale(axes: Axes, values: NDArray[np.float64], figure: Figure) -> None:
    """Limits and ticks of the vertical axis, for the smoothed `values`: one wild step must not flatten all others."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

    bottom, top = float(values.min()), float(values.max())
    if figure.log_scale and bottom > 0 and top > 50 * bottom:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return
    if figure.group == "process":
        bottom = min(bottom, 0.0)  # Rates and speeds are read against nothing, not against their own noise.
    margin = 0.06 * (top - bottom) or 0.06 * abs(top) or 0.06
    axes.set_ylim(bottom if bottom == 0 else bottom - margin, top + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    if figure.style == "percent":
        axes.yaxis.set_major_formatter(
            PercentFormatter(1, decimals=1 if top - bottom < 0.05 else 0, symbol="\u00a0%")
        )
    else:
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-3, 6))
        axes.yaxis.set_major_formatter(formatter)


def _plot(axes: Axes, line: _Line) -> NDArray[np.float64]:
    """Draw one line and return the values that the axis must show."""
    curve, color = _thin(line.curve), line.entry.color
    style = {"solid": "-", "dashed": (0, (5, 3)), "dotted": (0, (1.2, 2))}[line.entry.dash]
    smooth = curve if line.markers else _smooth(curve)
    alpha = 0.5 if line.entry.faint else 1.0
    if smooth is not curve and line.entry.dash == "solid":
        axes.plot(*curve, color=color, linewidth=0.7, alpha=0.22)
    marker = "o" if line.markers or len(curve.steps) == 1 else None
    look: Any = {"color": color, "linewidth": line.width, "linestyle": style, "alpha": alpha}
    axes.plot(*smooth, **look, marker=marker, markersize=3.4)
    return smooth.values


def _thin(curve: Curve) -> Curve:
    """At most MAX_POINTS points: means of equal stretches."""
    if len(curve.steps) <= MAX_POINTS:
        return curve
    return Curve(*(np.array([part.mean() for part in np.array_split(axis, MAX_POINTS)]) for axis in curve))


def _smooth(curve: Curve) -> Curve:
    """Centred moving average over a twentieth of a long curve, with a shorter window at its ends."""
    window = len(curve.values) // 20
    if window < 2:
        return curve
    weights = np.ones(window)
    counts = np.convolve(np.ones_like(curve.values), weights, "same")
    return Curve(curve.steps, np.convolve(curve.values, weights, "same") / counts)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
