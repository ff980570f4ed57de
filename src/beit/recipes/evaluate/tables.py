"""The figures of an evaluation, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from beit.figures import FIGURES, figure_of
from beit.training.metrics import short_number
from beit.untrusted import markup

HARDEST = {"iou": 30, "recall": 20, "top1": 10}
"""By which figure classes are hard, and how many are named where there are more."""
COLUMNS = {
    "IoU": "iou",
    "accuracy": "accuracy",
    "share of pixels": "share",
    "images": "images",
    "average precision": "average_precision",
    "precision": "precision",
    "recall": "recall",
    "top-1": "top1",
}
"""Figures of a class, by their headings."""


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`beit.recipes.evaluate.run.evaluate` found."""
    damaged = f"; {figures['damaged']:,} damaged files left out" if figures["damaged"] else ""
    console.print(f"model  {markup(figures['model'])} ({figures['kind']})", soft_wrap=True, highlight=False)
    console.print(f"data   {markup(figures['data'])} ({figures['split']}){damaged}", soft_wrap=True, highlight=False)
    for heading, name in (("shown", "inference"), ("bound", "bound")):
        if name in figures:
            console.print(f"{heading}  {markup(figures[name])}", soft_wrap=True, highlight=False)
    table = Table(box=None, show_header=False)
    for name in sorted(FIGURES.keys() & figures, key=lambda name: figure_of(name, figures).order()):
        figure, value = figure_of(name, figures), figures[name]
        table.add_row(figure.title, f"{value:.2%}" if figure.style == "percent" else short_number(value))
    console.print(table)
    if "classes" in figures:
        _show_classes(figures, console)


def _show_classes(figures: Mapping[str, Any], console: Console) -> None:
    """How each class fares that occurs: all of them where there are few, else the hardest."""
    entries = next(iter(figures["classes"].values()))
    measure = next(name for name in HARDEST if name in entries)
    classes = {name: entry for name, entry in figures["classes"].items() if entry[measure] is not None}
    title, most = None, HARDEST[measure]
    if len(classes) > most:
        title = f"the {most} hardest of {len(classes):,} classes that occur"
        classes = dict(sorted(classes.items(), key=lambda item: item[1][measure])[:most])
    columns = {heading: key for heading, key in COLUMNS.items() if key in entries}
    confusion = figures.get("confusion")
    table = Table("class", box=None, title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="right")
    if confusion:
        table.add_column("most often taken for")
    for name, entry in classes.items():
        mistakes = {answer: n for answer, n in confusion[name].items() if answer != name} if confusion else {}
        mistake = [max(mistakes, key=lambda answer: mistakes[answer], default="")] if confusion else []
        table.add_row(markup(name), *(_cell(entry[key]) for key in columns.values()), *map(markup, mistake))
    console.print(table)


def _cell(value: float | None) -> str:
    """A count, or a share in percent."""
    if value is None:
        return "-"
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
