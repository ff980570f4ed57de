"""What `--data` may name, behind one interface: images by index, with names, and labels where asked for.

Folders and tar shards (:class:`FileSource`), sets that torchvision downloads (:class:`NamedSource`), and the
built-in scenes (:class:`DemoSource`). :func:`open_source` picks the split and reads nothing but directories; images
are decoded when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from beit.config.errors import UserError
from beit.data.base import Source, Split, stable_hash
from beit.data.sources.demo import DemoSource
from beit.data.sources.files import FileSource, open_files
from beit.data.sources.named import NAMED_SETS, NamedSource
from beit.data.sources.subsets import Concatenation, Subset

__all__ = [
    "Concatenation",
    "DemoSource",
    "FileSource",
    "NamedSource",
    "Source",
    "Split",
    "Subset",
    "open_source",
]


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
    demo_size: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
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
    opened: list[Source] = []
    files: list[str] = []
    notes: list[str] = []
    for value in data:
        if value == "demo":
            opened.append(DemoSource(split, size=demo_size, on_progress=on_progress))
        elif value in NAMED_SETS and not os.path.exists(value):
            opened.append(NamedSource(value, split))
        else:
            files.append(value)
            if value in NAMED_SETS:
                notes.append(f"--data {value}: the existing path is used, not the set that can be downloaded")
    if files:
        opened.append(
            open_files(files, split, holdout, labeled, classes, max_megapixels=max_megapixels, pillow=pillow)
        )
    source = opened[0] if len(opened) == 1 else Concatenation(opened, labeled)
    _check_classes(source, labeled, classes, ", ".join(data))
    source.notes[:0] = notes
    if limit is not None and limit < len(source):
        return Subset(source, representative([source.key(i) for i in range(len(source))], limit, seed))
    return source


def _check_classes(source: Source, labeled: bool, classes: Sequence[str] | None, data: str) -> None:
    if not labeled:
        return
    if source.classes is None:
        raise UserError(f"--data {data} has no labels; put the images of each class in a folder of their own")
    if classes is not None and tuple(classes) != source.classes:
        raise UserError(
            f"--data {data} has classes other than the model's; choose data with the same classes"
        )


def representative(keys: Sequence[str], count: int, seed: int) -> list[int]:
    """`count` indices in rising order, the first in an order of seeded hashes."""
    order = sorted(range(len(keys)), key=lambda i: stable_hash(f"{seed}:{keys[i]}"))
    return sorted(order[:count])
