"""Which images of folders and tars are for training, `val` and `test`, and their classes: decided on paths alone, but
for what is held back."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.config.errors import UserError, given_by, require
from beit.config.run import LayoutName
from beit.config.values import counted
from beit.data.base import SPLITS, Split, check_classes, grouped, notes_on_names, split_of
from beit.data.sources.files import NO_NUMBER, WRONG_NUMBER, Files, FileSource, Listing, Members
from beit.data.sources.holdout import MAPPED, Holdout, hold_back, idle_note


class Part(NamedTuple):
    """What a split has of one listing."""

    listing: Listing
    members: Members
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
    folders, codes = listing.members.folders
    counts = dict(zip(folders, np.bincount(codes).tolist(), strict=True))
    with given_by(f"--data {listing.root}"):
        layout = find_splits(counts, paired=paired, layout=holdout.layout)
    notes = [*listing.notes, *(f"{listing.root}: {note}" for note in layout.notes)]
    parts: dict[Split, Part] = {}
    for split, folder in layout.folders.items():
        beneath = np.array([name.startswith(folder) for name in folders])[codes]
        members = listing.members.take(beneath) if folder else listing.members
        parts[split] = Part(listing, members, folder, notes, layout.doubt)
    if "val" in parts:
        notes += filter(None, [idle_note(listing.root, holdout, f"val is {layout.folders['val']}")])
    if "train" in parts and "val" not in parts:
        train = parts["train"]
        facts = "held back", listing.root, train.folder, holdout.share, holdout.group_by
        held_back, note = holdout.cache.recall(facts, lambda: _hold_back(train, holdout))
        notes += filter(None, [note.item()])
        if len(held_back):
            rest = np.delete(np.arange(len(train.members)), held_back)
            parts["train"] = train._replace(members=train.members.take(rest))
            parts["val"] = train._replace(members=train.members.take(held_back))
    return parts


def _hold_back(train: Part, holdout: Holdout) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """The numbers of the images to hold back, and the same in words."""
    pool = FileSource(unlabeled([train]))
    if holdout.classes_of is None:
        names, codes = _classes(train)
        # In ADE20K's layout images have a label map each; whether those can be read plays no part.
        folders, _ = train.listing.members.folders
        none = (MAPPED,) if "images/" in train.folder and any("annotations/" in name for name in folders) else ()
        rows = [(name,) if name else none for name in names]
        classes = [rows[code] for code in codes.tolist()]
    else:
        classes = [holdout.classes_of(pool.key(index), pool.path(index)) for index in range(len(pool))]
    held_back, note = hold_back(pool, classes, holdout, train.listing.root)
    return np.array(held_back, np.int64), np.array(note)


# ------------------------------------------------------------------------------------------------------------
# Folders


_LIKE_SPLITS = re.compile(r"(?i)(?:\b|_)(?:tr|train(?:ing)?|va|val(?:id(?:ation)?)?|te|test(?:ing)?|dev)\d*(?:\b|_)")
"""What in names says that folders which hold the same ones are splits, beyond those that are called so."""


class Layout(NamedTuple):
    """Where the images of each split lie."""

    folders: Mapping[Split, str]
    """Prefixes of paths: "" for everything, or ending in "/"."""
    notes: Sequence[str] = ()
    """What folders called like splits were taken for, and what is in no split."""
    doubt: str = ""
    """Why the folders may be no classes."""


def find_splits(folders: Mapping[str, int], *, paired: bool, layout: LayoutName | None = None) -> Layout:
    """The splits of a root with so many images in each of its `folders` ("" or ending in "/"), as `layout` says or
    names tell: folders for two splits or more, or for one that stands alone, in the root, in the one folder that an
    archive unpacked to, or in ADE20K's `images/` beside `annotations/`. Beside others, a folder called like a split
    is a class if it holds no folders. Everything else is one pool to train on.

    paired: the label maps in `annotations/` are used. Raises :class:`UserError` where there are two readings.
    """
    top, base, notes = _children(folders, ""), _base_of_splits(folders), list[str]()
    if {"images", "annotations"} <= top.keys():
        base, number = "images/", counted(top["annotations"].total(), "image")
        notes += [] if paired else [f"annotations/: label maps, for segmentation alone ({number})"]
    inner = _children(folders, base)
    names = {name: within.total() for name, within in inner.items()}
    alike = sorted(filter(split_of, names), key=lambda name: (len(name), name))
    named = {split_of(name): name for name in reversed(alike)}  # train/ rather than train_images/
    for twins in grouped(alike if layout != "classes" else (), str.casefold):
        both = " and ".join(f"{base}{name}/" for name in twins)
        require(len(twins) < 2, f"{both} are one split by their names; join them, or say --layout classes")
    if layout == "splits" and not alike:
        raise UserError("holds no folder called train, val or test; name one so, or drop --layout splits")
    if layout is None and len(named) < 2 and (doubt := _two_readings(inner, base)):
        raise UserError(doubt)
    if layout != "classes" and (layout or len(named) > 1 or (alike and not names.keys() - {"", alike[0]})):
        chosen: dict[Split, str] = {split: f"{base}{named[split]}/" for split in SPLITS if split in named}
        notes.append(", ".join(f"{split} is {folder}" for split, folder in chosen.items()))
        rest = {f"{base}{name}/" if name else "loose images": names[name] for name in names}
        notes += [f"{at} ignored ({counted(rest[at], 'image')})" for at in rest if at not in chosen.values()]
        return Layout(chosen, notes)
    notes += [f"{base}{name}/ is a class like what lies beside (else say --layout splits)" for name in alike]
    doubt = "" if layout else _doubt_about_classes(folders, inner, base)
    require(not (doubt and any(map(_LIKE_SPLITS.search, names))), doubt)
    notes += [f"one pool to train on, though {doubt}"] if doubt else []
    return Layout({"train": base}, notes, doubt)


def _two_readings(inner: Mapping[str, Counter[str]], base: str) -> str:
    """Why folders with these `inner` ones may or may not be splits; empty where that is clear."""
    for name, within in inner.items():
        split, own, others = split_of(name), sorted(filter(split_of, within)), inner.keys() - {name}
        if split is None and len({split_of(folder) for folder in own}) > 1:
            return f"{base}{name}/ has {', '.join(own)} inside; name it in --data, or say --layout classes"
        if split and ((within.keys() - {""} and others - {""}) or (others == {""} and split != "train")):
            beside = ", ".join(f"{other}/" if other else "loose images" for other in sorted(others)[:3])
            readings = "splits (which leaves these out) or --layout classes (which trains on all alike)"
            return f"{base}{name}/ may be the images for {split}, or a class like {beside}; say --layout {readings}"
    return ""


def _doubt_about_classes(folders: Iterable[str], inner: Mapping[str, Counter[str]], base: str) -> str:
    """Why those of the `folders` that have the `inner` ones may be no classes; empty where they leave no doubt. An
    only one within is looked into, for archives unpack to train/train/cat."""
    around = {name: f"{base}{name}/{'/'.join([*within, ''] * (len(within) == 1))}" for name, within in inner.items()}
    below = defaultdict[str, set[str]](set)
    for folder in folders:  # once, however many classes there are
        if folder.startswith(base) and (name := folder_of(folder, base)):
            below[name].add(folder_of(folder, around[name]))
    kinds = {frozenset(within) for within in below.values()}
    if len(below) < 2 or len(kinds) > 1 or "" in (first := min(kinds)) or len(first) < 2:
        return ""
    some, some_within = (", ".join(sorted(names)[:3]) for names in (below, first))
    remedy = "if the outer ones are the classes, say --layout classes; if they are splits, call them train, val, test"
    return f"each of {some} holds the folders {some_within}: {remedy}"


def _base_of_splits(folders: Mapping[str, int]) -> str:
    """The folder around those of splits, where an archive unpacked to one; "" where there are none."""
    around = os.path.commonpath([min(folders), max(folders)]).split("/")
    bases = ("".join(f"{name}/" for name in around[:depth]) for depth in range(len(around) + 1))
    return next((base for base in bases if any(map(split_of, _children(folders, base)))), "")


def _children(folders: Mapping[str, int], prefix: str) -> dict[str, Counter[str]]:
    """The folders directly beneath `prefix`, in order, and how many images each has in those beneath itself; both
    times "" stands for images that lie loose."""
    inner = defaultdict[str, Counter[str]](Counter)
    for folder, count in folders.items():
        if folder.startswith(prefix):
            name = folder_of(folder, prefix)
            inner[name][folder_of(folder, f"{prefix}{name}/")] += count
    return dict(sorted(inner.items()))


def folder_of(path: str, prefix: str) -> str:
    """The first folder beneath `prefix`; empty for an image that lies loose."""
    name, slash, _ = path[len(prefix) :].partition("/")
    return name if slash else ""


# ------------------------------------------------------------------------------------------------------------
# Classes: the folder beneath the split, or the number in a tar's `KEY.cls`. Where a tar has both and they correspond,
# the folders decide, so that a packed and an unpacked set are the same.


def label_members(parts: Parts, split: Split, classes: Sequence[str] | None) -> Files:
    """The members of a split that have a label. The training members name the classes unless `classes` does.

    Raises :class:`UserError` for data without classes and for classes that training does not know.
    """
    everything = [part for of_split in parts.values() for part in of_split]
    numbered = any(part.listing.is_numbered for part in everything)
    by_number = numbered and not _numbers_follow_folders(everything)
    origin = "the model" if classes else "the training split"
    for part in everything:
        require(not part.doubt or bool(classes) or by_number, f"--data {part.listing.root}: {part.doubt}")
    if not classes and split != "train" and "train" in parts:
        classes = _label(parts["train"], by_number, None, origin)[1]
    own = parts[split]
    rows, names = _label(own, by_number, classes, origin)
    used = [replace(part.listing, members=part.members.take(row >= 0)) for part, row in zip(own, rows, strict=True)]
    notes, labels = [*unlabeled(own).notes, *notes_on_names(names, f"--data {_where(own)}")], np.concatenate(rows)
    if unused := int((labels < 0).sum()):
        reason = "without a .cls number" if by_number else "outside the class folders"
        notes.append(f"{_where(own)}: {counted(unused, 'image')} {reason} ignored")
    return Files(used, notes, labels[labels >= 0], names)


def without_unlabeled_test(parts: Parts) -> Parts:
    """`parts`, but no `test` where its images have no labels and others have, with a note."""
    test = parts.get("test", [])
    if len(parts) < 2 or not test or any(any(_classes(part)[0]) for part in test):
        return parts
    for part in [part for split, own in parts.items() if split != "test" for part in own]:
        part.notes.append(f"{_where(test)}: test has no labels, so that nothing is judged on it")
    return {split: own for split, own in parts.items() if split != "test"}


def _where(parts: Sequence[Part]) -> str:
    return ", ".join(part.listing.root for part in parts)


def _numbers_follow_folders(parts: Sequence[Part]) -> bool:
    for part in parts:
        (names, codes), (places, own) = _numbers(part), _folders(part)
        pairs = {(names[n], places[f]) for n, f in {*zip(codes.tolist(), own.tolist(), strict=True)} if names[n]}
        numbers, folders = {number for number, _ in pairs}, {folder for _, folder in pairs}
        if not len(pairs) == len(numbers) == len(folders) or "" in folders:
            return False
    return True


def _classes(part: Part) -> tuple[list[str], NDArray[np.int64]]:
    """What the classes are called, "" standing for none, and of every member the number of its one in this list."""
    return _numbers(part) if part.listing.is_numbered else _folders(part)


def _folders(part: Part) -> tuple[list[str], NDArray[np.int64]]:
    names, codes = part.members.folders
    return [folder_of(name, part.folder) for name in names], codes


def _numbers(part: Part) -> tuple[list[str], NDArray[np.int64]]:
    numbers, codes = np.unique(part.members.rows["number"], return_inverse=True)
    for index in np.flatnonzero(part.members.rows["number"] == WRONG_NUMBER)[:1].tolist():
        path, shard, *_ = part.members[index]
        sidecar = f"{part.listing.tars[shard]}:{os.path.splitext(path)[0]}.cls"
        raise UserError(f"--data {sidecar} holds no class number")
    return ["" if number == NO_NUMBER else str(number) for number in numbers.tolist()], codes


def _label(
    parts: Sequence[Part], by_number: bool, classes: Sequence[str] | None, origin: str
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """For each part the labels of its members, -1 for none, and the `classes`, which come from `origin`, or else from
    the data."""
    rows, where = [_numbers(part) if by_number else _folders(part) for part in parts], f"--data {_where(parts)}"
    known = {name for own, _ in rows for name in own} - {""}
    if by_number:
        require(len(parts) == 1, f"{where}: tars with .cls numbers cannot be joined with folders; name one kind")
        require(bool(known), f"{where} has images without .cls numbers; add KEY.cls beside each KEY.jpg")
        largest = max(map(int, known))
        names = tuple(classes or map(str, range(1 + largest)))
        fits = f"but {origin} has only {len(names)} classes"
        require(largest < len(names), f"{where} holds class number {largest}, {fits}")
        number_of = {name: int(name) for name in known}
    else:
        places = ", ".join(os.path.join(part.listing.root, part.folder) for part in parts)
        mend = "put the images of each class in a folder of its own, or name their classes in a file (--labels)"
        require(bool(known), f"--data {places} has no class folders; {mend}")
        names = tuple(classes or sorted(known))
        check_classes(names, known, where, origin)
        number_of = {name: number for number, name in enumerate(names)}
    return [np.array([number_of.get(name, -1) for name in own], np.int64)[codes] for own, codes in rows], names
