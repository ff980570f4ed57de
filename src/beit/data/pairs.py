"""Images with label maps as a source: folders and tars in ADE20K's layout, or the built-in scenes.

Wrong maps are mistakes in the data and stop a run; damaged files are left out like any others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from beit.config import UserError
from beit.data.base import Source, Split
from beit.data.class_agreement import agreed
from beit.data.class_table import (
    IGNORE,
    MAX_CLASSES,
    ClassTable,
    Color,
    find_class_table,
    named_table,
    read_class_table,
    reading_of_zero,
)
from beit.data.combined import Subset
from beit.data.demo_scenes import DemoSource
from beit.data.files import choose_members
from beit.data.listing import Listing, list_data
from beit.data.map_files import MapFiles, check_layout, notes_on_spare_maps, open_map_files
from beit.data.named_sets import NAMED_SETS
from beit.data.sources import representative

_COUNTED = 500  # maps that tell the number of classes where nothing else does
_LOOKED_OVER = 16  # maps that are read before a run starts


class LabelMaps(Protocol):
    """Label maps by index."""

    def name(self, index: int) -> str: ...
    def size(self, index: int) -> tuple[int, int]:
        """(H, W), without reading more than need be; raises :class:`ImageError`."""

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        """(H, W), the numbers as they are stored; raises :class:`ImageError` and :class:`UserError`."""

    @property
    def fingerprint(self) -> str: ...


class DemoMaps:
    """Label maps of the built-in scenes."""

    def __init__(self, scenes: DemoSource) -> None:
        self._scenes = scenes
        self.name, self.size, self.fingerprint = scenes.name, scenes.size, scenes.fingerprint

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        return self._scenes.label_map(index).numpy()


class PairSource(Subset):
    """The images `indices` of a source, with their label maps."""

    def __init__(
        self,
        images: Source,
        maps: LabelMaps,
        indices: Sequence[int],
        table: ClassTable,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(images, indices)
        self._maps = maps
        self.table = table
        self.classes: tuple[str, ...] = table.names
        self.notes = [*images.notes, *notes]

    @property
    def palette(self) -> tuple[Color, ...]:
        """A colour for each class."""
        return self.table.palette

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image's label map, from its header alone; raises :class:`ImageError`."""
        return self._maps.size(int(self._indices[index]))

    def label(self, index: int) -> Tensor:
        """uint8 (H, W): an index into `classes` for each pixel, 255 = no class.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a map that does not fit its image or
        the classes.
        """
        inner = int(self._indices[index])
        return self.table.indices(self._maps.label_map(inner), self._maps.name(inner))

    def describe(self) -> str:
        images = self._source.describe() if len(self) == len(self._source) else super().describe()
        return f"{images}, with label maps of {len(self.classes)} classes"

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} {self._maps.fingerprint} {self.table.reduce_zero_label} {self.classes}"


def open_pairs(
    data: Sequence[str],
    split: Split,
    *,
    holdout: float,
    limit: int | None = None,
    reduce_zero_label: bool = False,
    class_table: str | None = None,
    classes: Sequence[str] | None = None,
    max_megapixels: float = 64,
    demo_size: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairSource:
    """The images of `data` that belong to `split` (see :func:`open_source`), with their label maps.

    `reduce_zero_label` makes 0 in a map "no class", and 1 the first one. Classes come from the file `class_table`, or
    from one that lies in the folder under a usual name, or are counted in the training maps; `classes` are those of a
    model that has its own. Raises :class:`UserError` for data that does not fit together, as far as names and a few
    maps tell; the others are looked at when they are read.
    """
    if "demo" in data:
        if len(data) > 1:
            raise UserError("--data: demo has classes of its own; train on it alone")
        if class_table is not None:
            raise UserError("--classes is for folders; demo has its own")
        scenes = DemoSource(split, size=demo_size, on_progress=on_progress)
        table = named_table(scenes.label_classes[int(reduce_zero_label) :], reduce_zero_label, "--data demo")
        table, notes = (table, []) if classes is None else agreed(table, classes)
        return PairSource(scenes, DemoMaps(scenes), _limited(scenes, limit, seed), table, notes)
    listings = _listings(data)
    chosen = choose_members(listings, split, holdout, paired=True)
    notes = [*chosen.notes, *notes_on_spare_maps(listings)]
    images, maps = open_map_files(listings, chosen.members, max_megapixels=max_megapixels, notes=notes)
    seen, _ = maps.numbers(_LOOKED_OVER)
    path = class_table or found_class_table(listings)
    if classes is not None:
        table, notes = _model_table(classes, reduce_zero_label, path)
    elif path is not None:
        table, notes = read_class_table(path, reduce_zero_label)
    else:
        known = chosen.training if any(chosen.training) else chosen.members
        _, to_count = open_map_files(listings, known, max_megapixels=max_megapixels)
        table = counted_table(to_count, reduce_zero_label)
        notes = [
            f"{len(table.names)} classes, the numbers in {table.origin}; --classes FILE gives them names"
        ]
    for number, name in seen.items():
        table.require(number, name)
    return PairSource(images, maps, _limited(images, limit, seed), table, notes)


def _listings(data: Sequence[str]) -> list[Listing]:
    for value in data:
        if value in NAMED_SETS and not os.path.exists(value):
            raise UserError(f"--data {value} has no label maps; name a folder with images/ and annotations/")
    listings = list_data(data)
    for listing in listings:
        check_layout(listing)
    return listings


def found_class_table(listings: Sequence[Listing]) -> str | None:
    """The class table that lies in one of the folders, or beside the tars."""
    folders = [os.path.dirname(listing.tars[0]) if listing.tars else listing.root for listing in listings]
    found = [path for folder in folders if (path := find_class_table(folder)) is not None]
    if len(found) > 1:
        raise UserError(
            f"--data: {found[0]} and {found[1]} both name classes; keep one, or let `beit segment` know by "
            f"--classes FILE which is meant"
        )
    return found[0] if found else None


def _model_table(
    classes: Sequence[str], reduce_zero_label: bool, path: str | None
) -> tuple[ClassTable, list[str]]:
    """The classes of a model, which the table at `path` must agree with, and notes."""
    if path is None:
        table, notes = named_table(classes, reduce_zero_label, "the model"), []
    else:
        table, ignored = read_class_table(path, reduce_zero_label, classes)
        table, told = agreed(table, classes)
        notes = [*ignored, *told]
    remedy = f"{reading_of_zero(classes, reduce_zero_label)}; choose data that is numbered like its own"
    return replace(table, remedy=remedy), notes


def counted_table(maps: MapFiles, reduce_zero_label: bool) -> ClassTable:
    """Classes up to the highest number in the maps, or in an even choice of them; their names are the numbers.

    Raises :class:`UserError` where those cannot be classes.
    """
    found, count = maps.numbers(_COUNTED)
    _refuse_black_and_white(found)
    highest = max(found.keys() - {IGNORE}, default=0)
    if highest > MAX_CLASSES:
        raise UserError(
            f"{found[highest]} holds the number {highest}; {MAX_CLASSES} classes at most can be told apart"
        )
    names = [str(number) for number in range(int(reduce_zero_label), highest + 1)]
    return named_table(names, reduce_zero_label, f"{count:,} of {len(maps):,} label maps")


def _refuse_black_and_white(seen: dict[int, str]) -> None:
    """A mask of 0 and 255 would teach nothing, because 255 says that a pixel has no class."""
    if seen.keys() == {0, IGNORE}:
        raise UserError(
            f"{seen[IGNORE]} holds 0 and {IGNORE} alone, like every other map that was looked at; {IGNORE} means "
            f"'no class', so number the classes 0, 1, 2 ..."
        )


def _limited(images: Source, limit: int | None, seed: int) -> Sequence[int]:
    if limit is None or limit >= len(images):
        return range(len(images))
    return representative([images.key(index) for index in range(len(images))], limit, seed)
