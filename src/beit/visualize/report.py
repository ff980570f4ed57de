"""Run directories -> one HTML page that needs nothing else: no network, no script, pictures inside."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from beit.atomic import write_text
from beit.config.errors import UserError, require
from beit.training.run.record import MIME_TYPES, Picture, RunRecord, distinct_names
from beit.verdicts.rules import verdicts
from beit.visualize import tables
from beit.visualize.curves import RUN_COLORS, Chart, draw_charts
from beit.visualize.page import data_uri, template


class RunView(NamedTuple):
    """A run as the template takes it; `color` is that of its curves, None where it is the only one of its verb."""

    name: str
    color: str | None
    record: RunRecord


class Section(NamedTuple):
    """The runs of one verb side by side: their figures can be compared, those of different verbs can not."""

    title: str
    runs: list[RunView]
    rows: list[tables.Row]
    classes: tables.ClassTable | None
    galleries: Mapping[str, Sequence[tuple[RunView, list[Picture]]]]
    """Pictures of each kind, run beside run: the first of each run, and its last."""
    charts: list[Chart]


def write_report(
    records: Sequence[RunRecord], out: Path | None = None, *, title: str = "", notes: Sequence[str] = ()
) -> Path:
    """Write the page about these runs, whole or not at all, and return its path.

    `out` is a file or a folder that gets `report.html`; by default the first run. `notes` are paragraphs of plain
    text that open the page: which run is best, and by how much.
    """
    require(bool(records), "beit report needs at least one run directory, as in: beit report runs/pretrain")
    names = distinct_names(records)
    by_verb: dict[str, dict[str, RunRecord]] = {}
    for name, record in zip(names, records, strict=True):
        by_verb.setdefault(record.verb, {})[name] = record
    sections = [_section(verb, runs) for verb, runs in by_verb.items()]
    filters: Sequence[Callable[..., object]] = (
        *(data_uri, picture_uri, key_picture, verdicts),
        *(tables.confusion_of, tables.differences, tables.facts, tables.facts_of, tables.key_figure),
    )
    page = template("report.html.j2", **{function.__name__: function for function in filters}).render(
        title=title or (" · ".join(names) if len(names) <= 3 else f"{len(names)} runs side by side"),
        notes=notes,
        sections=sections,
        runs=[run for section in sections for run in section.runs],
    )
    path = Path(out) if out is not None else records[0].folder
    if path.is_dir():
        path /= "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page.strip() + "\n", durable=False)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    return path


def _section(verb: str, runs: Mapping[str, RunRecord]) -> Section:
    colors = itertools.cycle(RUN_COLORS if len(runs) > 1 else [None])
    views = [RunView(name, next(colors), record) for name, record in runs.items()]
    records = list(runs.values())
    return Section(
        verb.capitalize(),
        views,
        tables.figure_rows(records),
        tables.class_table(records),
        _galleries(views),
        draw_charts({name: record.curves for name, record in runs.items()}),
    )


def _galleries(views: Sequence[RunView]) -> dict[str, list[tuple[RunView, list[Picture]]]]:
    galleries: dict[str, list[tuple[RunView, list[Picture]]]] = {}
    for kind in dict.fromkeys(picture.kind for view in views for picture in view.record.pictures):
        gallery = galleries[kind.replace("-", " ").replace("_", " ")] = []
        for view in views:
            pictures = [picture for picture in view.record.pictures if picture.kind == kind]
            if pictures:
                gallery.append((view, [*pictures[:-1][:1], pictures[-1]]))
    return galleries


def key_picture(runs: Sequence[RunView]) -> Picture | None:
    """The picture that shows what it came to: the last one of the first run of a task, else of the last run."""
    tasks = [run for run in runs if run.record.verb in ("finetune", "segment")]
    drawn = [picture for run in (*runs, *tasks[:1]) for picture in run.record.pictures]
    pictures = [picture for picture in drawn if picture.kind != "mistakes"]
    return pictures[-1] if pictures else None


def picture_uri(picture: Picture) -> str:
    return data_uri(picture.path.read_bytes(), MIME_TYPES[picture.path.suffix.lower()])
