"""Which label map belongs to which image: ``images/`` beside ``annotations/``, as ADE20K lays them out.

A map lies where its image does, under the same name: ``images/training/street.jpg`` and
``annotations/training/street.png``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.config.errors import UserError
from beit.data.decode import ImageError
from beit.data.label_maps.decode import decode_label_map
from beit.data.sources.files import FileSource
from beit.data.sources.listing import Listing, Member

IMAGES, MAPS = "images/", "annotations/"


class MapFiles(FileSource):
    """Files of label maps, each as large as the image of the same index in `images`."""

    def __init__(
        self,
        images: FileSource,
        listings: Sequence[Listing],
        members: Sequence[Sequence[Member]],
        max_megapixels: float,
    ) -> None:
        super().__init__(listings, members, max_megapixels=max_megapixels)
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

    def numbers(self, at_most: int) -> tuple[dict[int, str], int]:
        """Every number in an even choice of the maps with the name of a map that has it, and how many were read.

        Damaged files are left to be found by whoever reads them all.
        """
        found: dict[int, str] = {}
        chosen = {index * len(self) // at_most for index in range(at_most)}
        for index in sorted(chosen):
            try:
                numbers = self.label_map(index)
            except ImageError:
                continue
            found = {number: self.name(index) for number in np.unique(numbers).tolist()} | found
        return found, len(chosen)


def open_map_files(
    listings: Sequence[Listing],
    members: Sequence[Sequence[Member]],
    *,
    max_megapixels: float,
    notes: Sequence[str] = (),
) -> tuple[FileSource, MapFiles]:
    """The images `members[i]` of `listings[i]` and their label maps.

    Raises :class:`UserError` for an image without a map, or with two.
    """
    images = FileSource(listings, members, max_megapixels=max_megapixels, notes=notes)
    return images, MapFiles(images, listings, _matching(listings, members), max_megapixels)


def check_layout(listing: Listing) -> None:
    """UserError unless there are images and label maps where they should be."""
    tops = {member.path.partition("/")[0] + "/" for member in listing.members}
    if {IMAGES, MAPS} <= tops:
        return
    inner = next((m.path.partition(f"/{MAPS}")[0] for m in listing.members if f"/{MAPS}" in m.path), None)
    named = _set_around(listing.root) if inner is None else os.path.join(listing.root, inner)
    remedy = (
        f"name the folder {named} itself"
        if named is not None
        else "put images into images/training and their label maps, of the same names, into annotations/training"
    )
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


def _matching(listings: Sequence[Listing], members: Sequence[Sequence[Member]]) -> list[list[Member]]:
    """The label map of every image."""
    matched: list[list[Member]] = []
    missing: list[tuple[Listing, Member]] = []
    for listing, images in zip(listings, members, strict=True):
        _by_stem(listing, IMAGES)
        maps = _by_stem(listing, MAPS)
        found = [maps.get(_stem(member.path, IMAGES)) for member in images]
        matched.append([member for member in found if member is not None])
        missing += [(listing, image) for image, member in zip(images, found, strict=True) if member is None]
    if missing:
        listing, image = missing[0]
        more = f", and {len(missing) - 1:,} others have none" if len(missing) > 1 else ""
        raise UserError(
            f"--data {listing.root}: the image {image.path} has no label map "
            f"{MAPS}{_stem(image.path, IMAGES)}.png{more}; add it, or take the image away"
        )
    return matched


def _by_stem(listing: Listing, top: str) -> Mapping[str, Member]:
    """What lies beneath `top` by its name without the ending; :class:`UserError` where two have the same."""
    found: dict[str, Member] = {}
    for member in listing.members:
        if member.path.startswith(top):
            other = found.setdefault(_stem(member.path, top), member)
            if other is not member:
                clash = (
                    "are label maps of one image; keep one"
                    if top == MAPS
                    else "are images of one label map; rename one, and give it a map of its own"
                )
                raise UserError(f"--data {listing.root}: {other.path} and {member.path} {clash}")
    return found


def _stem(path: str, top: str) -> str:
    return os.path.splitext(path[len(top) :])[0]
