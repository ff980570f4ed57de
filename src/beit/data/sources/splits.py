"""Which images are for training and which for evaluation, decided on relative paths alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from beit.data.sources.listing import EVALUATION_NAMES


@dataclass(frozen=True)
class Splits:
    """Where the training and the evaluation images of one root lie; prefixes end in "/" or are empty."""

    train: str | None
    """None: there is nothing to train on."""
    evaluation: str | None
    """None: a share of the training images is to be held back."""
    notes: tuple[str, ...] = ()


def find_splits(root: str, paths: Sequence[str], *, paired: bool = False) -> Splits:
    """Decide on the layout: `train/` beside `val/`, `validation/`, `valid/` or `test/` (the first of them);
    ADE20K's `images/{training,validation}/` beside `annotations/`; otherwise everything is one pool.
    `paired` says that the label maps in `annotations/` are used.
    """
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
    notes = tuple(f"{root}: {name} ignored ({count:,} images)" for name, count in ignored.items())
    if train is None and evaluation is not None and len(names) == 1:
        return Splits(None, f"{base}{evaluation}/", notes)
    if train is None:
        return Splits(base, None, notes)
    return Splits(f"{base}{train}/", f"{base}{evaluation}/" if evaluation else None, notes)


def _children(paths: Sequence[str], prefix: str) -> dict[str, int]:
    """Names of the folders directly beneath `prefix` and how many images each holds; "" for loose images."""
    counts: Counter[str] = Counter()
    for path in paths:
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition("/")
            counts[name if slash else ""] += 1
    return dict(sorted(counts.items()))
