"""The figures of an evaluation, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from beit.training.metrics import short_number
from beit.visualize.figures import FIGURES, figure_of

FEW_CLASSES = 12
"""Classes that fit into a confusion matrix on a terminal."""
MANY = 30
"""Regions' classes that are all named."""
WORST = 10
"""Classes that are named where there are more."""


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`beit.recipes.evaluate.run.evaluate` found."""
    damaged = f"; {figures['damaged']:,} damaged files left out" if figures["damaged"] else ""
    console.print(f"model  {escape(figures['model'])} ({figures['kind']})", soft_wrap=True, highlight=False)
    console.print(f"data   {escape(figures['data'])}{damaged}", soft_wrap=True, highlight=False)
    if "inference" in figures:
        console.print(f"shown  {escape(figures['inference'])}", soft_wrap=True, highlight=False)
    table = Table(box=None, show_header=False)
    for name in sorted(FIGURES.keys() & figures, key=lambda name: figure_of(name, figures).order()):
        figure, value = figure_of(name, figures), figures[name]
        table.add_row(figure.title, f"{value:.2%}" if figure.style == "percent" else short_number(value))
    console.print(table)
    if figures["kind"] == "segmenter":
        _regions(figures, console)
    elif "confusion" in figures:
        names = list(figures["classes"])
        (_matrix if len(names) <= FEW_CLASSES else _hardest)(figures, names, console)
    elif "classes" in figures:
        _multilabel(figures["classes"], console)


def _matrix(figures: Mapping[str, Any], names: list[str], console: Console) -> None:
    """A row for each class, a column for each answer."""
    console.print(
        "classes by row, answers by column", style="italic"
    )  # a title would be as narrow as the table
    # Numbers are short; the rows have the names.
    table = _table("class", *map(str, range(len(names))), "top-1")
    for number, name in enumerate(names):
        row = figures["confusion"][name]
        cells = [f"{row[answer]:,}" if answer in row else "." for answer in names]
        table.add_row(escape(f"{number} {name}"), *cells, _share(figures["classes"][name]["top1"]))
    console.print(table)


def _hardest(figures: Mapping[str, Any], names: list[str], console: Console) -> None:
    """The classes that are told apart least, and what they are taken for."""
    classes = {name: entry for name, entry in figures["classes"].items() if entry["images"]}
    table = _table("class", "images", "top-1", "most often taken for")
    table.title = f"the {WORST} hardest of {len(names):,} classes"
    for name in sorted(classes, key=lambda name: float(classes[name]["top1"]))[:WORST]:
        entry = classes[name]
        table.add_row(escape(name), f"{entry['images']:,}", _share(entry["top1"]), _mistake(figures, name))
    console.print(table)


def _regions(figures: Mapping[str, Any], console: Console) -> None:
    """How well the region of each class is found, and what its other pixels are taken for most often."""
    classes = {name: entry for name, entry in figures["classes"].items() if entry["iou"] is not None}
    table = _table("class", "IoU", "accuracy", "share of pixels", "most often taken for")
    names = list(classes)
    if len(names) > MANY:
        table.title = f"the {MANY} hardest of {len(names):,} classes that occur"
        names = sorted(names, key=lambda name: float(classes[name]["iou"]))[:MANY]
    for name in names:
        shares = (_share(classes[name][key]) for key in ("iou", "accuracy", "share"))
        table.add_row(escape(name), *shares, _mistake(figures, name))
    console.print(table)


def _multilabel(classes: Mapping[str, Any], console: Console) -> None:
    """How well each class is found where an image may have several: the least found first."""
    table = Table("class", "images", "average precision", "precision", "recall", box=None)
    for name in sorted(classes, key=lambda name: classes[name]["recall"] or 0.0)[: 2 * WORST]:
        entry = classes[name]
        shares = (_share(entry[key]) for key in ("average_precision", "precision", "recall"))
        table.add_row(escape(name), f"{entry['images']:,}", *shares)
    console.print(table)


def _table(*headings: str) -> Table:
    """Columns of figures between names."""
    table = Table(box=None, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("class", "most often taken for") else "right")
    return table


def _mistake(figures: Mapping[str, Any], name: str) -> str:
    """What a class is taken for most often, where it is not recognised."""
    answers = {answer: n for answer, n in figures["confusion"][name].items() if answer != name}
    return escape(max(answers, key=lambda answer: answers[answer], default=""))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
