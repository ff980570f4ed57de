"""What `--data` may name, behind one interface: images by index, with names, and labels where asked for.

Folders and tar shards, sets that torchvision downloads, and the built-in scenes. Nothing is read but directories and
the headers of tars; images are decoded when asked for.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from beit.config.errors import given_by, require
from beit.data.base import SPLITS, Source, Split, Splits
from beit.data.decode import USUAL, Decoding
from beit.data.sources.files import Files, FileSource, path_of
from beit.data.sources.holdout import ClassesOf, Holdout, hold_back, idle_note
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
    openers, decoding = _open_roots(data, own, labeled, decoding._replace(pillow=pillow), classes)
    if holdout.eval_data:

        def open_val() -> Source:
            known = classes or (splits["train"].classes if labeled and "train" in splits else None)
            plain = Holdout(share=0, layout=holdout.layout, cache=holdout.cache)
            with given_by("--eval-data", instead_of="--data"):
                others, _ = _open_roots(holdout.eval_data, plain, labeled, decoding, known)
                return next(others[split]() for split in ("val", "test", "train") if split in others)

        openers["val"] = open_val
    splits = Splits(openers)
    return splits


def _open_roots(
    data: Sequence[str], holdout: Holdout, labeled: bool, decoding: Decoding, classes: Sequence[str] | None
) -> tuple[dict[Split, Callable[[], Source]], Decoding]:
    """The sources of each split, to be opened, and how they are decoded: as they are, where that is left open."""
    paths, sets = ([value for value in data if _is_set(value) == is_set] for is_set in (False, True))
    opened = [_open_set(value, holdout) for value in sets]
    if paths:
        from beit.data.sources.listing import list_data  # which sets by name do without
        from beit.data.sources.measure import settled

        parts = split_listings(list_data(paths, holdout.cache), holdout)
        parts = without_unlabeled_test(parts) if labeled else parts
        decoding = settled(parts, decoding)
        opened.append({split: partial(_open_files, parts, split, labeled, decoding, classes) for split in parts})
    plain = not sets or (decoding.channels or 3, decoding.bits or 8) == (3, 8)
    require(plain, f"--data {', '.join(sets)} is RGB of 8 bits; name sets and images of other kinds apart")

    def open_all(split: Split) -> Source:
        sources = [openers[split]() for openers in opened if split in openers]
        source = sources[0] if len(sources) == 1 else Concatenation(sources, labeled)
        if labeled:
            _require_classes(source, classes, ", ".join(data))
        source.notes[:0] = [
            f"--data {value}: the existing path is used, not the set that can be downloaded"
            for value in paths
            if is_named_set(value)
        ]
        return source

    there = [split for split in SPLITS if any(split in openers for openers in opened)]
    return {split: partial(open_all, split) for split in there}, decoding


def _open_files(
    parts: Parts, split: Split, labeled: bool, decoding: Decoding, classes: Sequence[str] | None
) -> FileSource:
    return FileSource(label_members(parts, split, classes) if labeled else unlabeled(parts[split]), decoding)


def _require_classes(source: Source, classes: Sequence[str] | None, names: str) -> None:
    """UserError unless `source` has classes, those of a model that has its own."""
    mend = "put the images of each class in a folder of their own"
    require(source.classes is not None, f"--data {names} has no labels; {mend}")
    alike = classes is None or tuple(classes) == source.classes
    require(alike, f"--data {names} has classes other than the model's; choose data with the same classes")


def open_images(values: Sequence[str], decoding: Decoding = USUAL) -> FileSource:
    """The image files, and every image in the folders and tar shards that `values` name, in their order, whatever the
    layout; each is decoded as often as it is asked for."""
    from beit.data.sources.listing import list_images
    from beit.data.sources.measure import look_over

    listings = [list_images(value) for value in ([values] if isinstance(values, str) else values)]

    files = Files(listings, [note for listing in listings for note in listing.notes])
    decoding, about = look_over(FileSource(files, decoding))
    return FileSource(files._replace(notes=[*files.notes, *about]), decoding, memory=0)


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
        held_back, note = hold_back(train, classes_of_images(train, holdout.classes_of), holdout, f"--data {value}")
        train.notes.append(note)
        rest = sorted({*range(len(train))}.difference(held_back))
        return Subset(train, rest), Subset(train, held_back)

    return openers | {"train": lambda: parts()[0], "val": lambda: parts()[1]}


def classes_of_images(source: Source, classes_of: ClassesOf | None) -> list[Sequence[str]]:
    """The classes of every image, which a file tells, or its own."""
    if classes_of is not None:
        return [classes_of(source.key(index), path_of(source, index)) for index in range(len(source))]
    return [(source.classes[source.label(index)],) if source.classes else () for index in range(len(source))]


def is_named_set(value: str) -> bool:
    """Whether `value` is the name of a set that can be downloaded."""
    if os.path.basename(value) != value:
        return False  # a path: no table need be loaded to say so
    from beit.data.sources.named import NAMED_SETS

    return value in NAMED_SETS
