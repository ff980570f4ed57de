"""What `--data` may name, behind one interface: images by index, with names, and labels where asked for.

Folders and tar shards, sets that torchvision downloads, and the built-in scenes. Nothing is read but directories and
the headers of tars; images are decoded when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from beit.config.errors import UserError
from beit.data.base import Source, Split
from beit.data.sources.files import FileSource
from beit.data.sources.listing import list_data, list_images
from beit.data.sources.splits import Files, choose_members, label_members, unlabeled
from beit.data.sources.subsets import Concatenation, Subset, seeded_choice


def open_source(
    data: Sequence[str],
    split: Split,
    *,
    holdout: float,
    limit: int | None = None,
    labeled: bool = False,
    classes: Sequence[str] | None = None,
    max_megapixels: float = 64,
    pillow: bool = False,
    seed: int = 0,
) -> Source:
    """The images of `data` that belong to `split`.

    Without an evaluation split of its own, a root gives up the share `holdout` of its images, chosen by a hash of
    their paths: the same files always, whatever is added later. `limit` keeps a seeded choice of that many images.
    With `labeled`, class names come from the training split's folders (or `.cls` numbers in tars), so both splits
    agree; `classes` fixes them instead, for a model that has its own. `pillow` decodes JPEG with Pillow too.
    """
    if not data:
        raise UserError(
            "--data is missing; name a folder of images, tar shards, a set such as cifar10, or demo"
        )
    paths = [value for value in data if not _is_set(value)]
    sources = [_open_set(value, split) for value in data if _is_set(value)]
    if paths:
        parts = choose_members(list_data(paths), split, holdout)
        files = label_members(parts, classes) if labeled else unlabeled(parts)
        sources.append(FileSource(files, max_megapixels, pillow=pillow))
    source = sources[0] if len(sources) == 1 else Concatenation(sources, labeled)
    names = ", ".join(data)
    if labeled and source.classes is None:
        raise UserError(
            f"--data {names} has no labels; put the images of each class in a folder of their own"
        )
    if labeled and classes is not None and tuple(classes) != source.classes:
        raise UserError(
            f"--data {names} has classes other than the model's; choose data with the same classes"
        )
    source.notes[:0] = [
        f"--data {value}: the existing path is used, not the set that can be downloaded"
        for value in paths
        if is_named_set(value)
    ]
    if limit is not None and limit < len(source):
        return Subset(source, seeded_choice(source, limit, seed))
    return source


def open_images(values: Sequence[str], max_megapixels: float = 64) -> FileSource:
    """The image files, and every image in the folders and tar shards that `values` name, in their order, whatever the
    layout."""
    listings = [list_images(value) for value in values]
    notes = [note for listing in listings for note in listing.notes]
    return FileSource(Files(listings, notes), max_megapixels)


def _is_set(value: str) -> bool:
    return value == "demo" or (not os.path.exists(value) and is_named_set(value))


def _open_set(value: str, split: Split) -> Source:
    if value == "demo":
        from beit.data.sources.demo import DemoSource

        return DemoSource(split)
    from beit.data.sources.named import NamedSource

    return NamedSource(value, split)


def is_named_set(value: str) -> bool:
    """Whether `value` is the name of a set that can be downloaded."""
    if os.path.basename(value) != value:
        return False  # a path: no table need be loaded to say so
    from beit.data.sources.named import NAMED_SETS

    return value in NAMED_SETS
