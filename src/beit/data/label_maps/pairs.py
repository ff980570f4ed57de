"""Images with label maps as a source: folders and tars in ADE20K's layout, or the built-in scenes.

Wrong maps are mistakes in the data and stop a run; damaged files are left out like any others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from beit.config.errors import UserError
from beit.data.base import Source, Split
from beit.data.decode import ImageError
from beit.data.label_maps.agreement import agreed
from beit.data.label_maps.classes import counted_table, found_class_table, table_of_data, table_of_model
from beit.data.label_maps.files import check_layout, notes_on_spare_maps, open_map_files
from beit.data.label_maps.table import ClassTable, Color, named_table
from beit.data.sources.demo import DemoSource
from beit.data.sources.files import choose_members
from beit.data.sources.listing import Listing, list_data
from beit.data.sources.named import NAMED_SETS
from beit.data.sources.opening import representative
from beit.data.sources.subsets import Subset

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

    def look_over(self) -> None:
        """Read every label map once, so that a mistake shows before it costs anything.

        Raises :class:`UserError` as `label` does; damaged files are left to be met with their images.
        """
        for index in range(len(self)):
            with suppress(ImageError):
                self.label(index)

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
        table, notes = _demo_table(scenes, reduce_zero_label, classes)
        return PairSource(scenes, DemoMaps(scenes), _limited(scenes, limit, seed), table, notes)
    listings = _listings(data)
    path = class_table or found_class_table(listings)
    if path is not None:
        listings = [listing.using(path) for listing in listings]
    chosen = choose_members(listings, split, holdout, paired=True)
    told = [*chosen.notes, *notes_on_spare_maps(listings)]
    images, maps = open_map_files(listings, chosen.members, max_megapixels=max_megapixels, notes=told)
    seen, count = maps.numbers(_LOOKED_OVER)
    if classes is not None:
        table, notes = table_of_model(classes, reduce_zero_label, path)
    elif path is not None:
        table, notes = table_of_data(path, reduce_zero_label, list(seen), count)
    else:
        known = chosen.training if any(chosen.training) else chosen.members
        _, to_count = open_map_files(listings, known, max_megapixels=max_megapixels)
        table, notes = counted_table(to_count, reduce_zero_label)
    for number, name in seen.items():
        table.require(number, name)
    return PairSource(images, maps, _limited(images, limit, seed), table, notes)


def _demo_table(
    scenes: DemoSource, reduce_zero_label: bool, classes: Sequence[str] | None
) -> tuple[ClassTable, list[str]]:
    table = named_table(scenes.label_classes[int(reduce_zero_label) :], reduce_zero_label, "--data demo")
    return (table, [table.zero]) if classes is None else agreed(table, classes)


def _listings(data: Sequence[str]) -> list[Listing]:
    for value in data:
        if value in NAMED_SETS and not os.path.exists(value):
            raise UserError(f"--data {value} has no label maps; name a folder with images/ and annotations/")
    listings = list_data(data)
    for listing in listings:
        check_layout(listing)
    return listings


def _limited(images: Source, limit: int | None, seed: int) -> Sequence[int]:
    if limit is None or limit >= len(images):
        return range(len(images))
    return representative([images.key(index) for index in range(len(images))], limit, seed)
