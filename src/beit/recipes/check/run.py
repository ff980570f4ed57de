"""`beit check`: look a data set over before anything is trained on it."""

from __future__ import annotations

import hashlib
import shlex
from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from beit.config.errors import UserError
from beit.config.use import CheckConfig
from beit.data.base import SPLITS, Source, Split
from beit.data.decode import ImageError
from beit.data.label_maps.pairs import IMAGES
from beit.data.loaders import HANDFUL
from beit.data.sources.files import FileSource
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import limited
from beit.recipes.check.inspection import inspect_all
from beit.recipes.check.maps import MapReport, inspect_maps, show_maps
from beit.stages.session import holdout_of, open_data
from beit.training.console import bar
from beit.untrusted import markup

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

    splits: dict[Split, SplitReport]
    """Those that have images; `val` is what training would hold back where the data has none."""
    duplicates: list[list[str]]
    """Groups of files with the same bytes."""
    leaked: list[tuple[str, str]]
    """Training files, which training leaves out, and files of `val` or `test` with the same bytes."""
    notes: list[str]
    """What training ignores, and why."""
    maps: MapReport | None = None
    """Where there are label maps: what they hold."""

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Damaged files of all splits."""
        return [bad for part in self.splits.values() for bad in part.broken]


def check(config: CheckConfig) -> DataReport:
    """Read every image of `config.data` once and print what was found."""
    report = inspect(config)
    show(report, Console(), config.max_bad)
    if _verdict(report, config.max_bad).startswith("ready"):
        labels = ["--labels", config.labels] if config.labels else []
        print(f"next: beit plan {shlex.join([*config.sources, *labels])}")
    return report


def inspect(config: CheckConfig) -> DataReport:
    """Decode every image of all splits; prints nothing but a bar on a terminal.

    Raises :class:`UserError` where training would: no such folder, no image, a compressed tar.
    """
    sources = _open_splits(config)
    images: dict[Split, list[_Image]] = {split: [] for split in sources}
    with bar("reading images", sum(map(len, sources.values()))) as progress:
        for split, source in sources.items():
            for image in inspect_all(_inspect, source, config.workers):
                images[split].append(image)
                progress.move()
    reports = {split: _split_report(source, images[split]) for split, source in sources.items()}
    duplicates, leaks = _same_bytes(sources, images)
    has_maps = any(source.key(0).startswith(IMAGES) for source in sources.values())
    return DataReport(
        splits=reports,
        duplicates=duplicates,
        leaked=leaks,
        notes=list(dict.fromkeys(note for source in sources.values() for note in source.notes)),
        maps=inspect_maps(config) if has_maps else None,
    )


def _open_splits(config: CheckConfig) -> dict[Split, Source]:
    """Those that have images, with labels where there are any. UserError where none has."""
    holdout = holdout_of(config)
    plain = open_data(config, open_splits, holdout)
    labeled = open_data(config, partial(open_splits, labeled=True), holdout)
    sources: dict[Split, Source] = {}
    for split in plain:
        try:
            sources[split] = labeled[split]
        except (KeyError, UserError) as error:  # no labels, or wrong ones
            sources[split] = plain[split]
            plain[split].notes += [f"for training with labels: {error}"] * isinstance(error, UserError)
    return {split: limited(source, config.limit, 0) for split, source in sources.items()}


def _same_bytes(
    sources: Mapping[Split, Source], images: Mapping[Split, Sequence[_Image]]
) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Names of files with the same bytes, in groups, and those trained on and judged by, in pairs."""
    groups: dict[bytes, dict[Split, list[str]]] = {}
    for split, source in sources.items():
        for index, image in enumerate(images[split]):
            if image.digest:
                group = groups.setdefault(image.digest, {name: [] for name in SPLITS})
                group[split].append(source.name(index))
    leaks = [
        (copy, name) for group in groups.values() for copy in group["train"] for name in group["val"] + group["test"]
    ]
    same = [[name for names in group.values() for name in names] for group in groups.values()]
    return [names for names in same if len(names) > 1], leaks


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
    for split in SPLITS:
        part = report.splits.get(split)
        description = markup(part.description) if part else "no images"
        console.print(f"[bold]{split}[/]: {description}", soft_wrap=True)
    for note in report.notes:
        console.print(f"  {markup(note)}", soft_wrap=True)
    parts = report.splits
    _print_counts(console, "shorter side in pixels", [part.sizes for part in parts.values()], parts)
    if any(part.classes for part in parts.values()):
        _print_counts(console, "class", [part.classes for part in parts.values()], parts)
    if report.maps:
        show_maps(report.maps, console)
        _print_list(console, "label maps and classes that segmentation would not take", report.maps.mistakes)
    _print_list(console, "damaged files", [f"{name}: {reason}" for name, reason in report.broken])
    _print_list(console, "files with the same bytes", [" = ".join(group) for group in report.duplicates])
    copies = [f"{a} = {b}" for a, b in report.leaked]
    _print_list(console, "left out of training, being in val or test too", copies)
    console.print(_verdict(report, max_bad), soft_wrap=True)


def _verdict(report: DataReport, max_bad: float) -> str:
    """What training will do with the images."""
    train, val, test = map(report.splits.get, SPLITS)
    if train is None or len(train.broken) == train.images:
        return "[red]training would refuse: there is no image to train on[/]"
    bad = len(train.broken)
    used = train.images - len({name for name, _ in [*report.leaked, *train.broken]})
    if bad >= HANDFUL and bad > max_bad * train.images:
        return f"[red]training would stop: {bad / train.images:.1%} damaged files exceed --max-bad {max_bad:g}[/]"
    if report.maps and (mistakes := report.maps.mistakes):
        mend = f"mend the {len(mistakes):,} mistakes in label maps and classes listed above"
        return f"[red]not ready for segmentation: {mend}[/]"
    usable = val.images - len(val.broken) if val else 0
    once = f", {test.images - len(test.broken):,} (test) to judge on once at the end" if test else ""
    return f"ready: {used:,} images to train on, {usable:,} (val) to evaluate on{once}"


def _print_counts(
    console: Console, title: str, counts: Sequence[dict[str, int]], parts: Mapping[Split, SplitReport]
) -> None:
    table = Table(title, *(f"{part.images:,} {split}" for split, part in parts.items()), box=None)
    rows = list(dict.fromkeys(label for column in counts for label in column))
    for label in rows[:_LINES]:
        table.add_row(markup(label), *(f"{column.get(label, 0):,}" for column in counts))
    if len(rows) > _LINES:
        table.add_row(f"... and {len(rows) - _LINES:,} more")
    console.print(table)


def _print_list(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(f"[bold]{title}[/]: {len(lines):,}")
    for line in lines[:_LINES]:
        console.print(f"  {markup(line)}", soft_wrap=True)
    if len(lines) > _LINES:
        console.print(f"  ... and {len(lines) - _LINES:,} more")
