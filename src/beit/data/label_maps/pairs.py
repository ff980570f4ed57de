"""Images with label maps as a source: folders and tars in ADE20K's layout, or the built-in scenes.

``images/`` lies beside ``annotations/``, and a map where its image does, under the same name:
``images/training/street.jpg`` and ``annotations/training/street.png``. Wrong maps are mistakes in the data and stop
a run; damaged files are left out like any others.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.config.errors import UserError, require
from beit.data.base import Source, Split
from beit.data.decode import ImageError, open_pillow, upright
from beit.data.label_maps.table import (
    ClassTable,
    counted_table,
    find_class_table,
    named_table,
    reconcile,
    table_of_data,
    table_of_model,
)
from beit.data.sources.demo import DemoSource
from beit.data.sources.files import FileSource
from beit.data.sources.listing import Listing, Member, list_data
from beit.data.sources.opening import is_named_set
from beit.data.sources.splits import Files, Part, choose_members, unlabeled
from beit.data.sources.subsets import Subset, seeded_choice, spread

IMAGES, MAPS = "images/", "annotations/"
_CLASHES = {
    IMAGES: "images of one label map; rename one, and give it a map of its own",
    MAPS: "label maps of one image; keep one",
}
_LOSSY = ("JPEG", "MPO", "JPEG2000")
_SCALED_BITS = {"L;2": 85, "L;4": 17}
"""Gray of 2 and 4 bits, which Pillow spreads over 0..255."""


class MapFiles(FileSource):
    """Files of label maps, each as large as the image of the same index in `images`."""

    def __init__(self, images: FileSource, maps: Sequence[Listing], max_megapixels: float) -> None:
        super().__init__(Files(list(maps), []), max_megapixels)
        self._images = images

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        """(H, W), the numbers as they are stored.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for one that is no map of its image.
        """
        numbers = decode_label_map(self.read(index), self.name(index), self._max_megapixels)
        height, width = self._images.size(index)
        if numbers.shape != (height, width):
            raise UserError(
                f"{self.name(index)} has {numbers.shape[1]}x{numbers.shape[0]} pixels, but its image "
                f"{self._images.name(index)} {width}x{height}; make the map of the image as it is"
            )
        return numbers

    def numbers(self, at_most: int = 500) -> tuple[dict[int, str], int]:
        """Every number in an even choice of the maps with the name of a map that has it, and how many were read.

        Damaged files are left to be met by whoever reads them all.
        """
        names: dict[int, str] = {}
        indices = spread(len(self), at_most)
        for index in indices:
            with suppress(ImageError):
                numbers = np.unique(self.label_map(index)).tolist()
                names = {number: self.name(index) for number in numbers} | names
        return names, len(indices)


def decode_label_map(data: bytes, name: str, max_megapixels: float) -> NDArray[np.integer[Any]]:
    """The numbers in a gray or palette picture, (H, W), as they are stored: of a palette the indices, not colours.
    Turned by its own EXIF orientation like an image.

    Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a picture that holds colours, not
    numbers.
    """
    image = open_pillow(data, name, max_megapixels)
    if image.format in _LOSSY:
        raise UserError(
            f"{name} is a JPEG file, which changes the numbers of classes; write label maps as PNG from their source"
        )
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise UserError(
            f"{name} is a colour picture (mode {image.mode}) and no label map; write the number of its class for "
            f"each pixel, as a gray or palette PNG"
        )
    scale = _SCALED_BITS.get(_raw_mode(image), 1)
    try:
        with warnings.catch_warnings(action="ignore"):  # of metadata that plays no part here
            image.load()
            numbers = np.array(upright(image))
    except Exception as error:  # a damaged file may fail in any way a parser can fail
        raise ImageError(name, str(error) or type(error).__name__) from error
    return numbers.astype(np.uint8) if numbers.dtype == np.bool_ else numbers // scale


def _raw_mode(image: Image.Image) -> Any:
    """How the pixels lie in the file, as Pillow calls it; known only before they are read."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return arguments[0] if isinstance(arguments, tuple) else arguments


# ------------------------------------------------------------------------------------------------------------
# Pairs


def open_map_files(parts: Sequence[Part], max_megapixels: float) -> tuple[FileSource, MapFiles]:
    """The images in `parts` and their label maps.

    Raises :class:`UserError` for an image without a map, or with two.
    """
    maps: list[Listing] = []
    missing: list[tuple[str, str]] = []
    for part in parts:
        _by_stem(part.listing, IMAGES)
        map_of = _by_stem(part.listing, MAPS)
        stems = {_stem(image.path, IMAGES): image.path for image in part.members}
        maps.append(replace(part.listing, members=[map_of[stem] for stem in stems if stem in map_of]))
        missing += [(part.listing.root, path) for stem, path in stems.items() if stem not in map_of]
    if missing:
        root, path = missing[0]
        more = f", and {len(missing) - 1:,} others have none" if len(missing) > 1 else ""
        raise UserError(
            f"--data {root}: the image {path} has no label map {MAPS}{_stem(path, IMAGES)}.png{more}; "
            f"add it, or take the image away"
        )
    images = FileSource(unlabeled(parts), max_megapixels)
    return images, MapFiles(images, maps, max_megapixels)


def check_layout(listing: Listing) -> None:
    """UserError unless there are images and label maps where they should be."""
    tops = {member.path.partition("/")[0] + "/" for member in listing.members}
    if {IMAGES, MAPS} <= tops:
        return
    inner = next((m.path.partition(f"/{MAPS}")[0] for m in listing.members if f"/{MAPS}" in m.path), None)
    folder = _set_around(listing.root) if inner is None else os.path.join(listing.root, inner)
    remedy = (
        "put images into images/training and their label maps, of the same names, into annotations/training"
    )
    if folder is not None:
        remedy = f"name the folder {folder} itself"
    missing = " and no ".join(name for name in (IMAGES, MAPS) if name not in tops)
    raise UserError(f"--data {listing.root} has no {missing} with pictures in it; {remedy}")


def _set_around(folder: str) -> str | None:
    """The set of which `folder` is a part, such as its images/ or images/training."""
    parents = Path(os.path.abspath(folder)).parents[:2]
    return next((str(p) for p in parents if (p / IMAGES).is_dir() and (p / MAPS).is_dir()), None)


def notes_on_spare_maps(listings: Sequence[Listing]) -> list[str]:
    """A line for every listing that has label maps without images."""
    notes = []
    for listing in listings:
        images = _by_stem(listing, IMAGES)
        if spare := [m.path for stem, m in _by_stem(listing, MAPS).items() if stem not in images]:
            notes.append(
                f"{listing.root}: {len(spare):,} label maps without an image ignored, the first being {spare[0]}"
            )
    return notes


def _by_stem(listing: Listing, top: str) -> dict[str, Member]:
    """What lies beneath `top` by its name without the ending; :class:`UserError` where two have the same."""
    members: dict[str, Member] = {}
    for member in listing.members:
        if member.path.startswith(top):
            other = members.setdefault(_stem(member.path, top), member)
            if other is not member:
                raise UserError(f"--data {listing.root}: {other.path} and {member.path} are {_CLASHES[top]}")
    return members


def _stem(path: str, top: str) -> str:
    return os.path.splitext(path[len(top) :])[0]


# ------------------------------------------------------------------------------------------------------------
# A source


_SAMPLE = 16  # maps that are read before a run starts


class PairSource(Subset):
    """Images with their label maps; with a `limit`, a seeded choice of that many."""

    def __init__(
        self, images: Source, maps: MapFiles | DemoSource, table: ClassTable, limit: int | None, seed: int
    ) -> None:
        super().__init__(images, seeded_choice(images, limit, seed))
        self._maps, self.table = maps, table
        self.classes: tuple[str, ...] = table.names
        self.palette = table.palette
        self.notes += table.notes

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image's label map, from its header alone; raises :class:`ImageError`."""
        return self._maps.size(self._find(index)[1])

    def label(self, index: int) -> Tensor:
        """uint8 (H, W): an index into `classes` for each pixel, 255 = no class.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a map that does not fit its image or
        the classes.
        """
        _, inner = self._find(index)
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
        scenes = DemoSource(split)
        names = scenes.label_classes[int(reduce_zero_label) :]
        table = named_table(names, reduce_zero_label, "--data demo")
        zero = replace(table, notes=(table.zero,))
        table = zero if classes is None else reconcile(table, classes)
        return PairSource(scenes, scenes, table, limit, seed)
    listings = _listings(data)
    path = class_table or find_class_table(listings)
    if path is not None:
        listings = [listing.using(path) for listing in listings]
    parts = choose_members(listings, split, holdout, paired=True)
    images, maps = open_map_files(parts, max_megapixels)
    images.notes += notes_on_spare_maps(listings)
    file_of, count = maps.numbers(_SAMPLE)
    if classes is not None:
        table = table_of_model(classes, reduce_zero_label, path)
    elif path is not None:
        table = table_of_data(path, reduce_zero_label, list(file_of), count)
    else:
        training = [part._replace(members=part.training) for part in parts if part.training]
        _, to_count = open_map_files(training or parts, max_megapixels)
        table = counted_table(to_count.numbers(), len(to_count), reduce_zero_label)
    for number, name in file_of.items():
        table.require(number, name)
    return PairSource(images, maps, table, limit, seed)


def _listings(data: Sequence[str]) -> list[Listing]:
    for value in data:
        if is_named_set(value) and not os.path.exists(value):
            raise UserError(f"--data {value} has no label maps; name a folder with images/ and annotations/")
    listings = list_data(data)
    for listing in listings:
        check_layout(listing)
    return listings
