"""Curves -> charts: small SVG drawings that follow the page from light to dark.

Titles and legends are left to the page (they stay sharp, selectable and readable on a phone), so no text of the user
enters a drawing. matplotlib is slow to import and is imported only where a chart is drawn, never through pyplot.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from beit.figures import Figure, figure_of
from beit.training.run.record import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUN_COLORS = ("#2f6fd0", "#d9722b", "#2f9e6e", "#8f5fc7", "#cf4a5e", "#2794a8", "#a38a1f", "#7a7f87")
REFERENCE_STYLES = (("#8b9098", "dotted"), ("#8b9098", "dashed"), ("#a9adb3", "solid"))
MAX_POINTS = 300
SMOOTH_POINTS = 40
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


class Line(NamedTuple):
    """A curve as it is drawn, and its entry in the legend."""

    curve: Curve
    label: str
    value: str
    color: str
    dash: str = "solid"
    width: float = 1.8
    faint: bool = False
    dots: bool = False
    """Every value counts for itself: none is smoothed."""


class Chart(NamedTuple):
    figure: Figure
    legend: Sequence[Line]
    svg: str


def draw_charts(runs: Mapping[str, Mapping[str, Curve]]) -> list[Chart]:
    """One chart for every figure of any run; training and held-back curves, references and all runs on one axis.

    `runs` maps the name of a run to its curves. Charts come in the order of :data:`beit.figures.FIGURES`, unknown
    figures after the known results and before those about the process.
    """
    drawn = [name for curves in runs.values() for name in curves if not name.startswith("test/")]
    names = dict.fromkeys(name.removeprefix("eval/") for name in drawn)
    present = [figure_of(name, names) for name in names]
    references = {reference for figure in present for reference in figure.references}
    charts = []
    for figure in sorted((figure for figure in present if figure.name not in references), key=Figure.order):
        legend: list[Line] = []
        for (name, curves), color in zip(runs.items(), itertools.cycle(RUN_COLORS), strict=False):
            legend += reversed(_run_lines(figure, curves, color, f"{name}, " if len(runs) > 1 else ""))
        charts.append(Chart(figure, legend, _svg(legend, figure)))
    return charts


def _run_lines(figure: Figure, curves: Mapping[str, Curve], color: str, run: str) -> list[Line]:
    """The lines of one run: references below, training, held-back above. `run` goes before their labels."""
    train, held_back = curves.get(figure.name), curves.get(f"eval/{figure.name}")
    if train is None and held_back is None:
        return []
    known = {name: (held_back and curves.get(f"eval/{name}")) or curves.get(name) for name in figure.references}
    references = [(figure_of(name), curve) for name, curve in known.items() if curve is not None]
    styles: Sequence[tuple[str, str]] = REFERENCE_STYLES
    if run:
        # Side by side, only the hardest comparison of each run is drawn, in the colour of that run.
        references = sorted(references, key=lambda pair: pair[1].recent)[:1]
        styles = [(color, "dotted")]
    lines = [
        Line(curve, run + reference.title, reference.format(curve.recent), *style, width=1.2)
        for (reference, curve), style in zip(references, styles, strict=False)
    ]
    if train is not None:
        faint = held_back is not None
        label = "training" if figure.group == "result" else "last tenth"
        value, width = figure.format(train.recent), 1.2 if faint else 1.8
        lines.append(Line(train, run + label, value, color, width=width, faint=faint))
    if held_back is not None:
        value, dots = figure.format(held_back.last), len(held_back.steps) <= 30
        lines.append(Line(held_back, f"{run}held-back images", value, color, dots=dots))
    return lines


def _svg(lines: Sequence[Line], figure: Figure) -> str:
    """Axes and lines, the first above the others, as one `<svg>` element, 480 x 250 CSS pixels before scaling."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "beit", "font.size": 9.5, "axes.axisbelow": True}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        drawing = Drawing(figsize=(5.0, 2.6), layout="constrained")
        _plot(drawing.add_subplot(), lines, figure)
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        drawing.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :].replace(">", f">{DARK_STYLE}", 1)


def _plot(axes: "Axes", lines: Sequence[Line], figure: Figure) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(length=0, colors=INK, pad=6)
    axes.set_xlabel("step", color=INK)
    if figure.title != figure.name:  # what a run calls a figure of its own stays out of the drawing
        axes.set_ylabel(figure.title, color=INK)
    dashes = {"solid": "-", "dashed": (0, (5, 3)), "dotted": (0, (1.2, 2))}
    for line in reversed(lines):
        curve = _means(line.curve, MAX_POINTS if line.dots else SMOOTH_POINTS)
        marker = "o" if line.dots or len(curve.steps) == 1 else None
        look: Any = {"color": line.color, "linewidth": line.width, "alpha": 0.5 if line.faint else 1.0}
        axes.plot(*curve, **look, linestyle=dashes[line.dash], marker=marker, markersize=3.4)
    lowest, _ = axes.dataLim.intervaly
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    if figure.group == "process" and lowest >= 0:
        axes.set_ylim(bottom=0)  # Rates and speeds are read against nothing, not against their own noise.
    # The limits are those of the smoothed curves: one wild step must not flatten all others.
    axes.set_ylim(axes.get_ylim())
    for line in lines:
        if line.dash == "solid" and not line.dots:
            axes.plot(*_means(line.curve, MAX_POINTS), color=line.color, linewidth=0.7, alpha=0.22, zorder=1)
    factor, unit = (100, "\u00a0%") if figure.style == "percent" else (1, "")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}{unit}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _means(curve: Curve, most: int) -> Curve:
    """At most so many points: means of equal stretches."""
    if len(curve.steps) <= most:
        return curve
    return Curve(*(np.array([part.mean() for part in np.array_split(axis, most)]) for axis in curve))
