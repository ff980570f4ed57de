"""Run directories -> one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import importlib.resources
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2

from beit.atomic import write_text
from beit.config.errors import UserError
from beit.training.run.record import MIME_TYPES, Picture, RunRecord, distinct_names
from beit.visualize.curves import RUN_COLORS, Chart, draw_charts
from beit.visualize.tables import ClassRow, Row, class_rows, differences, facts, figure_rows
from beit.visualize.verdicts import Verdict, verdicts

EARLIER_PICTURES = 4
SMALL_PICTURE, SHEET_WIDTH = 400, 680
VERB_TITLES = {
    "tokenizer": "Visual tokenizer",
    "pretrain": "Masked image modelling",
    "finetune": "Fine-tuning",
    "segment": "Segmentation",
    "probe": "Linear probe",
}


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as the template takes it; `small` ones are enlarged by the browser without blurring."""

    source: str
    caption: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return self.width < SMALL_PICTURE

    @property
    def sheet(self) -> bool:
        """Wider than a phone: scrolled there rather than shrunk until its captions vanish."""
        return self.width > SHEET_WIDTH


class RunPictures(NamedTuple):
    """Pictures of one kind from one run: the latest large, earlier ones folded."""

    run: RunView
    latest: EmbeddedPicture
    earlier: tuple[EmbeddedPicture, ...]


@dataclass(frozen=True)
class RunView:
    """A run as the template takes it; `color` is that of its curves, None where it is the only one of its verb."""

    name: str
    color: str | None
    record: RunRecord
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Section:
    """The runs of one verb side by side: their figures can be compared, those of different verbs can not."""

    title: str
    runs: tuple[RunView, ...]
    rows: tuple[Row, ...]
    classes: tuple[ClassRow, ...]
    galleries: Mapping[str, Sequence[RunPictures]]
    """Pictures of each kind, run beside run."""
    result_charts: tuple[Chart, ...]
    process_charts: tuple[Chart, ...]


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
    by_verb: dict[str, list[tuple[str, RunRecord]]] = {}
    for name, record in zip(names, records, strict=True):
        by_verb.setdefault(record.verb, []).append((name, record))
    sections = [_section(verb, runs) for verb, runs in by_verb.items()]
    runs = [run for section in sections for run in section.runs]
    in_order = [run.record for run in runs]
    source = (importlib.resources.files("beit.visualize") / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = lambda chart: _data_uri(chart.svg.encode(), "image/svg+xml")
    page = environment.from_string(source).render(
        title=title or (" · ".join(names) if len(names) <= 3 else f"{len(names)} runs side by side"),
        notes=notes,
        sections=sections,
        runs=runs,
        facts=list(facts(in_order)),
        differences=list(differences(in_order)) if len(sections) == 1 else [],
    )
    return page.strip() + "\n"


def _section(verb: str, runs: Sequence[tuple[str, RunRecord]]) -> Section:
    colors: Iterable[str | None] = itertools.cycle(RUN_COLORS) if len(runs) > 1 else [None]
    views = tuple(
        RunView(name, color, record, tuple(verdicts(record)))
        for (name, record), color in zip(runs, colors, strict=False)
    )
    records = [record for _, record in runs]
    charts = draw_charts({name: record.curves for name, record in runs})
    return Section(
        title=VERB_TITLES.get(verb, verb),
        runs=views,
        rows=tuple(figure_rows(records)),
        classes=tuple(class_rows(records)),
        galleries=_galleries(views),
        result_charts=tuple(chart for chart in charts if chart.figure.group == "result"),
        process_charts=tuple(chart for chart in charts if chart.figure.group == "process"),
    )


def _galleries(views: Sequence[RunView]) -> dict[str, list[RunPictures]]:
    galleries: dict[str, list[RunPictures]] = {}
    for kind in dict.fromkeys(picture.kind for view in views for picture in view.record.pictures):
        gallery = galleries[kind.replace("-", " ").replace("_", " ")] = []
        for view in views:
            pictures = [picture for picture in view.record.pictures if picture.kind == kind]
            if pictures:
                earlier = tuple(map(_embed, _evenly_spaced(pictures[:-1], EARLIER_PICTURES)))
                gallery.append(RunPictures(view, _embed(pictures[-1]), earlier))
    return galleries


def _evenly_spaced(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """At most `count` of the pictures, evenly spaced, the first among them."""
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[index * len(pictures) // count] for index in range(count)]


def _embed(picture: Picture) -> EmbeddedPicture:
    source = _data_uri(picture.path.read_bytes(), MIME_TYPES[picture.path.suffix.lower()])
    caption = f"step {picture.step:,}" if picture.step is not None else picture.path.name
    return EmbeddedPicture(source, caption, *picture.size)


def _data_uri(data: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
