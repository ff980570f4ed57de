"""Classes of the members of listings: the folder beneath the split, or the number in a tar's `KEY.cls`.

Where a tar has both and they correspond, the folders decide, so that a packed and an unpacked set are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from beit.config.errors import UserError
from beit.data.base import check_classes
from beit.data.sources.listing import Listing, Member
from beit.data.sources.splits import Files, Part, unlabeled

_MOST_CLASSES = 1_000_000  # a number beyond is damage, and a table of that length an attack


def label_members(parts: Sequence[Part], classes: Sequence[str] | None) -> Files:
    """The members of `parts` that have a label. The training members name the classes unless `classes` does.

    Raises :class:`UserError` for data without classes and for classes that training does not know.
    """
    numbered = any(part.listing.numbers for part in parts)
    label = _by_number if numbered and not _numbers_follow_folders(parts) else _by_folder
    files = label(parts, classes, ", ".join(part.listing.root for part in parts))
    return files._replace(notes=[*unlabeled(parts).notes, *files.notes])


def _numbers_follow_folders(parts: Sequence[Part]) -> bool:
    for part in parts:
        if part.listing.numbers:
            numbered = _read_numbers(part.listing, part.members)
            pairs = {(number, _class_folder(member, part.folder)) for member, number in numbered}
            numbers, folders = {number for number, _ in pairs}, {folder for _, folder in pairs}
            if not len(pairs) == len(numbers) == len(folders) or "" in folders:
                return False
    return True


def _by_folder(parts: Sequence[Part], classes: Sequence[str] | None, where: str) -> Files:
    rows = [{member: _class_folder(member, part.folder) for member in part.members} for part in parts]
    folders = {name for row in rows for name in row.values()} - {""}
    if not folders:
        raise UserError(
            f"--data {where} has no class folders; put the images of each class in a folder of its own"
        )
    training = {_class_folder(member, part.training_folder) for part in parts for member in part.training}
    names = tuple(classes or sorted(training - {""} or folders))
    check_classes(names, folders, f"--data {where}", "the model" if classes else "the training split")
    number_of = {name: number for number, name in enumerate(names)}
    labels = [number_of[name] for row in rows for name in row.values() if name]
    listings = [
        replace(part.listing, members=[member for member, name in row.items() if name])
        for part, row in zip(parts, rows, strict=True)
    ]
    loose = sum(map(len, rows)) - len(labels)
    notes = [f"{where}: {loose:,} images outside the class folders ignored"] if loose else []
    return Files(listings, notes, labels, names)


def _class_folder(member: Member, prefix: str) -> str:
    """The first folder beneath `prefix`; empty for an image that lies loose."""
    name, slash, _ = member.path[len(prefix) :].partition("/")
    return name if slash else ""


def _by_number(parts: Sequence[Part], classes: Sequence[str] | None, where: str) -> Files:
    if len(parts) > 1:
        raise UserError(
            f"--data {where}: tars labelled by .cls numbers cannot be joined with folders; name one kind"
        )
    listing, members = parts[0].listing, parts[0].members
    pairs = _read_numbers(listing, members)
    if not pairs:
        raise UserError(f"--data {where} has images without .cls numbers; add KEY.cls beside each KEY.jpg")
    training = _read_numbers(listing, parts[0].training) or pairs
    names = tuple(classes or map(str, range(1 + max(number for _, number in training))))
    if (largest := max(number for _, number in pairs)) >= len(names):
        raise UserError(
            f"--data {where} holds class number {largest}, but only {len(names)} classes are known"
        )
    missing = len(members) - len(pairs)
    notes = [f"{where}: {missing:,} images without a .cls number ignored"] if missing else []
    labeled = replace(listing, members=[member for member, _ in pairs])
    return Files([labeled], notes, [number for _, number in pairs], names)


def _read_numbers(listing: Listing, members: Sequence[Member]) -> list[tuple[Member, int]]:
    """Every member that has a number, with it. KEY ends at the last dot, or by WebDataset's rule at the first."""
    pairs = []
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
            pairs.append((member, int(text)))
    return pairs
