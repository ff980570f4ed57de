"""Classes of the members of listings: the folder beneath the split, or the number in a tar's `KEY.cls`.

Where a tar has both and they correspond, the folders decide, so that a packed and an unpacked set are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from beit.config.errors import UserError
from beit.data.sources.listing import Listing, Member
from beit.data.sources.splits import SplitMembers

_MOST_CLASSES = 1_000_000  # a number beyond is damage, and a table of that length an attack


class LabeledMembers(NamedTuple):
    """The members of a split that have a label."""

    members: list[list[Member]]
    """For each listing."""
    labels: list[int]
    """Of all members in that order."""
    classes: tuple[str, ...]
    notes: list[str]


def label_members(part: SplitMembers, classes: Sequence[str] | None) -> LabeledMembers:
    """The members of `part` with their labels. The training members name the classes unless `classes` does.

    Raises :class:`UserError` for data without classes and for classes that training does not know.
    """
    numbered = any(listing.numbers for listing in part.listings)
    where = ", ".join(listing.root for listing in part.listings)
    label = _by_number if numbered and not _numbers_follow_folders(part) else _by_folder
    return label(part, classes, where)


def _numbers_follow_folders(part: SplitMembers) -> bool:
    for listing, members, (_, prefix) in zip(part.listings, part.members, part.folders, strict=True):
        if listing.numbers:
            pairs = {(number, _folder(member, prefix)) for member, number in _read_numbers(listing, members)}
            numbers, folders = {number for number, _ in pairs}, {folder for _, folder in pairs}
            if not len(pairs) == len(numbers) == len(folders) or "" in folders:
                return False
    return True


def _by_folder(part: SplitMembers, classes: Sequence[str] | None, where: str) -> LabeledMembers:
    rows = [
        [(_folder(m, prefix), m) for m in members]
        for members, (_, prefix) in zip(part.members, part.folders, strict=True)
    ]
    folders = {name for row in rows for name, _ in row} - {""}
    if not folders:
        raise UserError(
            f"--data {where} has no class folders; put the images of each class in a folder of its own"
        )
    training_names = {
        _folder(m, prefix)
        for members, (prefix, _) in zip(part.training, part.folders, strict=True)
        for m in members
    }
    names = tuple(classes) if classes is not None else tuple(sorted(training_names - {""} or folders))
    if unknown := sorted(folders - set(names)):
        source = "the model" if classes is not None else "the training split"
        examples = ", ".join(f"'{name}'" for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(
            f"--data {where} has class folders that are unknown to {source}: {examples}{more}; rename or remove them"
        )
    if len(names) < 2:
        raise UserError(
            f"--data {where} holds one class only ('{names[0]}'); a classifier needs at least two"
        )
    number_of = {name: number for number, name in enumerate(names)}
    members = [[m for name, m in row if name] for row in rows]
    labels = [number_of[name] for row in rows for name, _ in row if name]
    loose = sum(map(len, part.members)) - len(labels)
    notes = [f"{where}: {loose:,} images outside the class folders ignored"] if loose else []
    return LabeledMembers(members, labels, names, notes)


def _folder(member: Member, prefix: str) -> str:
    """The first folder beneath `prefix`; empty for an image that lies loose."""
    name, slash, _ = member.path[len(prefix) :].partition("/")
    return name if slash else ""


def _by_number(part: SplitMembers, classes: Sequence[str] | None, where: str) -> LabeledMembers:
    if len(part.listings) > 1:
        raise UserError(
            f"--data {where}: tars labelled by .cls numbers cannot be joined with folders; name one kind"
        )
    [listing], [members] = part.listings, part.members
    pairs = _read_numbers(listing, members)
    if not pairs:
        raise UserError(f"--data {where} has images without .cls numbers; add KEY.cls beside each KEY.jpg")
    training = part.members is part.training
    training_pairs = pairs if training else _read_numbers(listing, part.training[0]) or pairs
    highest = max(number for _, number in training_pairs)
    names = tuple(classes) if classes is not None else tuple(str(number) for number in range(highest + 1))
    if (largest := max(number for _, number in pairs)) >= len(names):
        raise UserError(
            f"--data {where} holds class number {largest}, but only {len(names)} classes are known"
        )
    missing = len(members) - len(pairs)
    notes = [f"{where}: {missing:,} images without a .cls number ignored"] if missing else []
    return LabeledMembers([[member for member, _ in pairs]], [number for _, number in pairs], names, notes)


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
