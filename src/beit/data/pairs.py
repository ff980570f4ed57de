"""Images with label maps: ``images/`` beside ``annotations/``, as ADE20K lays them out, or the built-in scenes.

A map lies where its image does, under the same name: ``images/training/street.jpg`` and
``annotations/training/street.png``. Wrong maps are mistakes in the data and stop a run; damaged files are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from beit.config import UserError
from beit.data.base import Source, Split
from beit.data.class_table import (
    IGNORE,
    MAX_CLASSES,
    ClassTable,
    find_class_table,
    named_table,
    read_class_table,
)
from beit.data.combined import Subset
from beit.data.decode import ImageError
from beit.data.demo_scenes import DemoSource
from beit.data.files import FileSource, choose_members
from beit.data.label_maps import decode_label_map
from beit.data.listing import Listing, Member, list_data
from beit.data.named_sets import NAMED_SETS
from beit.data.sources import representative

IMAGES, MAPS = "images/", "annotations/"
_COUNTED = 500  # maps that tell the number of classes where nothing else does
_LOOKED_OVER = 16  # maps that are read before a run starts


class LabelMaps(Protocol):
    """Label maps by index."""

    def name(self, index: int) -> str: ...
    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        """(H, W), the numbers as they are stored; raises :class:`ImageError` and :class:`UserError`."""

    @property
    def fingerprint(self) -> str: ...


class MapFiles(FileSource):
    """Files of label maps, each as large as the image of its number in `images`."""

    def __init__(
        self,
        images: FileSource,
        listings: Sequence[Listing],
        chosen: Sequence[Sequence[Member]],
        max_megapixels: float,
    ) -> None:
        super().__init__(listings, chosen, max_megapixels=max_megapixels)
        self._images = images

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        numbers = decode_label_map(self.read(index), self.name(index), self._max_megapixels)
        height, width = self._images.size(index)
        if numbers.shape != (height, width):
            raise UserError(
                f"{self.name(index)} has {numbers.shape[1]}x{numbers.shape[0]} pixels, its image "
                f"{self._images.name(index)} {width}x{height}; they must be of one size"
            )
        return numbers


class DemoMaps:
    """Label maps of the built-in scenes."""

    def __init__(self, scenes: DemoSource) -> None:
        self._scenes = scenes
        self.name, self.fingerprint = scenes.name, scenes.fingerprint

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        return self._scenes.label_map(index).numpy()


class PairSource(Subset):
    """Some images of a source with their label maps."""

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
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """A colour for each class, red, green and blue of 0..255."""
        return self.table.palette

    def map_name(self, index: int) -> str:
        """What messages call the label map."""
        return self._maps.name(int(self._indices[index]))

    def label(self, index: int) -> Tensor:
        """uint8 (H, W): an index into `classes` for each pixel, 255 = none.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a map that does not fit its image or
        the classes.
        """
        inner = int(self._indices[index])
        return self.table.indices(self._maps.label_map(inner), self._maps.name(inner))

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
    demo_size: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairSource:
    """The images of `data` that belong to `split` (see :func:`open_source`), with their label maps.

    `reduce_zero_label` makes 0 in a map "no class", and 1 the first one. Classes come from the file `class_table`, or
    from one that lies in the folder under a usual name, or are counted in the training maps; `classes` are those of a
    model that has its own. Raises :class:`UserError` for data that does not fit together, as far as names and the
    first few maps tell.
    """
    if "demo" in data:
        if len(data) > 1:
            raise UserError("--data: demo has classes of its own; segment it alone")
        scenes = DemoSource(split, size=demo_size, on_progress=on_progress)
        names = scenes.label_classes[int(reduce_zero_label) :]
        table = named_table(names, reduce_zero_label, "--data demo")
        _check_classes(table, classes)
        return PairSource(scenes, DemoMaps(scenes), _limited(scenes, limit, seed), table)
    listings = list_data([_existing(value) for value in data])
    for listing in listings:
        _check_layout(listing)
    chosen = choose_members(listings, split, holdout, paired=True)
    images = FileSource(listings, chosen.members, max_megapixels=max_megapixels, notes=chosen.notes)
    maps = MapFiles(images, listings, _matching(listings, chosen.members), max_megapixels)
    notes = _notes_on_spare_maps(listings, [*chosen.training, *chosen.members])
    path = class_table or _found_table(listings)
    if path is not None:
        table, told = read_class_table(path, reduce_zero_label)
        notes += told
        _check_classes(table, classes)
    elif classes is not None:
        table = named_table(classes, reduce_zero_label, "the model")
    else:
        known = chosen.training if any(chosen.training) else chosen.members
        trained_on = FileSource(listings, known, max_megapixels=max_megapixels)
        table = _counted(
            MapFiles(trained_on, listings, _matching(listings, known), max_megapixels), reduce_zero_label
        )
        notes.append(
            f"{table.origin} has {len(table.names)} classes, known by numbers alone; --classes FILE names them"
        )
    source = PairSource(images, maps, _limited(images, limit, seed), table, notes)
    _look_over(maps, table)
    return source


# ------------------------------------------------------------------------------------------------------------
# Which map belongs to which image


def _existing(value: str) -> str:
    if value in NAMED_SETS and not os.path.exists(value):
        raise UserError(f"--data {value} has no label maps; name a folder with images/ and annotations/")
    return value


def _check_layout(listing: Listing) -> None:
    tops = {member.path.partition("/")[0] + "/" for member in listing.members}
    if {IMAGES, MAPS} <= tops:
        return
    inner = next((m.path.partition(f"/{MAPS}")[0] for m in listing.members if f"/{MAPS}" in m.path), None)
    remedy = (
        f"name the folder {os.path.join(listing.root, inner)} itself"
        if inner is not None
        else "put images into images/training and their label maps, under the same names, into annotations/training"
    )
    missing = " and no ".join(name for name in (IMAGES, MAPS) if name not in tops)
    raise UserError(f"--data {listing.root} has no {missing} with pictures in it; {remedy}")


def _stem(path: str, top: str) -> str:
    return os.path.splitext(path[len(top) :])[0]


def _matching(listings: Sequence[Listing], members: Sequence[Sequence[Member]]) -> list[list[Member]]:
    """The label map of every image; :class:`UserError` for an image without one, or with two."""
    matched, missing = [], []
    for listing, images in zip(listings, members, strict=True):
        maps = _maps_by_stem(listing)
        matched.append([maps[stem] for m in images if (stem := _stem(m.path, IMAGES)) in maps])
        missing += [(listing.root, m.path) for m in images if _stem(m.path, IMAGES) not in maps]
    if missing:
        root, path = missing[0]
        more = f" (nor have {len(missing) - 1:,} others)" if len(missing) > 1 else ""
        raise UserError(
            f"--data {root}: {path} has no label map {MAPS}{_stem(path, IMAGES)}.png{more}; add it, or remove the "
            f"image"
        )
    return matched


def _maps_by_stem(listing: Listing) -> Mapping[str, Member]:
    maps: dict[str, Member] = {}
    for member in listing.members:
        if member.path.startswith(MAPS):
            other = maps.setdefault(_stem(member.path, MAPS), member)
            if other is not member:
                raise UserError(
                    f"--data {listing.root}: {other.path} and {member.path} are label maps of one image; keep one"
                )
    return maps


def _notes_on_spare_maps(listings: Sequence[Listing], members: Sequence[Sequence[Member]]) -> list[str]:
    """What lies in the folders of maps without an image there."""
    notes = []
    for listing in listings:
        images = {_stem(m.path, IMAGES) for m in listing.members if m.path.startswith(IMAGES)}
        if spare := [m.path for stem, m in _maps_by_stem(listing).items() if stem not in images]:
            notes.append(
                f"{listing.root}: {len(spare):,} label maps without an image ignored, the first being {spare[0]}"
            )
    return notes


# ------------------------------------------------------------------------------------------------------------
# Classes


def _found_table(listings: Sequence[Listing]) -> str | None:
    """The class table that lies in one of the folders, or beside the tars."""
    folders = [os.path.dirname(listing.tars[0]) if listing.tars else listing.root for listing in listings]
    found = [path for folder in folders if (path := find_class_table(folder)) is not None]
    if len(found) > 1:
        raise UserError(
            f"--data: {found[0]} and {found[1]} both name classes; say which is meant with --classes FILE"
        )
    return found[0] if found else None


def _check_classes(table: ClassTable, classes: Sequence[str] | None) -> None:
    if classes is not None and tuple(classes) != table.names:
        raise UserError(
            f"{table.origin} has {len(table.names)} classes ({table.names[0]}, ...), the model {len(classes)} "
            f"({classes[0]}, ...), or in another order; evaluate on data of the model's classes"
        )


def _counted(maps: MapFiles, reduce_zero_label: bool) -> ClassTable:
    """Classes up to the highest number in the maps, or in an even choice of them."""
    highest, chosen = 0, _spread(len(maps), _COUNTED)
    for index, numbers in _readable(maps, chosen):
        number = int(numbers[numbers != IGNORE].max(initial=0))
        if number > MAX_CLASSES:
            raise UserError(
                f"{maps.name(index)} holds the number {number}; at most {MAX_CLASSES} classes can be told apart"
            )
        highest = max(highest, number)
    read = f"{len(chosen):,} of {len(maps):,} maps read" if len(chosen) < len(maps) else "all maps read"
    names = [str(number) for number in range(int(reduce_zero_label), highest + 1)]
    return named_table(names, reduce_zero_label, f"--data ({read})")


def _look_over(maps: MapFiles, table: ClassTable) -> None:
    """Refuse what the first few maps show to be wrong before anything is trained."""
    seen: set[int] = set()
    for index, numbers in _readable(maps, _spread(len(maps), _LOOKED_OVER)):
        table.indices(numbers, maps.name(index))
        seen.update(np.unique(numbers).tolist())
    if seen and seen <= {0, IGNORE} and (IGNORE in seen or table.reduce_zero_label):
        only = " and ".join(map(str, sorted(seen)))
        meaning = "both mean" if len(seen) > 1 and table.reduce_zero_label else f"{max(seen)} means"
        raise UserError(
            f"{maps.name(0)} and {_LOOKED_OVER - 1} other label maps hold {only} alone, and {meaning} 'no class'; "
            f"number the classes 0, 1, 2 and so on"
        )


def _readable(maps: MapFiles, indices: Iterable[int]) -> Iterable[tuple[int, NDArray[np.integer[Any]]]]:
    """The maps of these numbers without the damaged ones, which training will report."""
    for index in indices:
        try:
            yield index, maps.label_map(index)
        except ImageError:
            continue


def _spread(size: int, count: int) -> list[int]:
    """At most `count` numbers below `size`, evenly spaced."""
    return sorted({index * size // count for index in range(count)})


def _limited(images: Source, limit: int | None, seed: int) -> Sequence[int]:
    if limit is None or limit >= len(images):
        return range(len(images))
    return representative([images.key(index) for index in range(len(images))], limit, seed)
