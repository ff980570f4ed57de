"""`beit check`: look a data set over before anything is trained on it."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from typing import NamedTuple, cast

from rich.console import Console
from rich.table import Table

from beit.config.errors import UserError
from beit.config.run import DataConfig, TrainingConfig
from beit.config.use import CheckConfig, Outcome
from beit.data.base import SPLITS, Source, Split, grouped
from beit.data.decode import ImageError
from beit.data.label_file import classes_in_file
from beit.data.label_maps.pairs import IMAGES
from beit.data.loaders import HANDFUL
from beit.data.sources.holdout import Pool
from beit.data.sources.opening import classes_of_images, open_splits
from beit.data.sources.subsets import limited, origin
from beit.data.workers import fetch_each
from beit.recipes.check.maps import MapReport, inspect_maps, show_maps
from beit.stages.session import holdout_of, open_data, open_images
from beit.stages.tasks.labels import open_with_labels
from beit.training.console import bar
from beit.untrusted import markup

_STEPS = (0, 32, 64, 128, 224, 384, 512, 1024)
_SIDES = {low: f"{low} to {high - 1}" for low, high in pairwise(_STEPS)} | {0: "under 32", 1024: "1024 and more"}
_LINES = 20  # of a list that are printed; the report object holds all
RARE = 10
"""Images of a class to train on, below which little can be learned of it."""
UNLABELED, LABELED, SEGMENT = "tokenizer and pretrain", "finetune and probe", "segmentation"
"""The verbs that need no labels, those that need classes, and label maps."""


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
    conflicts: list[str]
    """Files with the same bytes that have different labels, one line for each group."""
    refusals: dict[str, str]
    """Why training would refuse, by the verbs that would."""
    notes: list[str]
    """What folders and images were taken for, what training ignores, and why."""
    maps: MapReport | None = None
    """Where there are label maps: what they hold."""

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Damaged files of all splits."""
        return [bad for part in self.splits.values() for bad in part.broken]


def check(config: CheckConfig) -> Outcome:
    """Read every image of `config.data` once and print what was found: a :class:`DataReport`, `results` by its
    fields."""
    report = inspect(config)
    show(report, Console(), config.max_bad)
    if any(line.startswith("ready") for line in verdicts(report, config.max_bad)):
        stated = {"--labels": config.labels, "--label-maps": config.label_maps}
        labels = [word for flag, value in stated.items() if value for word in (flag, value)]
        print(f"next: beit plan {shlex.join([*config.sources, *labels])}")
    return Outcome(config, vars(report))


def inspect(config: CheckConfig) -> DataReport:
    """Decode every image of all splits; prints nothing but a bar on a terminal.

    Raises :class:`UserError` for what no verb opens: no such folder, no image, a compressed tar.
    """
    sources = open_labeled(config)
    classes_of = None if config.labels is None else classes_in_file(config.labels)
    found: list[_Image] = []
    with bar("reading images", sum(map(len, sources.values()))) as progress:
        for split, source in sources.items():
            rows = classes_of_images(source, classes_of)
            for row, image in zip(rows, fetch_each(_inspect, source, config.workers), strict=True):
                found.append(image._replace(split=split, classes=row))
                progress.move()
    groups = [[found[i] for i in group] for group in grouped(range(len(found)), lambda i: found[i].digest)]
    same = [group for group in groups if len(group) > 1]
    has_maps = config.label_maps or any(source.key(0).startswith(IMAGES) for source in sources.values())
    return DataReport(
        splits={
            split: _split_report(source, [x for x in found if x.split == split]) for split, source in sources.items()
        },
        duplicates=[[image.name for image in group] for group in same],
        leaked=[(a.name, b.name) for group in same for a in group for b in group if a.split == "train" != b.split],
        conflicts=[
            " = ".join(f"{image.name} ({', '.join(image.classes) or 'no class'})" for image in group)
            for group in same
            if len({tuple(sorted(image.classes)) for image in group}) > 1
        ],
        refusals=_refusals(config),
        notes=list(dict.fromkeys(note for source in sources.values() for note in source.notes)),
        maps=inspect_maps(config) if has_maps else None,
    )


def open_labeled(config: CheckConfig) -> dict[Split, Source]:
    """The splits that have images, with labels where there are any. UserError where none has."""
    holdout = holdout_of(config)
    plain = open_data(config, open_splits, holdout)
    labeled = open_data(config, partial(open_splits, labeled=True), holdout)
    sources: dict[Split, Source] = {}
    for split in plain:
        try:
            sources[split] = labeled[split]
        except (KeyError, UserError):  # no labels, or wrong ones
            sources[split] = plain[split]
    return {split: limited(source, config.limit, 0) for split, source in sources.items()}


def _refusals(config: CheckConfig) -> dict[str, str]:
    """What the verbs say against the data, which open it as they would."""
    values = {field.name: getattr(config, field.name) for field in fields(DataConfig)}
    training, refusals = TrainingConfig(out="", **values), dict[str, str]()
    labeled = partial(open_with_labels, multilabel=config.labels is not None)
    for verbs, opener in ((UNLABELED, open_images), (LABELED, labeled)):
        try:
            opener(training)
        except UserError as error:
            refusals[verbs] = str(error)
    return refusals


# ------------------------------------------------------------------------------------------------------------
# Reading the images


class _Image(NamedTuple):
    """What one image is, or why there is none."""

    name: str
    digest: bytes | None = None
    """Hash of its bytes, where it can be read."""
    shorter_side: int = 0
    damage: tuple[str, str] | None = None
    split: Split = "train"
    classes: Sequence[str] = ()


def _inspect(source: Source, index: int) -> _Image:
    image, (pool, place) = _Image(source.name(index)), origin(source, index)
    try:
        image = image._replace(digest=hashlib.blake2b(cast(Pool, pool).read(place), digest_size=16).digest())
        return image._replace(shorter_side=min(pool.image(place).shape[1:]))
    except ImageError as error:
        return image._replace(damage=(error.name, error.reason))


def _split_report(source: Source, images: Sequence[_Image]) -> SplitReport:
    classes = Counter(dict.fromkeys(source.classes or (), 0))
    classes.update(name for image in images for name in image.classes)
    sides = Counter(max(x for x in _SIDES if x <= image.shorter_side) for image in images if not image.damage)
    return SplitReport(
        description=source.describe(),
        images=len(source),
        classes=dict(classes),
        sizes={_SIDES[side]: sides[side] for side in sorted(sides)},
        broken=[image.damage for image in images if image.damage],
    )


# ------------------------------------------------------------------------------------------------------------
# Printing


def show(report: DataReport, console: Console, max_bad: float = 0.05) -> None:
    """Print `report` for people."""
    parts = report.splits
    for split in SPLITS:
        description = markup(parts[split].description) if split in parts else "no images"
        console.print(f"[bold]{split}[/]: {description}", soft_wrap=True)
    for note in dict.fromkeys([*report.notes, *(report.maps.notes if report.maps else [])]):
        console.print(f"  {markup(note)}", soft_wrap=True)
    _print_counts(console, "shorter side in pixels", [part.sizes for part in parts.values()], parts)
    if any(part.classes for part in parts.values()):
        _print_counts(console, "class", [part.classes for part in parts.values()], parts)
    rare = {name: n for name, n in parts["train"].classes.items() if n < RARE} if "train" in parts else {}
    lists: dict[str, Sequence[str]] = {
        f"classes of fewer than {RARE} images to train on": [f"{name}: {n}" for name, n in rare.items()],
        "damaged files": [f"{name}: {reason}" for name, reason in report.broken],
        "files with the same bytes": [" = ".join(group) for group in report.duplicates],
        "files with the same bytes and different labels": report.conflicts,
        "left out of training, being in val or test too": [f"{a} = {b}" for a, b in report.leaked],
    }
    if report.maps:
        show_maps(report.maps, console)
        lists["label maps and classes that segmentation would not take"] = report.maps.mistakes
    for title, lines in lists.items():
        console.print(f"[bold]{title}[/]: {len(lines):,}")
        for line in lines[:_LINES]:
            console.print(f"  {markup(line)}", soft_wrap=True)
        if len(lines) > _LINES:
            console.print(f"  ... and {len(lines) - _LINES:,} more")
    for verdict in verdicts(report, max_bad):
        console.print(markup(verdict), soft_wrap=True, style="red" if "not ready" in verdict else None)


def verdicts(report: DataReport, max_bad: float) -> list[str]:
    """What the verbs will do with the images, one line each."""
    train, val, test = map(report.splits.get, SPLITS)
    refusals, bad = dict(report.refusals), len(train.broken) if train else 0
    if train and ((bad >= HANDFUL and bad > max_bad * train.images) or bad == train.images):
        stop = f"{bad / train.images:.1%} damaged files exceed --max-bad {max_bad:g}"
        refusals = dict.fromkeys((UNLABELED, LABELED, SEGMENT), stop)
    elif report.maps and report.maps.mistakes:
        mistakes = len(report.maps.mistakes)
        refusals[SEGMENT] = f"mend the {mistakes:,} mistakes in label maps and classes listed above"
    used = train.images - len({name for name, _ in [*report.leaked, *train.broken]}) if train else 0
    usable = val.images - len(val.broken) if val else 0
    once = f", {test.images - len(test.broken):,} (test) to judge on once at the end" if test else ""
    about = f"{used:,} images to train on, {usable:,} (val) to evaluate on{once}"
    tasks = (UNLABELED, SEGMENT if report.maps else LABELED)
    return [f"not ready for {x}: {refusals[x]}" if x in refusals else f"ready for {x}: {about}" for x in tasks]


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
