"""The tables of the report: what the runs are, how they differ, and the figures they reached."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from beit.config.values import counted
from beit.figures import Figure, figure_of, headlines, plain
from beit.training.run.record import NOT_FIGURES, Curve, RunRecord, find, flatten
from beit.verdicts.rules import interval_of

NOT_RESULTS = NOT_FIGURES | {"epochs", "knn_images", "parameters", "skipped_steps", "steps", "vocab_size"}
SHOWN_ELSEWHERE = ("best", "first", "classes.", "confusion.", "interval.")
CLASS_FIGURES = {
    "iou": ("Share of pixels", "Overlap (intersection over union)"),
    "top1": ("Images", "Named right"),
    "average_precision": ("Images", "Average precision"),
}
"""The figures of a class, by what they are called, with the headings of its size and of the figure."""
MATRIX, MISTAKES = 20, 8
"""Classes that fit into a table of confusions; the kinds of mistakes that are listed."""
Line = tuple[str, list[str]]
"""A name and its value in each run."""


class ClassTable(NamedTuple):
    """How the classes fare in each run."""

    size: str
    """What is said of how large a class is."""
    figure: str
    """What is said of how well it is found."""
    rows: Sequence[tuple[str, str | None, str, Sequence[str]]]
    """For each class: its name, its colour as CSS says it, its size, and its figure in each run."""


class Confusion(NamedTuple):
    """What a model takes its classes for."""

    names: Sequence[str]
    rows: Sequence[Sequence[tuple[str, float]]]
    """For each true class, how often each was named: a number, and its share of the row; empty for many classes."""
    worst: Sequence[str]
    """The mistakes that are made most often, in words."""


class Row(NamedTuple):
    figure: Figure
    cells: list[list[str] | None]
    """Of each run the value, and what else is said of it."""


def facts(records: Sequence[RunRecord]) -> list[Line]:
    """What each run is, one line per fact that any run knows."""
    return _lines([facts_of(record) for record in records])


def facts_of(record: RunRecord) -> dict[str, str]:
    """What a run is, by the name of the fact."""
    status, skipped, size = record.status, find(record.results, "skipped_steps"), record.number("parameters")
    known = {
        "State": record.state,
        "Steps": " of ".join(_count(status.get(name)) for name in ("step", "steps") if status.get("steps")),
        "Model": size and f"{size:,} parameters",
        "Data": record.config.get("data"),
        "Images seen": _count(find(record.results, "images") or None),
        "Steps skipped": skipped and f"{skipped} with a loss that was not finite",
        "Time": record.time,
        "Date": _words(status.get("updated", "")).replace("T", " ")[:16],
        "Machine": _machine(status.get("machine")),
        "Versions": status.get("versions"),
        "Started with": status.get("command"),
        "Folder": record.folder,
    }
    return {name: _words(value) for name, value in known.items() if value}


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


def _cells(record: RunRecord) -> dict[str, list[str]]:
    cells = {
        name: _cell(figure_of(name), *(record.curves.get(f"{images}{name}") for images in ("", "eval/", "test/")))
        for name in dict.fromkeys(map(plain, record.curves))
    }
    for path, value in flatten(record.results):
        name = plain(path.removeprefix("last."))
        elsewhere = name in cells or name in NOT_RESULTS or path.startswith(SHOWN_ELSEWHERE)
        if isinstance(value, int | float) and not isinstance(value, bool) and not elsewhere:
            cells[name] = [figure_of(name).format(value)]
    match record.results.get("best"):
        case {"monitor": str(monitor), "step": int(step), "remark": str(remark), **figures}:
            figure, value, curve = figure_of(monitor), figures.get(monitor), record.curves.get(monitor)
            if curve is not None and isinstance(value, float) and value != curve.last:
                cells[figure.name].append(f"best {figure.format(value)} at step {step:,}, {remark}")
    return cells


def _cell(figure: Figure, train: Curve | None, held_back: Curve | None, test: Curve | None) -> list[str]:
    """A figure on the test images, else on held-back ones, where there are any, with what else its curves say."""
    said = {"test": test and test.last, "held-back": held_back and held_back.last, "training": train and train.recent}
    values = [(images, figure.format(value)) for images, value in said.items() if value is not None]
    (images, first), *others = values
    return [first, *([images] if images != "held-back" else []), *(f"{images} {value}" for images, value in others)]


def key_figure(record: RunRecord) -> tuple[str, str, str] | None:
    """The figure that matters most: its title, its value, and how sure it is or what it stands beside."""
    values = {name: curve.last for name, curve in record.curves.items()}
    if (name := next(iter(headlines(values)), None)) is None:
        return None
    figure, interval = figure_of(name, {*map(plain, values)}), interval_of(record)
    prefix = name.removesuffix(plain(name))
    beside = {values[prefix + other]: figure_of(other) for other in figure.references if prefix + other in values}
    hardest = (max if figure.style == "percent" else min)(beside, default=0.0)
    remark = f"{beside[hardest].title} {beside[hardest].format(hardest)}" if beside else ""
    if interval.get("figure") in (name, None) and interval:
        low, high = figure.format(interval["low"]), figure.format(interval["high"])
        remark = f"95 % interval {low} to {high}, on {counted(round(interval['images']), 'image')}"
    return figure.title, figure.format(values[name]), remark


def confusion_of(record: RunRecord) -> Confusion | None:
    """What the classes are taken for, at the end of a run that has them."""
    table = record.entries("confusion")
    counts = {(true, str(name)): n for true, row in table.items() for name, n in row.items() if isinstance(n, int)}
    if not counts:
        return None
    total = {true: max(1, sum(counts.get((true, name), 0) for name in table)) for true in table}
    wrong = sorted((pair for pair in counts if pair[0] != pair[1]), key=counts.__getitem__, reverse=True)[:MISTAKES]
    worst = [f"{_percent(counts[true, name] / total[true])} of {true} is taken for {name}" for true, name in wrong]
    rows = [
        [(f"{n:,}" if (n := counts.get((true, name), 0)) else "", n / total[true]) for name in table]
        for true in table
    ]
    return Confusion([*table], rows if len(table) <= MATRIX else (), worst)


def class_table(records: Sequence[RunRecord]) -> ClassTable | None:
    """How the classes fare in the runs that say it; None where none does."""
    tables = [record.entries("classes") for record in records]
    known = {figure for table in tables for entry in table.values() for figure in entry}
    if (measure := next(filter(known.__contains__, CLASS_FIGURES), None)) is None:
        return None
    colors: dict[str, str] = {}
    for record in reversed(records):
        colors |= _colors(record)
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        entries = [table.get(name, {}) for table in tables]
        first = next(filter(None, entries), {})
        size = _percent(first["share"]) if "share" in first else f"{first.get('images', '–')}"
        rows.append((name, colors.get(name), size, [_percent(entry.get(measure)) for entry in entries]))
    return ClassTable(*CLASS_FIGURES[measure], rows)


def _percent(value: object) -> str:
    return Figure("", "percent").format(value) if isinstance(value, int | float) else "–"


def _colors(record: RunRecord) -> dict[str, str]:
    """The colours of a run's classes, as CSS says them."""
    palette = record.model.get("palette")
    return {
        str(name): f"rgb({color[0]},{color[1]},{color[2]})"
        for name, color in zip(record.classes, palette if isinstance(palette, list) else (), strict=False)
        if isinstance(color, list) and [type(value) for value in color] == [int, int, int]
    }


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else ""


def _words(value: Any) -> str:
    """A value of a configuration or status in one line."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return " · ".join(map(_words, value))
    return "none" if value is None else str(value)


def _machine(machine: Any) -> str:
    """What decides the speed of a run; pages are shared, so neither the host's name nor its system."""
    if not isinstance(machine, Mapping):
        return ""
    units = {"gpu": "", "cpu": "", "cores": " cores", "memory_gib": " GiB"}
    return " · ".join(f"{machine[key]}{unit}" for key, unit in units.items() if machine.get(key) is not None)
