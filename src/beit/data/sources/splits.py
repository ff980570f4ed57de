"""Which images are for training and which for evaluation, decided on relative paths alone; and their classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from beit.config.errors import UserError
from beit.data.base import Split, check_classes, stable_hash
from beit.data.sources.listing import EVALUATION_NAMES, Listing, Member


class Part(NamedTuple):
    """What a split has of one listing."""

    listing: Listing
    members: list[Member]
    training: list[Member]
    """What is trained on, whatever the split."""
    folder: str
    """Where the members lie, to be followed by class folders; "" or ending in "/"."""
    training_folder: str
    notes: list[str]


class Files(NamedTuple):
    """What a source is opened with."""

    listings: list[Listing]
    """Whose members are those to use."""
    notes: list[str]
    labels: list[int] | None = None
    """Of all members in order."""
    classes: tuple[str, ...] | None = None


def choose_members(
    listings: Sequence[Listing], split: Split, holdout: float, *, paired: bool = False
) -> list[Part]:
    """What of `listings` belongs to `split`; :class:`UserError` when that is nothing.

    `paired` says that the label maps in `annotations/` are used.
    """
    parts = [_part(listing, split, holdout, paired) for listing in listings]
    if not any(part.members for part in parts):
        names = ", ".join(listing.root for listing in listings)
        if split == "train":
            remedy = "add images/training" if paired else "name that folder itself to train on it"
            raise UserError(f"--data {names} holds an evaluation split alone; {remedy}")
        raise UserError(f"--data {names} leaves no image for evaluation; add images or raise --holdout")
    return parts


def unlabeled(parts: Sequence[Part]) -> Files:
    """All members of `parts`."""
    listings = [replace(part.listing, members=part.members) for part in parts]
    return Files(listings, [note for part in parts for note in part.notes])


def _part(listing: Listing, split: Split, holdout: float, paired: bool) -> Part:
    train, evaluation, notes = _find_splits(listing, paired)
    notes = [*listing.notes, *notes]
    training = [] if train is None else [m for m in listing.members if m.path.startswith(train)]
    train = train or ""
    if evaluation is not None:
        held_back = [m for m in listing.members if m.path.startswith(evaluation)]
    else:
        evaluation = train
        hashes = {member: stable_hash(member.path) for member in training}
        # Those whose hash is in the first share of all hashes; at least one image, where there are two.
        divisible = holdout > 0 and len(hashes) > 1
        bound = max(int(holdout * 2**64), min(hashes.values()) + 1) if divisible else 0
        held_back = [m for m, value in hashes.items() if value < bound]
        if held_back:
            notes.append(
                f"{listing.root}: {len(held_back):,} of {len(training):,} images held back for evaluation"
            )
        training = [m for m, value in hashes.items() if value >= bound]
    if split == "train":
        return Part(listing, training, training, train, train, notes)
    return Part(listing, held_back, training, evaluation, train, notes)


def _find_splits(listing: Listing, paired: bool) -> tuple[str | None, str | None, list[str]]:
    """The folders of the two splits, and notes on what is in neither: `train/` beside `val/`, `validation/`, `valid/`
    or `test/` (the first of them); ADE20K's `images/{training,validation}/` beside `annotations/`; otherwise
    everything is one pool.

    No folder for training means that there is nothing to train on, none for evaluation that a share is held back.
    """
    paths = [member.path for member in listing.members]
    top = _children(paths, "")
    base = ""
    train_names: tuple[str, ...] = ("train",)
    ignored: dict[str, int] = {}
    if {"images", "annotations"} <= top.keys():
        base, train_names = "images/", ("training", "train")
        ignored = {} if paired else {"annotations/ (label maps for segmentation)": top["annotations"]}
    elif len(top) == 1 and "train" in _children(paths, f"{next(iter(top))}/"):
        base = f"{next(iter(top))}/"  # an unpacked archive: everything lies in one folder
    names = _children(paths, base)
    train = next((name for name in train_names if name in names), None)
    evaluation = next((name for name in EVALUATION_NAMES if name in names), None)
    if train is not None:
        others = {name: count for name, count in names.items() if name not in (train, evaluation)}
        ignored |= {f"{base}{name}/" if name else "loose images": count for name, count in others.items()}
    notes = [f"{listing.root}: {name} ignored ({count:,} images)" for name, count in ignored.items()]
    if train is None:
        alone = evaluation is not None and len(names) == 1
        return (None, f"{base}{evaluation}/", notes) if alone else (base, None, notes)
    return f"{base}{train}/", f"{base}{evaluation}/" if evaluation else None, notes


def _children(paths: Sequence[str], prefix: str) -> dict[str, int]:
    """Names of the folders directly beneath `prefix` and how many images each holds; "" for loose images."""
    counts = Counter(_folder(path, prefix) for path in paths if path.startswith(prefix))
    return dict(sorted(counts.items()))


def _folder(path: str, prefix: str) -> str:
    """The first folder beneath `prefix`; empty for an image that lies loose."""
    name, slash, _ = path[len(prefix) :].partition("/")
    return name if slash else ""


# ------------------------------------------------------------------------------------------------------------
# Classes: the folder beneath the split, or the number in a tar's `KEY.cls`. Where a tar has both and they correspond,
# the folders decide, so that a packed and an unpacked set are the same.

_MOST_CLASSES = 1_000_000  # a number beyond is damage, and a table of that length an attack


_Labeled = tuple[list[dict[Member, int]], tuple[str, ...]]
"""For each part the members that have a label, with it; and the classes."""


def label_members(parts: Sequence[Part], classes: Sequence[str] | None) -> Files:
    """The members of `parts` that have a label. The training members name the classes unless `classes` does.

    Raises :class:`UserError` for data without classes and for classes that training does not know.
    """
    numbered = any(part.listing.numbers for part in parts)
    label = _by_number if numbered and not _numbers_follow_folders(parts) else _by_folder
    where = ", ".join(part.listing.root for part in parts)
    rows, names = label(parts, classes, where)
    listings = [replace(part.listing, members=list(row)) for part, row in zip(parts, rows, strict=True)]
    notes = unlabeled(parts).notes
    if unused := sum(len(part.members) - len(row) for part, row in zip(parts, rows, strict=True)):
        reason = "outside the class folders" if label is _by_folder else "without a .cls number"
        notes.append(f"{where}: {unused:,} images {reason} ignored")
    return Files(listings, notes, [number for row in rows for number in row.values()], names)


def _numbers_follow_folders(parts: Sequence[Part]) -> bool:
    for part in parts:
        if part.listing.numbers:
            numbered = _read_numbers(part.listing, part.members)
            pairs = {(number, _folder(member.path, part.folder)) for member, number in numbered.items()}
            numbers, folders = {number for number, _ in pairs}, {folder for _, folder in pairs}
            if not len(pairs) == len(numbers) == len(folders) or "" in folders:
                return False
    return True


def _by_folder(parts: Sequence[Part], classes: Sequence[str] | None, where: str) -> _Labeled:
    rows = [{member: _folder(member.path, part.folder) for member in part.members} for part in parts]
    folders = {name for row in rows for name in row.values()} - {""}
    if not folders:
        raise UserError(
            f"--data {where} has no class folders; put the images of each class in a folder of its own"
        )
    training = {_folder(member.path, part.training_folder) for part in parts for member in part.training}
    names = tuple(classes or sorted(training - {""} or folders))
    check_classes(names, folders, f"--data {where}", "the model" if classes else "the training split")
    number_of = {name: number for number, name in enumerate(names)}
    return [{member: number_of[name] for member, name in row.items() if name} for row in rows], names


def _by_number(parts: Sequence[Part], classes: Sequence[str] | None, where: str) -> _Labeled:
    if len(parts) > 1:
        raise UserError(
            f"--data {where}: tars labelled by .cls numbers cannot be joined with folders; name one kind"
        )
    [part] = parts
    numbers = _read_numbers(part.listing, part.members)
    if not numbers:
        raise UserError(f"--data {where} has images without .cls numbers; add KEY.cls beside each KEY.jpg")
    training = _read_numbers(part.listing, part.training) or numbers
    names = tuple(classes or map(str, range(1 + max(training.values()))))
    if (largest := max(numbers.values())) >= len(names):
        raise UserError(
            f"--data {where} holds class number {largest}, but only {len(names)} classes are known"
        )
    return [numbers], names


def _read_numbers(listing: Listing, members: Sequence[Member]) -> dict[Member, int]:
    """Every member that has a number, with it. KEY ends at the last dot, or by WebDataset's rule at the first."""
    numbers: dict[Member, int] = {}
    with ExitStack() as stack:
        shards = {member.shard for member in members}
        files = {shard: stack.enter_context(open(listing.tars[shard], "rb")) for shard in shards}
        for member in members:
            folder, name = os.path.split(member.path)
            shortest = os.path.join(folder, name.partition(".")[0])
            sidecar = listing.numbers.get(f"{member.shard}:{os.path.splitext(member.path)[0]}")
            sidecar = sidecar or listing.numbers.get(f"{member.shard}:{shortest}")
            if sidecar is None:
                continue
            files[member.shard].seek(sidecar.offset)
            text = files[member.shard].read(min(sidecar.size, 32)).strip()
            if not text.isdigit() or int(text) >= _MOST_CLASSES:
                raise UserError(f"--data {listing.tars[member.shard]}:{sidecar.path} holds no class number")
            numbers[member] = int(text)
    return numbers
