"""What `beit check` found, for people: on the terminal, and as a page with pictures."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.console import Console

from beit.config.run import DataConfig
from beit.config.use import CheckConfig, JourneyConfig
from beit.config.values import counted
from beit.data.base import SPLITS, Source, Split, grouped
from beit.data.loaders import HANDFUL
from beit.recipes.check.alike import Look
from beit.untrusted import markup
from beit.verdicts.rules import few_images
from beit.visualize.page import Section, write_page
from beit.visualize.pictures import to_pil

UNLABELED, LABELED, SEGMENT = "tokenizer and pretrain", "finetune and probe", "segmentation"
"""The verbs that need no labels, those that need classes, and label maps."""
LINES, ROWS, BESIDE = 20, 50, 4
"""Of a list that a terminal shows, of pictures on the page, and pictures in a row; the report object holds all."""


class CheckedImage(NamedTuple):
    """What one image is, or why there is none."""

    split: Split
    number: int
    """In the split."""
    classes: Sequence[str] = ()
    digest: bytes | None = None
    """Hash of its bytes, where it can be read."""
    look: Look | None = None
    """By which those that look alike are found; see :func:`beit.recipes.check.alike.look_of`."""
    shorter_side: int = 0
    damage: str | None = None

    @property
    def place(self) -> str:
        """Its split and its classes."""
        return ", ".join([self.split, *self.classes])


@dataclass
class MapReport:
    """What the label maps of a set hold."""

    images: set[str] = field(default_factory=set)
    """The names of those that have one."""
    pixels: dict[Split, Counter[str]] = field(default_factory=dict)
    """How many pixels have a class, in each split."""
    mistakes: list[str] = field(default_factory=list)
    """What segmentation would refuse, or leave out as damaged, one line each."""
    notes: list[str] = field(default_factory=list)
    ignores_zero: bool = False
    """Whether 0 stands for no class, by numbers or names."""


@dataclass(frozen=True)
class DataReport:
    """What :func:`beit.recipes.check.run.inspect` found."""

    splits: dict[Split, str]
    """Those that have images, described; `val` is what training would hold back where the data has none."""
    images: dict[str, CheckedImage]
    """By their names."""
    classes: dict[str, Counter[Split]]
    """How many images of each there are in each split, damaged ones included; empty without classes."""
    duplicates: list[list[str]]
    """Files with the same bytes."""
    alike: list[list[str]]
    """Images that look alike though their bytes differ."""
    refusals: dict[str, str]
    """Why training would refuse, by the verbs that would."""
    notes: list[str]
    """What folders and images were taken for, what training ignores, and why."""
    maps: MapReport | None = None
    """Where there are label maps: what they hold."""

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Name and reason of every damaged file."""
        return [(name, image.damage) for name, image in self.images.items() if image.damage]

    @property
    def conflicts(self) -> list[list[str]]:
        """The files with the same bytes that have different labels."""
        return [group for group in self.duplicates if len({frozenset(self.images[x].classes) for x in group}) > 1]

    def across(self, groups: list[list[str]]) -> list[list[str]]:
        """Those of the groups of which some are to be trained on and others to be judged on."""
        return [group for group in groups if len({self.images[name].split == "train" for name in group}) > 1]


def introduction(report: DataReport) -> list[str]:
    """What each folder and the images were taken for."""
    lines = [f"{split}: {report.splits.get(split, 'no images')}" for split in SPLITS]
    if sides := sorted(image.shorter_side for image in report.images.values() if not image.damage):
        spread = f" to {sides[-1]} px, half of them up to {sides[len(sides) // 2]}" if sides[0] < sides[-1] else " px"
        lines.append(f"shorter sides of {sides[0]}{spread}")
    return [*lines, *dict.fromkeys([*report.notes, *(report.maps.notes if report.maps else [])])]


def sections(report: DataReport) -> list[Section]:
    """What was found, part by part."""
    counts = {name: ", ".join(f"{n:,} {split}" for split, n in x.items()) for name, x in report.classes.items()}
    order = sorted(counts, key=lambda name: report.classes[name]["train"])
    rarest_first = [f"{name}: {counts[name] or 'none'}" for name in order]
    lists = {"classes, the rarest in training first": rarest_first} if order else {}
    lists |= {"damaged files": [f"{name}: {reason}" for name, reason in report.broken]}
    if report.maps:
        lists |= {"classes by their share of pixels": shares(report.maps)}
        lists |= {"label maps and classes that segmentation would not take": report.maps.mistakes}
    groups = {
        "files with the same bytes": report.duplicates,
        "of these, with different labels": report.conflicts,
        "of these, left out of training, being in val or test too": report.across(report.duplicates),
        "groups of images that look alike": report.alike,
        "of these, in training and in val or test": report.across(report.alike),
    }
    parts = [Section(title, lines) for title, lines in lists.items()]
    for title, members in groups.items():
        rows = [[(name, report.images[name].place) for name in group] for group in members]
        lines = [" = ".join(f"{name} ({place})" for name, place in row) for row in rows]
        parts.append(Section(title, lines, [row[:BESIDE] for row in rows[:ROWS]]))
    return parts


def shares(report: MapReport) -> list[str]:
    """The share of each class of `report` in the pixels of each split, one line each."""
    names = dict.fromkeys(name for counts in report.pixels.values() for name in sorted(counts))
    parts = {split: (counts, max(1, counts.total())) for split, counts in report.pixels.items()}
    return [f"{x}: {', '.join(f'{n[x] / total:.2%} {split}' for split, (n, total) in parts.items())}" for x in names]


def verdicts(report: DataReport, max_bad: float) -> list[str]:
    """What the verbs will do with the images, one line each, after what flatters a score."""
    labeled = {name for name, image in report.images.items() if image.classes}
    task, known = (SEGMENT, report.maps.images) if report.maps else (LABELED, labeled)
    ready = (_verdict(report, *use, max_bad) for use in ((UNLABELED, {*report.images}), (task, known)))
    return [*flattery(report), *ready]


def flattery(report: DataReport) -> list[str]:
    """A warning of what flatters a score, if anything does."""
    judged = sum(report.images[name].split != "train" for group in report.across(report.alike) for name in group)
    alike = f"warning: {counted(judged, 'image')} of val or test with one that looks alike in training"
    return [f"{alike}, which flatters scores; keep both on one side (--group-by), or take them out"] * (judged > 0)


def _verdict(report: DataReport, verbs: str, names: Set[str], max_bad: float) -> str:
    """What `verbs` will do, which use the images of these names."""
    images = {name: report.images[name] for name in names}
    whole, damaged = (Counter(x.split for x in images.values() if bool(x.damage) == bad) for bad in (False, True))
    bad, total = damaged["train"], whole["train"] + damaged["train"]
    refusal = report.refusals.get(verbs)
    if total and ((bad >= HANDFUL and bad > max_bad * total) or bad == total):
        refusal = f"{bad / total:.1%} damaged files exceed --max-bad {max_bad:g}"
    elif verbs == SEGMENT and report.maps and report.maps.mistakes:
        refusal = f"mend {counted(len(report.maps.mistakes), 'mistake')} in label maps and classes, listed above"
    if refusal:
        return f"not ready for {verbs}: {refusal}"
    alike = (name for group in report.across(report.duplicates) for name in group if name in images)
    copies = [name for name in alike if images[name].split == "train"]
    once = f", {whole['test']:,} (test) to judge on once at the end" if "test" in report.splits else ""
    to_train = counted(whole["train"] - len(copies), "image")
    about = f"{to_train} to train on, {whole['val']:,} (val) to evaluate on{once}"
    few = "" if verbs == UNLABELED else few_images(whole["test"] or whole["val"])
    return f"ready for {verbs}: {about}{few and f'; {few}'}"


# ------------------------------------------------------------------------------------------------------------
# Where it is shown


def show(report: DataReport, console: Console, max_bad: float = 0.05) -> None:
    """Print `report`, with the first lines of each part."""
    for line in introduction(report):
        console.print(markup(line), soft_wrap=True)
    for title, lines, _ in sections(report):
        console.print(f"[bold]{title}[/]: {len(lines):,}")
        for line in lines[:LINES]:
            console.print(f"  {markup(line)}", soft_wrap=True)
        if len(lines) > LINES:
            console.print(f"  ... and {len(lines) - LINES:,} more")
    for verdict in verdicts(report, max_bad):
        style = "red" if "not ready" in verdict else "yellow" if "warning" in verdict else None
        console.print(markup(verdict), soft_wrap=True, style=style)


def present(report: DataReport, config: CheckConfig, sources: Mapping[Split, Source]) -> None:
    """Print `report`, write it to the page `config.html` with a few images of each class and those that are equal or
    alike, and say the next command."""

    def picture_of(name: str) -> Image.Image:
        return to_pil(sources[report.images[name].split].image(report.images[name].number))

    show(report, Console(), config.max_bad)
    lines = verdicts(report, config.max_bad)
    if config.html is not None:
        whole = {name: image.place for name, image in report.images.items() if not image.damage}
        few = [[(x, whole[x]) for x in group[:BESIDE]] for group in grouped(whole, whole.__getitem__)[:ROWS]]
        parts = [Section("", [*introduction(report), *lines]), Section("a few images of each class", rows=few)]
        write_page(Path(config.html), f"beit check {' '.join(config.sources)}", parts + sections(report), picture_of)
        print(f"wrote {config.html}")
    if any(line.startswith("ready") for line in lines):
        said = {field.name: getattr(config, field.name) for field in fields(DataConfig)}
        journey = JourneyConfig(**said, reduce_zero_label=report.maps is not None and report.maps.ignores_zero)
        print(f"next: {shlex.join(['beit', 'plan', *journey.flags()])}")
