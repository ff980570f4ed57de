"""Images with label maps as a source: folders and tars in ADE20K's layout, or the built-in scenes.

Wrong maps are mistakes in the data and stop a run; damaged files are left out like any others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from torch import Tensor

from beit.config.errors import UserError, require
from beit.data.base import Source, Split
from beit.data.decode import ImageError
from beit.data.label_maps.classes import (
    counted_table,
    find_class_table,
    reconcile,
    table_of_data,
    table_of_model,
)
from beit.data.label_maps.files import MapFiles, check_layout, notes_on_spare_maps, open_map_files
from beit.data.label_maps.table import ClassTable, named_table
from beit.data.sources.listing import list_data
from beit.data.sources.opening import is_named_set
from beit.data.sources.splits import choose_members
from beit.data.sources.subsets import Subset, seeded_choice

if TYPE_CHECKING:
    from beit.data.sources.demo import DemoSource

_SAMPLE = 16  # maps that are read before a run starts


class PairSource(Subset):
    """Images with their label maps; with a `limit`, a seeded choice of that many."""

    def __init__(
        self,
        images: Source,
        maps: MapFiles | DemoSource,
        table: ClassTable,
        notes: Sequence[str],
        limit: int | None,
        seed: int,
    ) -> None:
        super().__init__(images, range(len(images)) if limit is None else seeded_choice(images, limit, seed))
        self._maps, self.table = maps, table
        self.classes: tuple[str, ...] = table.names
        self.palette = table.palette
        self.notes += notes

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

    def verify_labels(self) -> None:
        """Read every label map once, so that a mistake shows before it costs anything.

        Raises :class:`UserError` as `label` does; damaged files are left to be met with their images.
        """
        for index in range(len(self)):
            with suppress(ImageError):
                self.label(index)

    def describe(self) -> str:
        return f"{super().describe()}, with label maps of {len(self.classes)} classes"

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
    seed: int = 0,
) -> PairSource:
    """The images of `data` that belong to `split` (see :func:`open_source`), with their label maps.

    `reduce_zero_label` makes 0 in a map "no class", and 1 the first one. Classes come from the file `class_table`, or
    from one that lies in the folder under a usual name, or are counted in the training maps; `classes` are those of a
    model that has its own. Raises :class:`UserError` for data that does not fit together, as far as names and a few
    maps tell; the others are checked when they are read.
    """
    if "demo" in data:
        require(len(data) == 1, "--data: demo has classes of its own; train on it alone")
        require(class_table is None, "--classes is for folders; demo has its own")
        from beit.data.sources.demo import DemoSource

        scenes = DemoSource(split)
        names = scenes.label_classes[int(reduce_zero_label) :]
        table = named_table(names, reduce_zero_label, "--data demo")
        table, notes = (table, [table.zero]) if classes is None else reconcile(table, classes)
        return PairSource(scenes, scenes, table, notes, limit, seed)
    for value in data:
        if is_named_set(value) and not os.path.exists(value):
            raise UserError(f"--data {value} has no label maps; name a folder with images/ and annotations/")
    listings = list_data(data)
    for listing in listings:
        check_layout(listing)
    path = class_table or find_class_table(listings)
    if path is not None:
        listings = [listing.using(path) for listing in listings]
    parts = choose_members(listings, split, holdout, paired=True)
    images, maps = open_map_files(parts, max_megapixels)
    images.notes += notes_on_spare_maps(listings)
    file_of, count = maps.numbers(_SAMPLE)
    if classes is not None:
        table, notes = table_of_model(classes, reduce_zero_label, path)
    elif path is not None:
        table, notes = table_of_data(path, reduce_zero_label, list(file_of), count)
    else:
        training = [part._replace(members=part.training) for part in parts if part.training]
        table, notes = counted_table(open_map_files(training or parts, max_megapixels)[1], reduce_zero_label)
    for number, name in file_of.items():
        table.require(number, name)
    return PairSource(images, maps, table, notes, limit, seed)
