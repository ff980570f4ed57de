"""Which images are for training and which for evaluation, decided on relative paths alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from beit.config.errors import UserError
from beit.data.base import Split, stable_hash
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
    counts: Counter[str] = Counter()
    for path in paths:
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition("/")
            counts[name if slash else ""] += 1
    return dict(sorted(counts.items()))
