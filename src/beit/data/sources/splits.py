"""Which images of folders and tars are for training, `val` and `test`, and their classes: decided on paths alone, but
for what is held back."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from beit.config.errors import UserError, given_by, require
from beit.config.run import LayoutName
from beit.config.values import counted
from beit.data.base import SPLITS, Split, check_classes, grouped, notes_on_names, split_of
from beit.data.sources.files import Files, FileSource
from beit.data.sources.holdout import Holdout, hold_back, idle_note
from beit.data.sources.listing import Listing, Member


class Part(NamedTuple):
    """What a split has of one listing."""

    listing: Listing
    members: list[Member]
    folder: str
    """Where the members lie, to be followed by class folders; "" or ending in "/"."""
    notes: list[str]
    doubt: str = ""
    """Why the folders beneath may be no classes."""

    def alone(self) -> Listing:
        """The listing with these members alone."""
        return replace(self.listing, members=self.members)


Parts = Mapping[Split, list[Part]]


def split_listings(listings: Sequence[Listing], holdout: Holdout, *, paired: bool = False) -> Parts:
    """The parts of `listings` that belong to each split that has images.

    `paired` says that the label maps in `annotations/` are used.
    """
    parts: dict[Split, list[Part]] = {}
    for listing in listings:
        for split, part in _split(listing, holdout, paired).items():
            if part.members:
                parts.setdefault(split, []).append(part)
    return parts


def unlabeled(parts: Sequence[Part]) -> Files:
    """All members of `parts`."""
    return Files([part.alone() for part in parts], [note for part in parts for note in part.notes])


def _split(listing: Listing, holdout: Holdout, paired: bool) -> dict[Split, Part]:
    with given_by(f"--data {listing.root}"):
        layout = find_splits([m.path for m in listing.members], paired=paired, layout=holdout.layout)
    notes = [*listing.notes, *(f"{listing.root}: {note}" for note in layout.notes)]
    parts: dict[Split, Part] = {}
    for split, folder in layout.folders.items():
        members = [member for member in listing.members if member.path.startswith(folder)]
        parts[split] = Part(listing, members, folder, notes, layout.doubt)
    if "val" in parts:
        notes += filter(None, [idle_note(listing.root, holdout, f"val is {layout.folders['val']}")])
    if "train" in parts and "val" not in parts:
        train = parts["train"]
        pool = FileSource(unlabeled([train]))
        if holdout.classes_of is None:
            classes = _class_names(train)
        else:
            classes = [holdout.classes_of(pool.key(index), pool.path(index)) for index in range(len(pool))]
        held_back, note = hold_back(pool, classes, holdout, listing.root)
        notes += filter(None, [note])
        if held_back:
            rest = sorted({*range(len(pool))}.difference(held_back))
            parts["train"] = train._replace(members=[train.members[index] for index in rest])
            parts["val"] = train._replace(members=[train.members[index] for index in held_back])
    return parts


def _class_names(part: Part) -> list[Sequence[str]]:
    """Of every member its class, if it has one, whatever classes are called."""
    if part.listing.numbers:
        numbers = _read_numbers(part)
        return [(str(numbers[member]),) if member in numbers else () for member in part.members]
    return [(name,) if (name := folder_of(member.path, part.folder)) else () for member in part.members]


# ------------------------------------------------------------------------------------------------------------
# Folders


_RATHER_SPLITS = re.compile(
    r"(?i)(?:\b|_)(?:tr|train(?:ing)?|va|val(?:id(?:ation)?)?|te|test(?:ing)?|dev)\d*(?:\b|_)"
)
"""What in names says that folders which hold the same ones are splits, beyond those that are called so."""


class Layout(NamedTuple):
    """Where the images of each split lie."""

    folders: Mapping[Split, str]
    """Prefixes of paths: "" for everything, or ending in "/"."""
    notes: Sequence[str] = ()
    """What folders called like splits were taken for, and what is in no split."""
    doubt: str = ""
    """Why the folders may be no classes."""


def find_splits(paths: Sequence[str], *, paired: bool, layout: LayoutName | None = None) -> Layout:
    """The splits of a root with images at `paths`, as `layout` says or names tell: folders for two splits or more, or
    for one that stands alone, in the root, in the one folder that an archive unpacked to, or in ADE20K's `images/`
    beside `annotations/`. Beside others, a folder called like a split is a class if it holds no folders. Everything
    else is one pool to train on.

    paired: the label maps in `annotations/` are used. Raises :class:`UserError` where there are two readings.
    """
    top, base, notes = children(paths, ""), _base_of_splits(paths), list[str]()
    if {"images", "annotations"} <= top.keys():
        base = "images/"
        maps = f"annotations/ (label maps for segmentation) ignored ({counted(top['annotations'], 'image')})"
        notes += [] if paired else [maps]
    names, inner = children(paths, base), _inner_folders(paths, base)
    alike = sorted(filter(split_of, names), key=lambda name: (len(name), name))
    named = {split_of(name): name for name in reversed(alike)}  # train/ rather than train_images/
    for twins in grouped(alike if layout != "classes" else (), str.casefold):
        both = " and ".join(f"{base}{name}/" for name in twins)
        require(len(twins) < 2, f"{both} are one split by their names; join them, or say --layout classes")
    if layout == "splits" and not alike:
        raise UserError("holds no folder called train, val or test; name one so, or drop --layout splits")
    if layout is None and len(named) < 2 and (doubt := _two_readings(inner, names, base)):
        raise UserError(doubt)
    if layout != "classes" and (layout or len(named) > 1 or (alike and not names.keys() - {"", alike[0]})):
        folders: dict[Split, str] = {split: f"{base}{named[split]}/" for split in SPLITS if split in named}
        notes.append(", ".join(f"{split} is {folder}" for split, folder in folders.items()))
        rest = {f"{base}{name}/" if name else "loose images": names[name] for name in names}
        notes += [f"{at} ignored ({counted(rest[at], 'image')})" for at in rest if at not in folders.values()]
        return Layout(folders, notes)
    notes += [f"{base}{name}/ is a class like what lies beside (else say --layout splits)" for name in alike]
    doubt = "" if layout else _doubt_about_classes(_within_the_only(paths, base, inner))
    require(not (doubt and any(map(_RATHER_SPLITS.search, names))), doubt)
    notes += [f"one pool to train on, though {doubt}"] if doubt else []
    return Layout({"train": base}, notes, doubt)


def _two_readings(inner: Mapping[str, set[str]], names: Mapping[str, int], base: str) -> str:
    """Why folders with these `inner` ones, among `names`, may or may not be splits; empty where that is clear."""
    for name, within in inner.items():
        split, own, others = split_of(name), sorted(filter(split_of, within)), names.keys() - {name}
        if split is None and len({split_of(folder) for folder in own}) > 1:
            return f"{base}{name}/ has {', '.join(own)} inside; name it in --data, or say --layout classes"
        if split and ((within - {""} and others - {""}) or (others == {""} and split != "train")):
            beside = ", ".join(f"{other}/" if other else "loose images" for other in sorted(others)[:3])
            readings = "splits (which leaves these out) or --layout classes (which trains on all alike)"
            return f"{base}{name}/ may be the images for {split}, or a class like {beside}; say --layout {readings}"
    return ""


def _doubt_about_classes(inner: Mapping[str, set[str]]) -> str:
    """Why folders with these `inner` ones may be no classes; empty where they leave no doubt."""
    kinds = {frozenset(folders) for folders in inner.values()}
    if len(inner) < 2 or len(kinds) > 1 or "" in (first := min(kinds)) or len(first) < 2:
        return ""
    some, within = (", ".join(sorted(folders)[:3]) for folders in (inner, first))
    remedy = "if the outer ones are the classes, say --layout classes; if they are splits, call them train, val, test"
    return f"each of {some} holds the folders {within}: {remedy}"


def _within_the_only(paths: Sequence[str], base: str, inner: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The `inner` folders, and for an only one those that it holds, as archives unpack: train/train/cat."""
    alone = {name: next(iter(within)) for name, within in inner.items() if len(within) == 1}
    only = {name: f"{base}{name}/{folder}/" for name, folder in alone.items() if folder}
    below = defaultdict[str, set[str]](set)
    for path in paths if only else ():  # once, however many classes there are
        if path.startswith(base) and (name := folder_of(path, base)) in only:
            below[name].add(folder_of(path, only[name]))
    return {**inner, **below}


def _base_of_splits(paths: Sequence[str]) -> str:
    """The folder around those of splits, where an archive unpacked to one; "" where there are none."""
    around = os.path.commonpath([os.path.dirname(path) for path in (min(paths), max(paths))]).split("/")
    bases = ("".join(f"{name}/" for name in around[:depth]) for depth in range(len(around) + 1))
    return next((base for base in bases if any(map(split_of, children(paths, base)))), "")


def _inner_folders(paths: Sequence[str], prefix: str) -> dict[str, set[str]]:
    """Of the folders directly beneath `prefix` the names of those beneath; "" for images that lie there."""
    inner = defaultdict[str, set[str]](set)
    for path in paths:
        if path.startswith(prefix) and (name := folder_of(path, prefix)):
            inner[name].add(folder_of(path, f"{prefix}{name}/"))
    return inner


def children(paths: Sequence[str], prefix: str) -> dict[str, int]:
    """Names of the folders directly beneath `prefix` and how many images each holds; "" for loose images."""
    counts = Counter(folder_of(path, prefix) for path in paths if path.startswith(prefix))
    return dict(sorted(counts.items()))


def folder_of(path: str, prefix: str) -> str:
    """The first folder beneath `prefix`; empty for an image that lies loose."""
    name, slash, _ = path[len(prefix) :].partition("/")
    return name if slash else ""


# ------------------------------------------------------------------------------------------------------------
# Classes: the folder beneath the split, or the number in a tar's `KEY.cls`. Where a tar has both and they correspond,
# the folders decide, so that a packed and an unpacked set are the same.

_MOST_CLASSES = 1_000_000  # a number beyond is damage, and a table of that length an attack


_Rows = list[dict[Member, int]]
"""For each part the members that have a label, with it."""


def label_members(parts: Parts, split: Split, classes: Sequence[str] | None) -> Files:
    """The members of a split that have a label. The training members name the classes unless `classes` does.

    Raises :class:`UserError` for data without classes and for classes that training does not know.
    """
    everything = [part for of_split in parts.values() for part in of_split]
    numbered = any(part.listing.numbers for part in everything)
    by_number = numbered and not _numbers_follow_folders(everything)
    label = _by_number if by_number else _by_folder
    origin = "the model" if classes else "the training split"
    for part in everything:
        require(not part.doubt or bool(classes) or by_number, f"--data {part.listing.root}: {part.doubt}")
    if not classes and split != "train" and "train" in parts:
        classes = label(parts["train"], None, origin)[1]
    own = parts[split]
    rows, names = label(own, classes, origin)
    listings = [replace(part.listing, members=list(row)) for part, row in zip(own, rows, strict=True)]
    notes = [*unlabeled(own).notes, *notes_on_names(names, f"--data {_where(own)}")]
    if unused := sum(len(part.members) - len(row) for part, row in zip(own, rows, strict=True)):
        reason = "without a .cls number" if by_number else "outside the class folders"
        notes.append(f"{_where(own)}: {counted(unused, 'image')} {reason} ignored")
    return Files(listings, notes, [number for row in rows for number in row.values()], names)


def without_unlabeled_test(parts: Parts) -> Parts:
    """`parts`, but no `test` where its images have no labels and others have, with a note."""
    test = parts.get("test", [])
    if len(parts) < 2 or not test or any(name for part in test for row in _class_names(part) for name in row):
        return parts
    for part in [part for split, own in parts.items() if split != "test" for part in own]:
        part.notes.append(f"{_where(test)}: test has no labels, so that nothing is judged on it")
    return {split: own for split, own in parts.items() if split != "test"}


def _where(parts: Sequence[Part]) -> str:
    return ", ".join(part.listing.root for part in parts)


def _numbers_follow_folders(parts: Sequence[Part]) -> bool:
    for part in parts:
        if part.listing.numbers:
            numbered = _read_numbers(part)
            pairs = {(number, folder_of(member.path, part.folder)) for member, number in numbered.items()}
            numbers, folders = {number for number, _ in pairs}, {folder for _, folder in pairs}
            if not len(pairs) == len(numbers) == len(folders) or "" in folders:
                return False
    return True


def _by_folder(parts: Sequence[Part], classes: Sequence[str] | None, origin: str) -> tuple[_Rows, tuple[str, ...]]:
    where = _where(parts)
    rows = [{m: folder_of(m.path, part.folder) for m in part.members} for part in parts]
    folders = {name for row in rows for name in row.values()} - {""}
    if not folders:
        places = ", ".join(os.path.join(part.listing.root, part.folder) for part in parts)
        raise UserError(f"--data {places} has no class folders; put the images of each class in a folder of its own")
    names = tuple(classes or sorted(folders))
    check_classes(names, folders, f"--data {where}", origin)
    number_of = {name: number for number, name in enumerate(names)}
    return [{member: number_of[name] for member, name in row.items() if name} for row in rows], names


def _by_number(parts: Sequence[Part], classes: Sequence[str] | None, origin: str) -> tuple[_Rows, tuple[str, ...]]:
    where = _where(parts)
    if len(parts) > 1:
        raise UserError(f"--data {where}: tars labelled by .cls numbers cannot be joined with folders; name one kind")
    numbers = _read_numbers(parts[0])
    require(bool(numbers), f"--data {where} has images without .cls numbers; add KEY.cls beside each KEY.jpg")
    names = tuple(classes or map(str, range(1 + max(numbers.values()))))
    if (largest := max(numbers.values())) >= len(names):
        raise UserError(f"--data {where} holds class number {largest}, but {origin} has only {len(names)} classes")
    return [numbers], names


def _read_numbers(part: Part) -> dict[Member, int]:
    """Every member that has a number, with it."""
    listing, numbers = part.listing, dict[Member, int]()
    sidecars = {member: found for member in part.members if (found := _sidecar(listing, member)) is not None}
    in_place = sorted(set(sidecars.values()), key=lambda member: (member.shard, member.offset))
    # Shard by shard, for there may be more of them than a process can have open.
    for shard, of_shard in groupby(in_place, lambda member: member.shard):
        with open(listing.tars[shard], "rb") as file:
            for sidecar in of_shard:
                file.seek(sidecar.offset)
                text = file.read(min(sidecar.size, 32)).strip()
                if not text.isdigit() or int(text) >= _MOST_CLASSES:
                    raise UserError(f"--data {listing.tars[shard]}:{sidecar.path} holds no class number")
                numbers[sidecar] = int(text)
    return {member: numbers[sidecar] for member, sidecar in sidecars.items()}


def _sidecar(listing: Listing, member: Member) -> Member | None:
    """The `KEY.cls` of a member, if it has one. KEY ends at the last dot, or by WebDataset's rule at the first."""
    folder, name = os.path.split(member.path)
    shortest = os.path.join(folder, name.partition(".")[0])
    sidecar = listing.numbers.get(f"{member.shard}:{os.path.splitext(member.path)[0]}")
    return sidecar or listing.numbers.get(f"{member.shard}:{shortest}")
