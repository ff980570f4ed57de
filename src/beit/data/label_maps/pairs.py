"""Images with label maps as a source: folders and tars in ADE20K's layout, images beside a folder of maps, or the
built-in scenes.

``images/`` lies beside ``annotations/``, and a map where its image does, under the same name:
``images/training/street.jpg`` and ``annotations/training/street.png``. A folder of maps (`--label-maps`) has that of
``photos/a/street.jpg`` as ``a/street.png``, and not of every image. Wrong maps are mistakes in the data and stop a
run; damaged files are left out like any others.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import beit.data.label_maps.table as tables
from beit.config.errors import UserError, given_by, require
from beit.config.run import DataConfig
from beit.config.segment import IGNORE
from beit.config.values import counted
from beit.data.base import SPLITS, Source, Split, Splits
from beit.data.decode import USUAL, Decoding, ImageError
from beit.data.label_maps.colors import ColorKey
from beit.data.label_maps.maps import MapFiles
from beit.data.sources.cache import ImageCache
from beit.data.sources.demo import DemoSource
from beit.data.sources.files import FileSource, Listing, Member, tabulate
from beit.data.sources.holdout import MAPPED, ClassesOf, Holdout
from beit.data.sources.listing import list_data, list_maps
from beit.data.sources.measure import settled
from beit.data.sources.opening import is_named_set, open_splits
from beit.data.sources.splits import Part, Parts, split_listings, unlabeled
from beit.data.sources.subsets import Subset, origin, spread

IMAGES, MAPS = "images/", "annotations/"
_CLASHES = {
    IMAGES: "images of one label map; rename one, and give it a map of its own",
    MAPS: "label maps of one image; keep one",
    "": "called alike, as an image and its label map are; rename one",
}


# ------------------------------------------------------------------------------------------------------------
# Pairs


def open_map_files(
    parts: Sequence[Part], decoding: Decoding, key: ColorKey, apart: Listing | None = None
) -> tuple[FileSource, MapFiles]:
    """The images in `parts` and their label maps, `apart` or in the same roots, whose colours `key` tells.

    Raises :class:`UserError` for an image without a map, or with two.
    """
    maps: list[Listing] = []
    missing: list[tuple[str, str]] = []
    top = IMAGES if apart is None else ""
    for part in parts:
        _by_stem(part.alone(), top)
        listing, map_of = apart or part.listing, _by_stem(apart, "") if apart else _by_stem(part.listing, MAPS)
        stems = {_stem(image.path, top): image.path for image in part.members}
        maps.append(replace(listing, members=tabulate(map_of[stem] for stem in stems if stem in map_of)))
        missing += [(part.listing.root, path) for stem, path in stems.items() if stem not in map_of]
    if missing:
        root, path = missing[0]
        more = f", and {counted(len(missing) - 1, 'other', 'has/have')} none" if len(missing) > 1 else ""
        lacks = f"the image {path} has no label map {MAPS}{_stem(path, IMAGES)}.png{more}"
        raise UserError(f"--data {root}: {lacks}; add it, or take the image away")
    images = FileSource(unlabeled(parts), decoding)
    return images, MapFiles(images, maps, decoding, key)


def check_layout(listing: Listing) -> None:
    """UserError unless there are images and label maps where they should be."""
    tops = {member.path.partition("/")[0] + "/" for member in listing.members}
    if {IMAGES, MAPS} <= tops:
        return
    inner = next((m.path.partition(f"/{MAPS}")[0] for m in listing.members if f"/{MAPS}" in m.path), None)
    folder = _set_around(listing.root) if inner is None else os.path.join(listing.root, inner)
    remedy = "put images into images/training and their label maps, of the same names, into annotations/training"
    if folder is not None:
        remedy = f"name the folder {folder} itself"
    missing = " and no ".join(name for name in (IMAGES, MAPS) if name not in tops)
    raise UserError(f"--data {listing.root} has no {missing} with pictures in it; {remedy}")


def _set_around(folder: str) -> str | None:
    """The set of which `folder` is a part, such as its images/ or images/training."""
    parents = Path(os.path.abspath(folder)).parents[:2]
    return next((str(p) for p in parents if (p / IMAGES).is_dir() and (p / MAPS).is_dir()), None)


def notes_on_spare_maps(listing: Listing) -> list[str]:
    """A line about label maps without images, where there are any."""
    images = _by_stem(listing, IMAGES)
    spare = [member.path for stem, member in _by_stem(listing, MAPS).items() if stem not in images]
    about = f"{listing.root}: {counted(len(spare), 'label map')} without an image ignored, the first being "
    return [about + spare[0]] if spare else []


def _by_stem(listing: Listing, top: str) -> dict[str, Member]:
    """What lies beneath `top` by its name without the ending; :class:`UserError` where two have the same."""
    members: dict[str, Member] = {}
    for member in listing.members:
        if member.path.startswith(top):
            other = members.setdefault(_stem(member.path, top), member)
            both = f"{other.path} and {member.path} are {_CLASHES[top]}"
            require(other is member, f"--data {listing.root}: {both}")
    return members


def _stem(path: str, top: str) -> str:
    return os.path.splitext(path[len(top) :])[0]


# ------------------------------------------------------------------------------------------------------------
# A source


class PairSource(Subset):
    """Images with their label maps, those of the numbers `indices`."""

    def __init__(
        self, images: Source, maps: MapFiles | DemoSource, table: tables.ClassTable, indices: Sequence[int]
    ) -> None:
        super().__init__(images, indices)
        self._maps, self.table = maps, table
        self.classes: tuple[str, ...] = table.names
        self.palette = table.palette
        self.notes += table.notes

    def chosen(self, indices: Sequence[int]) -> "PairSource":
        return PairSource(self._source, self._maps, self.table, self.indices[list(indices)].tolist())

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image's label map, from its header alone; raises :class:`ImageError`."""
        return self._maps.size(origin(self, index)[1])

    def label(self, index: int) -> Tensor:
        """uint8 (H, W): an index into `classes` for each pixel, 255 = no class.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a map that does not fit its image or
        the classes.
        """
        _, inner = origin(self, index)
        return self.table.indices(self._maps.label_map(inner), self._maps.name(inner))

    def count_pixels(self, at_most: int = 500) -> Tensor:
        """Pixels of each class, (C,), in an even choice of the label maps; UserError as of :meth:`label`, but damaged
        files are left to be met with their images."""
        counts = torch.zeros(IGNORE + 1, dtype=torch.int64)
        for index in spread(len(self), min(at_most, len(self))):
            with suppress(ImageError):
                counts += self.label(index).flatten().bincount(minlength=IGNORE + 1)
        return counts[: len(self.classes)]

    def describe(self) -> str:
        return f"{super().describe()}, with label maps of {len(self.classes)} classes"

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} {self._maps.fingerprint} {self.table.reduce_zero_label} {self.classes}"


def open_pairs(
    data: Sequence[str],
    *,
    holdout: Holdout,
    label_maps: str | None = None,
    reduce_zero_label: bool = False,
    class_table: str | None = None,
    classes: Sequence[str] | None = None,
    decoding: Decoding = USUAL,
) -> Splits[PairSource]:
    """The images of `data` by split (see :func:`open_splits`), with their label maps; those that have one in the
    folder `label_maps`, where that is given.

    `reduce_zero_label` makes 0 in a map "no class", and 1 the first one. Classes come from the file `class_table`, or
    from one that lies in the folder under a usual name, or are counted in the training maps; `classes` are those of a
    model that has its own. Raises :class:`UserError` for data that does not fit together, as far as names and a few
    maps tell; the others are checked when they are read.
    """
    if "demo" in data:
        require(len(data) == 1, "--data: demo has classes of its own; train on it alone")
        require(class_table is None, "--classes is for folders; demo has its own")
        require(not holdout.eval_data, "--eval-data is for folders; demo has its own")
        return _open_scenes(holdout, reduce_zero_label, classes)
    apart = None if label_maps is None else list_maps(label_maps)
    listings = _listings(data, apart, holdout)
    path = class_table or tables.find_class_table([*listings, *([apart] if apart else [])])
    if path is not None:
        listings = [listing.using(path) for listing in listings]
    parts = split_pairs(listings, holdout, apart)
    decoding, key = settled(parts, decoding), ColorKey(path)

    def open_split(split: Split) -> PairSource:
        images, maps = open_map_files(parts[split], decoding, key, apart)
        images.notes += [note for listing in listings if not apart for note in notes_on_spare_maps(listing)]
        file_of, count, _ = maps.numbers(at_most=16)
        if classes is not None:
            table = tables.table_of_model(classes, reduce_zero_label, path)
        elif path is not None:
            table = tables.table_of_data(path, reduce_zero_label, list(file_of), count)
        else:
            _, to_count = open_map_files(parts.get("train", parts[split]), decoding, key, apart)
            table = tables.counted_table(*to_count.numbers(), len(to_count), reduce_zero_label)
        for number, name in file_of.items():
            table.require(number, name)
        return PairSource(images, maps, table, range(len(images)))

    return Splits({split: partial(open_split, split) for split in SPLITS if split in parts})


def names_beside(data: DataConfig, cache: ImageCache) -> tuple[str | None, dict[int, str]]:
    """The class table beside the images or the label maps of `data`, where there is one, and its names by number."""
    apart = [list_maps(data.label_maps)] if data.label_maps else []
    path = None if "demo" in data.sources else tables.find_class_table([*list_data(data.sources, cache), *apart])
    return path, {} if path is None else {number: name for number, name, _ in tables.read_class_rows(path)}


def mapped_in(folder: str) -> ClassesOf:
    """Which images have a label map in a folder, as their one class."""
    map_of = _by_stem(list_maps(folder), "")
    return lambda key, _: (MAPPED,) if _stem(key, "") in map_of else ()


def split_pairs(listings: Sequence[Listing], holdout: Holdout, apart: Listing | None = None) -> Parts:
    """The parts of `listings` by split, training first; label maps go with their images, of which only those remain
    that have one where these lie `apart`. UserError where none has."""
    own = replace(holdout, share=0) if holdout.eval_data else holdout
    parts = dict(split_listings(listings, own, paired=apart is None))
    if holdout.eval_data:
        with given_by("--eval-data", instead_of="--data"):
            listings = _listings(holdout.eval_data, apart, holdout)
            others = split_listings(listings, Holdout(0, layout=holdout.layout), paired=apart is None)
        parts["val"] = others.get("val") or others.get("test") or others["train"]
    if apart is not None:
        parts = {split: [_mapped(part, apart) for part in of_split] for split, of_split in parts.items()}
        parts = {split: of_split for split, of_split in parts.items() if any(part.members for part in of_split)}
        require(bool(parts), f"--label-maps {apart.root} has no map of an image of --data; give both the same name")
    elif "test" in parts and not any(map(_has_maps, parts["test"])):
        note = "test has no label maps, so that nothing is judged on it"
        for part in parts.pop("test"):
            part.notes.append(f"{part.listing.root}: {note}")
    return parts


def _mapped(part: Part, maps: Listing) -> Part:
    """The images of a part that have a map, with a note."""
    map_of = _by_stem(maps, "")
    members = tabulate(member for member in part.members if _stem(member.path, "") in map_of)
    images = counted(len(part.members), "image")
    return part._replace(
        members=members, notes=[*part.notes, f"{len(members):,} of {images} with a label map in {maps.root}"]
    )


def _has_maps(part: Part) -> bool:
    map_of = _by_stem(part.listing, MAPS)
    return any(_stem(image.path, IMAGES) in map_of for image in part.members)


def _open_scenes(holdout: Holdout, reduce_zero_label: bool, classes: Sequence[str] | None) -> Splits[PairSource]:
    """The built-in scenes."""
    names = DemoSource.label_classes[int(reduce_zero_label) :]
    table = tables.named_table(names, reduce_zero_label, "--data demo")
    table = replace(table, notes=(table.zero,)) if classes is None else tables.reconcile(table, classes)
    splits = open_splits(["demo"], holdout=holdout)

    def open_split(split: Split) -> PairSource:
        scenes = splits[split]
        return PairSource(scenes, cast(DemoSource, origin(scenes, 0)[0]), table, range(len(scenes)))

    return Splits({split: partial(open_split, split) for split in splits})


def _listings(data: Sequence[str], apart: Listing | None, holdout: Holdout) -> list[Listing]:
    for value in data:
        if is_named_set(value) and not os.path.exists(value):
            raise UserError(f"--data {value} has no label maps; name a folder with images/ and annotations/")
    listings = list_data(data, holdout.cache)
    for listing in listings if apart is None else ():
        check_layout(listing)
    return listings
