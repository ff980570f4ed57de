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
    known = [name for name in figures if name in FIGURES]
    for name in sorted(known, key=lambda name: figure_of(name, figures).order()):
        figure, value = figure_of(name, figures), figures[name]
        table.add_row(figure.title, f"{value:.2%}" if figure.style == "percent" else short_number(value))
    console.print(table)
    if figures["kind"] == "segmenter":
        _regions(figures, console)
    elif "confusion" in figures:
        names = list(figures["classes"])
        (_matrix if len(names) <= FEW_CLASSES else _worst)(figures, names, console)
    elif "classes" in figures:
        _several(figures, console)


def _matrix(figures: Mapping[str, Any], names: list[str], console: Console) -> None:
    """A row for each class, a column for each answer."""
    console.print(
        "classes by row, answers by column", style="italic"
    )  # a title would be as narrow as the table
    table = Table(box=None)
    table.add_column("class")
    for number in range(len(names)):
        table.add_column(str(number), justify="right")  # short; the rows have the names
    table.add_column("top-1", justify="right")
    for number, name in enumerate(names):
        row = figures["confusion"][name]
        cells = [f"{row[answer]:,}" if answer in row else "." for answer in names]
        table.add_row(escape(f"{number} {name}"), *cells, _share(figures["classes"][name]["top1"]))
    console.print(table)


def _worst(figures: Mapping[str, Any], names: list[str], console: Console) -> None:
    """The classes that are told apart least, and what they are taken for."""
    known = [name for name in names if figures["classes"][name]["images"]]
    table = Table(box=None, title=f"the {WORST} hardest of {len(names):,} classes", title_justify="left")
    for heading in ("class", "images", "top-1", "most often taken for"):
        table.add_column(heading, justify="left" if heading[0] in "cm" else "right")
    for name in sorted(known, key=lambda name: float(figures["classes"][name]["top1"]))[:WORST]:
        entry = figures["classes"][name]
        wrong = {answer: n for answer, n in figures["confusion"][name].items() if answer != name}
        worst = max(wrong, key=lambda answer: wrong[answer], default="")
        table.add_row(escape(name), f"{entry['images']:,}", _share(entry["top1"]), escape(worst))
    console.print(table)


def _regions(figures: Mapping[str, Any], console: Console) -> None:
    """How well the region of each class is found, and what its other pixels are taken for most often."""
    classes = {name: entry for name, entry in figures["classes"].items() if entry["iou"] is not None}
    table = Table(box=None)
    for heading in ("class", "IoU", "accuracy", "share of pixels", "most often taken for"):
        table.add_column(heading, justify="left" if heading[0] in "cm" else "right")
    shown = list(classes)
    if len(shown) > MANY:
        table.title = f"the {MANY} hardest of {len(shown):,} classes that occur"
        shown = sorted(shown, key=lambda name: float(classes[name]["iou"]))[:MANY]
    for name in shown:
        wrong = {answer: n for answer, n in figures["confusion"][name].items() if answer != name}
        shares = (_share(classes[name][key]) for key in ("iou", "accuracy", "share"))
        table.add_row(escape(name), *shares, escape(max(wrong, key=lambda answer: wrong[answer], default="")))
    console.print(table)


def _several(figures: Mapping[str, Any], console: Console) -> None:
    """How well each class is found where an image may have several: the least found first."""
    table = Table("class", "images", "average precision", "precision", "recall", box=None)
    classes = figures["classes"]
    for name in sorted(classes, key=lambda name: classes[name]["recall"] or 0.0)[: 2 * WORST]:
        entry = classes[name]
        shares = (_share(entry[key]) for key in ("average_precision", "precision", "recall"))
        table.add_row(escape(name), f"{entry['images']:,}", *shares)
    console.print(table)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
