"""The tables of the report: what the runs are, how they differ, and the figures they reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from beit.figures import Figure, figure_of, plain
from beit.training.run.curves import NOT_FIGURES, Curve
from beit.training.run.record import RunRecord, find, flatten, regions

NOT_RESULTS = NOT_FIGURES | {"epochs", "knn_images", "parameters", "skipped_steps", "steps", "vocab_size"}
SHOWN_ELSEWHERE = ("best", "first", "classes.", "interval.")
Line = tuple[str, list[str]]
"""A name and its value in each run."""


class Cell(NamedTuple):
    """One run's entry in the table of figures."""

    value: str
    remarks: tuple[str, ...]


class ClassRow(NamedTuple):
    """One class of segmenters in the table of regions."""

    name: str
    color: str | None
    """As CSS says it."""
    share: str
    """Of the pixels that were judged."""
    values: list[str]
    """Intersection over union in each run."""


class Row(NamedTuple):
    figure: Figure
    cells: list[Cell | None]


def facts(records: Sequence[RunRecord]) -> list[Line]:
    """What each run is, one line per fact that any run knows."""
    return _lines([dict(_facts_of(record)) for record in records])


def _facts_of(record: RunRecord) -> Iterator[tuple[str, str]]:
    status, results = record.status, record.results
    yield "Command", f"beit {record.verb}" if record.status.get("verb") else "–"
    yield "State", record.state
    step, steps = status.get("step"), status.get("steps")
    if isinstance(step, int):
        yield "Steps", f"{step:,} of {steps:,}" if isinstance(steps, int) else f"{step:,}"
    if record.parameters is not None:
        yield "Model", _parameters(record.parameters)
    if "data" in record.config:
        yield "Data", _words(record.config["data"])
    if isinstance(images := find(results, "images"), int | float):
        yield "Images seen", f"{images:,.0f}"
    if skipped := results.get("skipped_steps"):
        yield "Steps skipped", f"{skipped} with a loss that was not finite"
    if record.time:
        yield "Time", record.time
    if machine := status.get("machine"):
        yield "Machine", _machine(machine)
    if versions := status.get("versions"):
        yield "Versions", _words(versions)
    if command := status.get("command"):
        yield "Started with", _words(command, " ")
    yield "Folder", str(record.folder)


def differences(records: Sequence[RunRecord]) -> list[Line]:
    """The knobs that are not the same in all runs; nothing for a single run."""
    configs = [{key: _words(value) for key, value in flatten(record.config)} for record in records]
    return [(name, values) for name, values in _lines(configs) if len({*values}) > 1 and name != "out"]


def _lines(columns: Sequence[Mapping[str, str]]) -> list[Line]:
    """A line for every name that any column has."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, "–") for column in columns]) for name in names]


def figure_rows(records: Sequence[RunRecord]) -> list[Row]:
    """The table of figures: results only, in the order of :data:`beit.figures.FIGURES`, unknown ones after."""
    per_run = [_cells(record) for record in records]
    names = dict.fromkeys(name for cells in per_run for name in cells)
    figures = sorted((figure_of(name, names) for name in names), key=Figure.order)
    results = [figure for figure in figures if figure.group == "result"]
    return [Row(figure, [cells.get(figure.name) for cells in per_run]) for figure in results]


def _cells(record: RunRecord) -> dict[str, Cell]:
    cells = {
        name: _cell(figure_of(name), *(record.curves.get(f"{images}{name}") for images in ("", "eval/", "test/")))
        for name in dict.fromkeys(map(plain, record.curves))
    }
    for path, value in flatten(record.results):
        name = plain(path.removeprefix("last."))
        elsewhere = name in cells or name in NOT_RESULTS or path.startswith(SHOWN_ELSEWHERE)
        if isinstance(value, int | float) and not isinstance(value, bool) and not elsewhere:
            cells[name] = Cell(figure_of(name).format(value), ())
    return cells


def _cell(figure: Figure, train: Curve | None, held_back: Curve | None, test: Curve | None) -> Cell:
    """A figure on the test images, else on held-back ones, where there are any, with what else its curves say."""
    trained = figure.format(train.recent) if train is not None else ""
    remarks = [f"training {trained}"] if trained else []
    if test is not None:
        held = [f"held-back {figure.format(held_back.last)}"] if held_back is not None else []
        return Cell(figure.format(test.last), ("test", *held, *remarks))
    if held_back is None:
        return Cell(trained, ("training",))
    if figure.better is not None:
        values = held_back.values if figure.better == "higher" else -held_back.values
        best = int(values.argmax())
        if values[best] > values[-1]:
            value = figure.format(float(held_back.values[best]))
            remarks.append(f"best {value} at step {held_back.steps[best]:,.0f}, chosen on these images")
    return Cell(figure.format(held_back.last), tuple(remarks))


def class_rows(records: Sequence[RunRecord]) -> list[ClassRow]:
    """How well each class's region is found, for finished runs of segmentation; nothing for other runs."""
    tables = [regions(record) for record in records]
    colors: dict[str, str] = {}
    for record in reversed(records):
        colors |= _colors(record)
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        entries = [table.get(name, {}) for table in tables]
        share = next(_percent(entry.get("share")) for entry in entries if entry)
        values = [_percent(entry.get("iou")) for entry in entries]
        rows.append(ClassRow(name, colors.get(name), share, values))
    return rows


def _percent(value: object) -> str:
    return Figure("share", "", style="percent").format(value) if isinstance(value, int | float) else "–"


def _colors(record: RunRecord) -> dict[str, str]:
    """The colours of a run's classes, as CSS says them."""
    palette = record.model.get("palette")
    return {
        str(name): f"rgb({color[0]},{color[1]},{color[2]})"
        for name, color in zip(record.classes, palette if isinstance(palette, list) else (), strict=False)
        if isinstance(color, list) and [type(value) for value in color] == [int, int, int]
    }


def _words(value: Any, separator: str = " · ") -> str:
    """A value of a configuration or status in one line."""
    if isinstance(value, Mapping):
        return separator.join(f"{key} {_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return separator.join(_words(part) for part in value)
    return "none" if value is None else str(value)


def _machine(machine: Any) -> str:
    """What decides the speed of a run; pages are shared, so neither the host's name nor its system."""
    if not isinstance(machine, Mapping):
        return str(machine)
    units = {"gpu": "", "cpu": "", "cores": " cores", "memory_gib": " GiB", "processes": " processes"}
    return " · ".join(f"{machine[key]}{unit}" for key, unit in units.items() if machine.get(key) is not None)


def _parameters(count: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {unit} parameters"
    return f"{count:.0f} parameters"
