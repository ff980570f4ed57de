"""Run directories -> one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from beit.atomic import write_text
from beit.config.errors import UserError
from beit.training.run.record import MIME_TYPES, Picture, RunRecord, distinct_names
from beit.verdicts.rules import Verdict, verdicts
from beit.visualize.curves import RUN_COLORS, Chart, draw_charts
from beit.visualize.tables import ClassRow, Row, class_rows, differences, facts, figure_rows

EARLIER_PICTURES = 4
VERB_TITLES = {
    "tokenizer": "Visual tokenizer",
    "pretrain": "Masked image modelling",
    "finetune": "Fine-tuning",
    "segment": "Segmentation",
    "probe": "Linear probe",
}


class RunView(NamedTuple):
    """A run as the template takes it; `color` is that of its curves, None where it is the only one of its verb."""

    name: str
    color: str | None
    record: RunRecord
    verdicts: list[Verdict]


class Section(NamedTuple):
    """The runs of one verb side by side: their figures can be compared, those of different verbs can not."""

    title: str
    runs: list[RunView]
    rows: list[Row]
    classes: list[ClassRow]
    galleries: Mapping[str, Sequence[tuple[RunView, list[Picture]]]]
    """Pictures of each kind, run beside run, the latest of each run last."""
    charts: list[Chart]


def write_report(
    records: Sequence[RunRecord], out: Path | None = None, *, title: str = "", notes: Sequence[str] = ()
) -> Path:
    """Write the page about these runs, whole or not at all, and return its path.

    `out` is a file or a folder that gets `report.html`; by default the first run. `notes` are paragraphs of plain
    text that open the page.
    """
    if not records:
        raise UserError("beit report needs at least one run directory, as in: beit report runs/pretrain")
    page = render(records, title=title, notes=notes)
    path = Path(out) if out is not None else records[0].folder
    if path.is_dir():
        path /= "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page, durable=False)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
    return path


def render(records: Sequence[RunRecord], *, title: str = "", notes: Sequence[str] = ()) -> str:
    """The page as text. Everything that comes from a run is escaped by the template."""
    names = distinct_names(records)
    by_verb: dict[str, dict[str, RunRecord]] = {}
    for name, record in zip(names, records, strict=True):
        by_verb.setdefault(record.verb, {})[name] = record
    sections = [_section(verb, runs) for verb, runs in by_verb.items()]
    runs = [run for section in sections for run in section.runs]
    in_order = [run.record for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("beit.visualize", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["chart_uri"] = lambda chart: _data_uri(chart.svg.encode(), "image/svg+xml")
    environment.filters["picture_uri"] = lambda picture: _data_uri(
        picture.path.read_bytes(), MIME_TYPES[picture.path.suffix.lower()]
    )
    page = environment.get_template("report.html.j2").render(
        title=title or (" · ".join(names) if len(names) <= 3 else f"{len(names)} runs side by side"),
        notes=notes,
        sections=sections,
        runs=runs,
        facts=facts(in_order),
        differences=differences(in_order) if len(sections) == 1 else [],
    )
    return page.strip() + "\n"


def _section(verb: str, runs: Mapping[str, RunRecord]) -> Section:
    colors = itertools.cycle(RUN_COLORS if len(runs) > 1 else [None])
    views = [RunView(name, next(colors), record, verdicts(record)) for name, record in runs.items()]
    records = list(runs.values())
    return Section(
        VERB_TITLES.get(verb, verb),
        views,
        figure_rows(records),
        class_rows(records),
        _galleries(views),
        draw_charts({name: record.curves for name, record in runs.items()}),
    )


def _galleries(views: Sequence[RunView]) -> dict[str, list[tuple[RunView, list[Picture]]]]:
    galleries: dict[str, list[tuple[RunView, list[Picture]]]] = {}
    for kind in dict.fromkeys(picture.kind for view in views for picture in view.record.pictures):
        gallery = galleries[kind.replace("-", " ").replace("_", " ")] = []
        for view in views:
            pictures = [picture for picture in view.record.pictures if picture.kind == kind]
            # Of the earlier ones a few, evenly spaced, the first among them.
            earlier, count = len(pictures) - 1, min(len(pictures) - 1, EARLIER_PICTURES)
            spaced = [pictures[index * earlier // count] for index in range(count)]
            if pictures:
                gallery.append((view, [*spaced, pictures[-1]]))
    return galleries


def _data_uri(data: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
