"""What `--data` may name, behind one interface: images by index, with names, and labels where asked for.

Folders and tar shards, sets that torchvision downloads, and the built-in scenes. Nothing is read but directories and
the headers of tars; images are decoded when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

from beit.config.errors import UserError, require
from beit.data.base import SPLITS, Source, Split, Splits
from beit.data.decode import USUAL, Decoding
from beit.data.sources.files import Files, FileSource
from beit.data.sources.holdout import ClassesOf, Holdout, hold_back, idle_note
from beit.data.sources.listing import list_data, list_images
from beit.data.sources.splits import Parts, label_members, split_listings, unlabeled, without_unlabeled_test
from beit.data.sources.subsets import Concatenation, Subset


def open_splits(
    data: Sequence[str],
    *,
    holdout: Holdout,
    labeled: bool = False,
    classes: Sequence[str] | None = None,
    decoding: Decoding = USUAL,
    pillow: bool = False,
) -> Splits[Source]:
    """The images of `data` by split.

    A root with training images and no `val` gives up a part of them as `holdout` says (see
    :mod:`beit.data.sources.holdout`). With `labeled`, class names come from the training split's folders (or `.cls`
    numbers in tars), so that all splits agree; `classes` fixes them instead, for a model that has its own. `pillow`
    decodes JPEG with Pillow too.
    """
    require(bool(data), "--data is missing; name a folder of images, tar shards, a set such as cifar10, or demo")
    own = replace(holdout, share=0, eval_data=()) if holdout.eval_data else holdout
    options = Options(labeled, decoding._replace(pillow=pillow))
    openers = _open_roots(data, own, options, classes)
    splits = Splits(openers)
    if holdout.eval_data:

        def open_val() -> Source:
            known = classes or (splits["train"].classes if labeled and "train" in splits else None)
            others = _open_roots(holdout.eval_data, Holdout(share=0, layout=holdout.layout), options, known)
            return next(others[split]() for split in ("val", "test", "train") if split in others)

        openers["val"] = open_val
    return splits


class Options(NamedTuple):
    """How files are opened."""

    labeled: bool
    decoding: Decoding


def _open_roots(
    data: Sequence[str], holdout: Holdout, options: Options, classes: Sequence[str] | None
) -> dict[Split, Callable[[], Source]]:
    """The sources of each split, to be opened."""
    paths = [value for value in data if not _is_set(value)]
    opened = [_open_set(value, holdout) for value in data if _is_set(value)]
    if paths:
        parts = split_listings(list_data(paths), holdout)
        parts = without_unlabeled_test(parts) if options.labeled else parts
        opened.append({split: partial(_open_files, parts, split, options, classes) for split in parts})

    def open_all(split: Split) -> Source:
        sources = [openers[split]() for openers in opened if split in openers]
        source = sources[0] if len(sources) == 1 else Concatenation(sources, options.labeled)
        if options.labeled:
            _require_classes(source, classes, ", ".join(data))
        source.notes[:0] = [
            f"--data {value}: the existing path is used, not the set that can be downloaded"
            for value in paths
            if is_named_set(value)
        ]
        return source

    there = [split for split in SPLITS if any(split in openers for openers in opened)]
    return {split: partial(open_all, split) for split in there}


def _open_files(parts: Parts, split: Split, options: Options, classes: Sequence[str] | None) -> FileSource:
    files = label_members(parts, split, classes) if options.labeled else unlabeled(parts[split])
    return FileSource(files, options.decoding).with_remarks()


def _require_classes(source: Source, classes: Sequence[str] | None, names: str) -> None:
    """UserError unless `source` has classes, those of a model that has its own."""
    if source.classes is None:
        raise UserError(f"--data {names} has no labels; put the images of each class in a folder of their own")
    if classes is not None and tuple(classes) != source.classes:
        raise UserError(f"--data {names} has classes other than the model's; choose data with the same classes")


def open_images(values: Sequence[str], decoding: Decoding = USUAL) -> FileSource:
    """The image files, and every image in the folders and tar shards that `values` name, in their order, whatever the
    layout."""
    listings = [list_images(value) for value in ([values] if isinstance(values, str) else values)]
    notes = [note for listing in listings for note in listing.notes]
    return FileSource(Files(listings, notes), decoding).with_remarks()


def _is_set(value: str) -> bool:
    return value == "demo" or (not os.path.exists(value) and is_named_set(value))


def _open_set(value: str, holdout: Holdout) -> dict[Split, Callable[[], Source]]:
    """The splits of a set that brings its own; one without `val` gives up a part of its training images."""
    from beit.data.sources.demo import DemoSource
    from beit.data.sources.named import NAMED_SETS, NamedSource

    kind = DemoSource if value == "demo" else partial(NamedSource, value)
    names = DemoSource.splits if value == "demo" else NAMED_SETS[value].splits
    openers: dict[Split, Callable[[], Source]] = {split: partial(kind, split) for split in names}
    if "val" in openers and (note := idle_note(f"--data {value}", holdout, "it has a val")):

        def train() -> Source:
            source = kind("train")
            source.notes.append(note)
            return source

        openers["train"] = train
    if "val" in openers or (holdout.share == 0 and not holdout.listed):
        return openers

    @cache
    def parts() -> tuple[Subset, Subset]:
        train = kind("train")
        choice = hold_back(train, _classes_of(train, holdout.classes_of), holdout, f"--data {value}")
        train.notes.append(choice.note)
        held_back = set(choice.held_back)
        rest = [index for index in range(len(train)) if index not in held_back]
        return Subset(train, rest), Subset(train, choice.held_back)

    return openers | {"train": lambda: parts()[0], "val": lambda: parts()[1]}


def _classes_of(source: Source, classes_of: ClassesOf | None) -> list[Sequence[str]]:
    if classes_of is not None:
        return [classes_of(source.key(index), source.name(index)) for index in range(len(source))]
    return [(source.classes[source.label(index)],) if source.classes else () for index in range(len(source))]


def is_named_set(value: str) -> bool:
    """Whether `value` is the name of a set that can be downloaded."""
    if os.path.basename(value) != value:
        return False  # a path: no table need be loaded to say so
    from beit.data.sources.named import NAMED_SETS

    return value in NAMED_SETS
