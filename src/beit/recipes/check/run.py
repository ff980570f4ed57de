"""`beit check`: look a data set over before anything is trained on it."""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from beit.config.errors import UserError
from beit.config.use import CheckConfig
from beit.data.base import Source, Split
from beit.data.decode import ImageError
from beit.data.label_maps.pairs import IMAGES
from beit.data.loaders import HANDFUL
from beit.data.sources.files import FileSource
from beit.data.sources.opening import open_source
from beit.recipes.check.inspection import inspect_all
from beit.recipes.check.maps import SPLITS, MapReport, inspect_maps, show_maps
from beit.stages.session import open_split

_SIDES = (0, 32, 64, 128, 224, 384, 512, 1024)
_LINES = 20  # of a list that are printed; the report object holds all


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
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading images", total=None)
        report = inspect(config, lambda done, total: progress.update(task, completed=done, total=total))
    show(report, console, config.max_bad)
    return report


def inspect(
    config: CheckConfig, on_progress: Callable[[int, int], object] = lambda done, total: None
) -> DataReport:
    """Decode every image of both splits; prints nothing.

    Raises :class:`UserError` where training would: no such folder, no image, a compressed tar.
    """
    sources = _open_splits(config)
    total = sum(map(len, sources.values()))
    images: dict[Split, list[_Image]] = {split: [] for split in sources}
    for split, source in sources.items():
        for image in inspect_all(_inspect, source, config.workers):
            images[split].append(image)
            on_progress(sum(map(len, images.values())), total)
    reports = {split: _split_report(source, images[split]) for split, source in sources.items()}
    duplicates, leaks = _same_bytes(sources, images)
    has_maps = any(source.key(0).startswith(IMAGES) for source in sources.values())
    return DataReport(
        train=reports.get("train"),
        evaluation=reports.get("eval"),
        duplicates=duplicates,
        leaked=leaks,
        notes=list(dict.fromkeys(note for source in sources.values() for note in source.notes)),
        maps=inspect_maps(config) if has_maps else None,
    )


def _open_splits(config: CheckConfig) -> dict[Split, Source]:
    """Those that are not empty, with labels where there are any. UserError where all are."""
    sources: dict[Split, Source] = {}
    for split, labeled in itertools.product(SPLITS, (True, False)):
        try:
            if split not in sources:
                opener = partial(open_source, labeled=labeled)
                sources[split] = open_split(config, split, config.limit, 0, opener)
        except UserError as error:
            failure = error
    if not sources:
        raise failure
    return sources


def _same_bytes(
    sources: Mapping[Split, Source], images: Mapping[Split, Sequence[_Image]]
) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Names of files with the same bytes, in groups, and those that are in both splits, in pairs."""
    groups: dict[bytes, dict[Split, list[str]]] = {}
    for split, source in sources.items():
        for index, image in enumerate(images[split]):
            if image.digest:
                group = groups.setdefault(image.digest, {"train": [], "eval": []})
                group[split].append(source.name(index))
    several = [group for group in groups.values() if len(group["train"] + group["eval"]) > 1]
    leaks = [(group["train"][0], name) for group in several if group["train"] for name in group["eval"]]
    return [group["train"] + group["eval"] for group in several], leaks


# ------------------------------------------------------------------------------------------------------------
# Reading the images


class _Image(NamedTuple):
    """One image: hash of its file, size, or why there is none."""

    digest: bytes
    shorter_side: int
    damage: tuple[str, str] | None


def _inspect(source: Source, index: int) -> _Image:
    content = b""
    try:
        if isinstance(source, FileSource):
            content = source.read(index)
            image = source.decode(content, index)
        else:
            image = source.image(index)
            content = image.contiguous().numpy().tobytes()
        side, damage = min(image.shape[1:]), None
    except ImageError as error:
        side, damage = 0, (error.name, error.reason)
    digest = hashlib.blake2b(content, digest_size=16).digest() if content else b""
    return _Image(digest, side, damage)


def _split_report(source: Source, images: Sequence[_Image]) -> SplitReport:
    classes: Counter[str] = Counter()
    if source.classes:
        classes.update(dict.fromkeys(source.classes, 0))
        classes.update(source.classes[source.label(index)] for index in range(len(source)))
    sides = Counter(bisect(_SIDES, image.shorter_side) - 1 for image in images if not image.damage)
    return SplitReport(
        description=source.describe(),
        images=len(source),
        classes=dict(classes),
        sizes={_range_of_sides(place): sides[place] for place in sorted(sides)},
        broken=[image.damage for image in images if image.damage],
    )


def _range_of_sides(place: int) -> str:
    """In words: from `_SIDES[place]` to the next."""
    if place == 0:
        return f"under {_SIDES[1]}"
    return f"{_SIDES[place]} " + (f"to {_SIDES[place + 1] - 1}" if place + 1 < len(_SIDES) else "and more")


# ------------------------------------------------------------------------------------------------------------
# Printing


def show(report: DataReport, console: Console, max_bad: float = 0.05) -> None:
    """Print `report` for people."""
    for heading, part in (("training", report.train), ("evaluation", report.evaluation)):
        description = escape(part.description) if part else "no images"
        console.print(f"[bold]{heading}[/]: {description}", soft_wrap=True)
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
    train, evaluation = report.train, report.evaluation
    if train is None or len(train.broken) == train.images:
        return "[red]training would refuse: there is no image to train on[/]"
    bad = len(train.broken)
    if bad >= HANDFUL and bad > max_bad * train.images:
        return f"[red]training would stop: {bad / train.images:.1%} damaged files exceed --max-bad {max_bad:g}[/]"
    if report.maps and (mistakes := report.maps.mistakes):
        mend = f"mend the {len(mistakes):,} mistakes in label maps and classes listed above"
        return f"[red]not ready for segmentation: {mend}[/]"
    usable = evaluation.images - len(evaluation.broken) if evaluation else 0
    return f"ready: {train.images - bad:,} images to train on, {usable:,} to evaluate on"


def _print_counts(
    console: Console, title: str, counts: Sequence[dict[str, int]], parts: Sequence[SplitReport]
) -> None:
    table = Table(title, *(f"{part.images:,} images" for part in parts), box=None)
    rows = list(dict.fromkeys(label for column in counts for label in column))
    for label in rows[:_LINES]:
        table.add_row(escape(label), *(f"{column.get(label, 0):,}" for column in counts))
    if len(rows) > _LINES:
        table.add_row(f"... and {len(rows) - _LINES:,} more")
    console.print(table)


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(f"[bold]{title}[/]: {len(lines):,}")
    for line in lines[:_LINES]:
        console.print(f"  {escape(line)}", soft_wrap=True)
    if len(lines) > _LINES:
        console.print(f"  ... and {len(lines) - _LINES:,} more")
