"""`beit check`: look a data set over before anything is trained on it."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from beit.config.errors import UserError
from beit.config.use import CheckConfig
from beit.data.base import Source
from beit.data.decode import ImageError
from beit.data.label_maps.files import IMAGES
from beit.data.loaders import HANDFUL
from beit.data.sources.files import FileSource
from beit.data.sources.opening import open_source
from beit.recipes.check.inspection import examine_all
from beit.recipes.check.maps import MapReport, inspect_maps, show_maps

_SIDES = (32, 64, 128, 224, 384, 512, 1024)
_SHOWN = 20  # lines of a list that are printed; the report object holds all


@dataclass(frozen=True)
class SplitReport:
    """What one split holds."""

    description: str
    """Count, classes and origin in one phrase."""
    images: int
    """Images found, damaged ones included."""
    classes: dict[str, int] = field(default_factory=dict)
    """Images of each class; empty without classes."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Whole images by their shorter side in pixels, from small to large."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of every damaged file."""


@dataclass(frozen=True)
class DataReport:
    """What :func:`inspect` found."""

    train: SplitReport | None
    """None: the data holds an evaluation split alone."""
    evaluation: SplitReport | None
    duplicates: list[list[str]]
    """Groups of files with the same bytes."""
    leaked: list[tuple[str, str]]
    """Training and evaluation files with the same bytes."""
    notes: list[str]
    """What training ignores, and why."""
    maps: MapReport | None = None
    """Where there are label maps: what they hold."""

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Damaged files of both splits."""
        return [bad for part in (self.train, self.evaluation) if part for bad in part.broken]


def check(config: CheckConfig) -> DataReport:
    """Read every image of `config.data` once and print what was found."""
    console = Console()
    workers = (os.cpu_count() or 1) if config.workers == "auto" else config.workers
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading images", total=None)
        report = inspect(
            config.sources,
            holdout=config.holdout,
            limit=config.limit,
            max_megapixels=config.max_megapixels,
            workers=workers,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    show(report, console, config.max_bad)
    return report


def inspect(
    data: Sequence[str],
    *,
    holdout: float = 0.05,
    limit: int | None = None,
    max_megapixels: float = 64,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Decode every image of both splits, in `workers` processes (0: in this one); prints nothing.

    Raises :class:`UserError` where training would: no such folder, no image, a compressed tar.
    """
    sources: dict[str, Source] = {}
    for split in ("train", "eval"):
        try:
            sources[split] = _open(data, split, holdout, limit, max_megapixels)
        except UserError as error:
            failure = error
    if not sources:
        raise failure
    total = sum(map(len, sources.values()))
    reports: dict[str, SplitReport] = {}
    names_of: dict[bytes, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    done = 0
    for split, source in sources.items():
        seen: list[_Seen] = []
        for part in examine_all(_examine, source, workers):
            seen += part
            done += len(part)
            if on_progress:
                on_progress(done, total)
        for index, image in enumerate(seen):
            if image.digest:
                names_of[image.digest][split].append(source.name(index))
        reports[split] = _summary(source, seen)
    groups = [by_split for by_split in names_of.values() if sum(map(len, by_split.values())) > 1]
    return DataReport(
        train=reports.get("train"),
        evaluation=reports.get("eval"),
        duplicates=[[name for names in by_split.values() for name in names] for by_split in groups],
        leaked=[(g["train"][0], name) for g in groups if g["train"] for name in g["eval"]],
        notes=list(dict.fromkeys(note for source in sources.values() for note in source.notes)),
        maps=inspect_maps(data, holdout=holdout, max_megapixels=max_megapixels, workers=workers)
        if any(source.key(0).startswith(IMAGES) for source in sources.values())
        else None,
    )


def _open(
    data: Sequence[str], split: str, holdout: float, limit: int | None, max_megapixels: float
) -> Source:
    """With labels where there are any."""
    for labeled in (True, False):
        try:
            return open_source(
                data,
                "train" if split == "train" else "eval",
                holdout=holdout,
                limit=limit,
                labeled=labeled,
                max_megapixels=max_megapixels,
            )
        except UserError:
            if not labeled:
                raise
    raise AssertionError("unreachable")


# ------------------------------------------------------------------------------------------------------------
# Reading the images


class _Seen(NamedTuple):
    """One image: hash of its file, size, or why there is none."""

    digest: bytes
    shorter_side: int
    broken: tuple[str, str] | None


def _examine(source: Source, indices: Sequence[int]) -> list[_Seen]:
    seen = []
    for index in indices:
        digest = b""
        try:
            if isinstance(source, FileSource):
                content = source.read(index)
                digest = _digest(content)
                image = source.decode(content, index)
            else:
                image = source.image(index)
                digest = _digest(image.contiguous().numpy().tobytes())
            seen.append(_Seen(digest, min(image.shape[1:]), None))
        except ImageError as error:
            seen.append(_Seen(digest, 0, (error.name, error.reason)))
    return seen


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest() if content else b""


def _summary(source: Source, seen: Sequence[_Seen]) -> SplitReport:
    classes: Counter[str] = Counter()
    if source.classes:
        classes.update(dict.fromkeys(source.classes, 0))
        classes.update(source.classes[source.label(index)] for index in range(len(source)))
    bounds = [0, *_SIDES]
    labels = [f"under {_SIDES[0]}", *(f"{a} to {b - 1}" for a, b in itertools.pairwise(_SIDES))]
    labels.append(f"{_SIDES[-1]} and more")
    sides = Counter(sum(s.shorter_side >= b for b in bounds) - 1 for s in seen if not s.broken)
    return SplitReport(
        description=source.describe(),
        images=len(source),
        classes=dict(classes),
        sizes={label: sides[place] for place, label in enumerate(labels) if sides[place]},
        broken=[s.broken for s in seen if s.broken],
    )


# ------------------------------------------------------------------------------------------------------------
# Printing


def show(report: DataReport, console: Console, max_bad: float = 0.05) -> None:
    """Print `report` for people."""
    for heading, part in (("training", report.train), ("evaluation", report.evaluation)):
        console.print(
            f"[bold]{heading}[/]: {escape(part.description) if part else 'no images'}", soft_wrap=True
        )
    for note in report.notes:
        console.print(f"  {escape(note)}", soft_wrap=True)
    parts = [part for part in (report.train, report.evaluation) if part]
    _print_counts(console, "shorter side in pixels", [part.sizes for part in parts], parts)
    if any(part.classes for part in parts):
        _print_counts(console, "class", [part.classes for part in parts], parts)
    if report.maps:
        show_maps(report.maps, console)
        _print_list(console, "label maps and classes that segmentation would not take", report.maps.mistakes)
    _print_list(console, "damaged files", [f"{name}: {reason}" for name, reason in report.broken])
    _print_list(console, "files with the same bytes", [" = ".join(group) for group in report.duplicates])
    _print_list(
        console, "evaluation files that are also trained on", [f"{b} = {a}" for a, b in report.leaked]
    )
    console.print(_verdict(report, max_bad), soft_wrap=True)


def _verdict(report: DataReport, max_bad: float) -> str:
    """What training will do with the images."""
    train, held_back = report.train, report.evaluation
    if train is None or len(train.broken) == train.images:
        return "[red]training would refuse: there is no image to train on[/]"
    bad = len(train.broken)
    if bad >= HANDFUL and bad > max_bad * train.images:
        return f"[red]training would stop: {bad / train.images:.1%} damaged files exceed --max-bad {max_bad:g}[/]"
    if report.maps and (mistakes := report.maps.mistakes):
        return (
            f"[red]not ready for segmentation: mend the {len(mistakes):,} mistakes in label maps and classes listed "
            f"above[/]"
        )
    usable = held_back.images - len(held_back.broken) if held_back else 0
    return f"ready: {train.images - bad:,} images to train on, {usable:,} to evaluate on"


def _print_counts(
    console: Console, title: str, counts: Sequence[dict[str, int]], parts: Sequence[SplitReport]
) -> None:
    table = Table(title, *(f"{part.images:,} images" for part in parts), box=None)
    rows = list(dict.fromkeys(label for column in counts for label in column))
    for label in rows[:_SHOWN]:
        table.add_row(escape(label), *(f"{column.get(label, 0):,}" for column in counts))
    if len(rows) > _SHOWN:
        table.add_row(f"... and {len(rows) - _SHOWN:,} more")
    console.print(table)


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(f"[bold]{title}[/]: {len(lines):,}")
    for line in lines[:_SHOWN]:
        console.print(f"  {escape(line)}", soft_wrap=True)
    if len(lines) > _SHOWN:
        console.print(f"  ... and {len(lines) - _SHOWN:,} more")
