"""Classes of the members of listings: the folder beneath the split, or the number in a tar's `KEY.cls`.

Where a tar has both and they correspond, the folders decide, so that a packed and an unpacked set are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from beit.config.errors import UserError
from beit.data.sources.listing import Listing, Member

_MOST_CLASSES = 1_000_000  # a number beyond is damage, and a table of that length an attack


def label_members(
    listings: Sequence[Listing],
    training: Sequence[Sequence[Member]],
    chosen: Sequence[Sequence[Member]],
    prefixes: Sequence[tuple[str | None, str | None]],
    split: str,
    classes: Sequence[str] | None,
) -> tuple[list[list[Member]], list[int], tuple[str, ...], list[str]]:
    """The labelled members among `chosen` (per listing), their labels in that order, class names, and notes.

    `prefixes` are the (training, evaluation) folders of each listing. The training members name the classes unless
    `classes` does. Raises :class:`UserError` for data without classes and for classes that training does not know.
    """
    if any(listing.numbers for listing in listings) and not _numbers_follow_folders(
        listings, chosen, prefixes, split
    ):
        return _by_number(listings, training, chosen, split, classes)
    return _by_folder(listings, training, chosen, prefixes, split, classes)


def _numbers_follow_folders(
    listings: Sequence[Listing],
    chosen: Sequence[Sequence[Member]],
    prefixes: Sequence[tuple[str | None, str | None]],
    split: str,
) -> bool:
    for listing, part, places in zip(listings, chosen, prefixes, strict=True):
        if listing.numbers:
            prefix = places[0 if split == "train" else 1]
            pairs = {(number, _folder(member, prefix)) for member, number in _read_numbers(listing, part)}
            numbers, folders = {number for number, _ in pairs}, {folder for _, folder in pairs}
            if not len(pairs) == len(numbers) == len(folders) or "" in folders:
                return False
    return True


def _by_folder(
    listings: Sequence[Listing],
    training: Sequence[Sequence[Member]],
    chosen: Sequence[Sequence[Member]],
    prefixes: Sequence[tuple[str | None, str | None]],
    split: str,
    classes: Sequence[str] | None,
) -> tuple[list[list[Member]], list[int], tuple[str, ...], list[str]]:
    side = 0 if split == "train" else 1
    folders = [[_folder(m, p[side]) for m in part] for part, p in zip(chosen, prefixes, strict=True)]
    known = {_folder(m, p[0]) for part, p in zip(training, prefixes, strict=True) for m in part} - {""}
    found = {name for part in folders for name in part} - {""}
    where = ", ".join(listing.root for listing in listings)
    if not found:
        raise UserError(
            f"--data {where} has no class folders; put the images of each class in a folder of its own"
        )
    names = tuple(classes) if classes is not None else tuple(sorted(known or found))
    if unknown := sorted(found - set(names)):
        source = "the model" if classes is not None else "the training split"
        named = ", ".join(f"'{name}'" for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(
            f"--data {where} has class folders that are unknown to {source}: {named}{more}; rename or remove them"
        )
    if len(names) < 2:
        raise UserError(
            f"--data {where} holds one class only ('{names[0]}'); a classifier needs at least two"
        )
    number_of = {name: number for number, name in enumerate(names)}
    kept = [
        [m for m, name in zip(part, row, strict=True) if name]
        for part, row in zip(chosen, folders, strict=True)
    ]
    labels = [number_of[name] for row in folders for name in row if name]
    loose = sum(map(len, chosen)) - len(labels)
    notes = [f"{where}: {loose:,} images outside the class folders ignored"] if loose else []
    return kept, labels, names, notes


def _folder(member: Member, prefix: str | None) -> str:
    """The first folder beneath `prefix`; empty for an image that lies loose."""
    name, slash, _ = member.path[len(prefix or "") :].partition("/")
    return name if slash else ""


def _by_number(
    listings: Sequence[Listing],
    training: Sequence[Sequence[Member]],
    chosen: Sequence[Sequence[Member]],
    split: str,
    classes: Sequence[str] | None,
) -> tuple[list[list[Member]], list[int], tuple[str, ...], list[str]]:
    where = ", ".join(listing.root for listing in listings)
    if len(listings) > 1:
        raise UserError(
            f"--data {where}: tars labelled by .cls numbers cannot be joined with folders; name one kind"
        )
    numbered = _read_numbers(listings[0], chosen[0])
    if not numbered:
        raise UserError(f"--data {where} has images without .cls numbers; add KEY.cls beside each KEY.jpg")
    known = numbered if split == "train" else _read_numbers(listings[0], training[0]) or numbered
    highest = max(number for _, number in known)
    names = tuple(classes) if classes is not None else tuple(str(number) for number in range(highest + 1))
    if (largest := max(number for _, number in numbered)) >= len(names):
        raise UserError(
            f"--data {where} holds class number {largest}, but only {len(names)} classes are known"
        )
    missing = len(chosen[0]) - len(numbered)
    notes = [f"{where}: {missing:,} images without a .cls number ignored"] if missing else []
    return [[member for member, _ in numbered]], [number for _, number in numbered], names, notes


def _read_numbers(listing: Listing, members: Sequence[Member]) -> list[tuple[Member, int]]:
    """Every member that has a number, with it. KEY ends at the last dot, or by WebDataset's rule at the first."""
    files = {}
    try:
        files = {shard: open(listing.tars[shard], "rb") for shard in {m.shard for m in members}}  # noqa: SIM115
        pairs = []
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
    finally:
        for file in files.values():
            file.close()
