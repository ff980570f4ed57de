"""The training images that take the place of `val` where a set has none: a function of the data alone.

A share of each class, exact in number, first by a hash of the path. Images with the same bytes stay together, and
those of one group; a class never loses its last training image.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from beit.config.errors import UserError
from beit.config.run import LayoutName
from beit.config.values import counted
from beit.data.base import Source, grouped, stable_hash
from beit.data.decode import ImageError
from beit.data.sources.cache import ImageCache
from beit.data.sources.files import full_name
from beit.data.sources.subsets import Concatenation, origin, select

SHARE, SHARE_OF_FEW, FEW = 0.05, 0.2, 2000
"""What is held back of the images; and of labelled images where a root has fewer of them than FEW."""
_TAIL = 1024
"""Bytes at the end of a file that tell most files of one length apart."""
MAPPED = "label map"
"""The one class of images that have a label map, so that some of these are held back."""

ClassesOf = Callable[[str, str], Sequence[str]]
Members = list[list[int]]
"""Numbers of images that belong together, for each unit or class."""


@dataclass(frozen=True)
class Holdout:
    """What takes the place of `val`."""

    share: float | None = None
    """Share of the training images; 0 for none, None for the rule."""
    group_by: str | None = None
    """Regular expression on a path; images with the same first group stay together."""
    classes_of: ClassesOf | None = None
    """The classes of an image by its key and its name, from a file; they count instead of folders."""
    eval_data: tuple[str, ...] = ()
    """Other data to be `val`."""
    layout: LayoutName | None = None
    """Whether folders named like splits are splits, where names leave it open."""
    listed: frozenset[str] = frozenset()
    """The full names of the images to hold back, where a run has chosen some of them before."""
    cache: ImageCache = field(default_factory=ImageCache)
    """What has been found out about the images, in this start or an earlier one."""


class Pool(Source, Protocol):
    """A source that is made of no other."""

    def length(self, index: int) -> int:
        """Bytes that the image takes; raises :class:`ImageError`."""

    def read(self, index: int, last: int | None = None) -> bytes:
        """These bytes, or no more than the `last`; raises :class:`ImageError`."""


def hold_back(pool: Source, classes: Sequence[Sequence[str]], holdout: Holdout, root: str) -> tuple[list[int], str]:
    """The numbers, rising, of the images in `pool` to hold back, which have `classes`, and the same in words.
    UserError where --group-by fits no path."""
    size = len(pool)
    if listed := [i for i in range(size) if holdout.listed and full_name(pool, i) in holdout.listed]:
        return listed, f"{root}: the model's run held {len(listed):,} of {size:,} images back as val"
    if holdout.share == 0 or size < 2:
        return [], idle_note(root, holdout, "no image is held back")
    keys = [pool.key(index) for index in range(size)]
    together, about = equal_images([pool], bool, holdout.cache), ""
    if holdout.group_by is not None:
        groups = named_groups(keys, holdout.group_by)
        if not groups:
            raise UserError(f"--group-by {holdout.group_by} matches no path in {root}, such as {keys[0]}; correct it")
        together += groups
        about = f", none of {counted(len(groups), 'group')} divided"
    units = units_of(size, together)
    rows = _true_classes(classes, units)
    held_back = choose_held_back(keys, rows, units, holdout.share)
    if kinds := len({name for row in rows for name in row} - {MAPPED}):
        about = f", evenly of {counted(kinds, 'class')} (labels are read for this choice){about}"
    return held_back, f"{root}: {len(held_back):,} of {size:,} training images held back as val{about}"


def idle_note(root: str, holdout: Holdout, reason: str) -> str:
    """That flags about what is held back have no effect, where there are any."""
    flags = ["--holdout"] * bool(holdout.share) + ["--group-by"] * (holdout.group_by is not None)
    return f"{root}: {' and '.join(flags)} without effect, because {reason}" if flags else ""


def _true_classes(classes: Sequence[Sequence[str]], units: Sequence[int]) -> Sequence[Sequence[str]]:
    """`classes`; none where there is one alone, or where each is a single unit: a folder for every image names no
    class, nor one for every patient whose images stay together."""
    pairs = {(name, unit) for row, unit in zip(classes, units, strict=True) for name in row}
    sizes = Counter(name for name, _ in pairs)
    return classes if (len(sizes) > 1 or MAPPED in sizes) and max(sizes.values()) > 1 else [()] * len(classes)


# ------------------------------------------------------------------------------------------------------------
# The choice


def choose_held_back(
    keys: Sequence[str], classes: Sequence[Sequence[str]], units: Sequence[int], share: float | None
) -> list[int]:
    """Numbers of the images to hold back, rising; none only where nothing can be spared.

    Args:
        keys: Paths, whose hashes give the order.
        classes: Of each image: none, one, or several. An image of several counts as one of its rarest.
        units: Of each image the number of its unit, which is held back whole or not at all.
        share: Above 0; None for the rule.
    """
    hashes = [stable_hash(key) for key in keys]
    spare = Counter(name for row in classes for name in row)
    spare[""] = len(keys)  # one of all must stay, whatever its class
    strata = [min(row, key=lambda name: (spare[name], name), default="") for row in classes]
    short = Counter(_quotas(strata, hashes, share))
    waiting = sorted(
        grouped(range(len(units)), units.__getitem__),
        key=lambda unit: hashes[min(unit, key=lambda index: keys[index])],
    )
    chosen: Members = []

    def take(fits: Callable[[Counter[str]], bool], at_most: int) -> None:
        """Hold back units that are waiting, in order, if they fit and leave one of every class to train on."""
        rest: Members = []
        for unit in waiting:
            parts = Counter(strata[index] for index in unit)
            lost = Counter(name for index in unit for name in ("", *classes[index]))
            if len(chosen) < at_most and fits(parts) and all(spare[name] > lost[name] for name in lost):
                chosen.append(unit)
                short.subtract(parts)
                spare.subtract(lost)
            else:
                rest.append(unit)
        waiting[:] = rest

    take(lambda parts: all(count <= short[name] for name, count in parts.items()), len(keys))
    if any(short.values()):  # units that are too large to fit, if too many images are nearer than too few
        take(lambda parts: sum(abs(short[n] - c) - abs(short[n]) for n, c in parts.items()) < 0, len(keys))
    if not chosen:
        waiting.sort(key=len)
        take(lambda parts: True, 1)
    return sorted(index for unit in chosen for index in unit)


def _quotas(strata: Sequence[str], hashes: Sequence[int], share: float | None) -> dict[str, int]:
    """How many images each class gives, "" standing for no class: in sum the share of all, to the image."""
    sizes = Counter(strata)
    labeled = len(strata) - sizes[""]
    of_class = (SHARE_OF_FEW if labeled < FEW else SHARE) if share is None else share
    of_rest = SHARE if share is None else share
    room = {name: size - (name != "") for name, size in sizes.items() if size > (name != "")}
    exact = {name: sizes[name] * (of_class if name else of_rest) for name in room}
    quotas = {name: min(int(exact[name]), room[name]) for name in room}
    missing = max(1, round(sum(exact.values()))) - sum(quotas.values())
    # Of equal remainders the one whose first image comes first: what classes are called plays no part.
    place: dict[str, int] = {}
    for value, name in zip(hashes, strata, strict=True):
        place[name] = min(value, place.get(name, value))
    for name in sorted(room, key=lambda name: (quotas[name] - exact[name], place[name])):
        if missing > 0 and quotas[name] < room[name]:
            quotas[name], missing = quotas[name] + 1, missing - 1
    return quotas


# ------------------------------------------------------------------------------------------------------------
# Units


def units_of(size: int, together: Iterable[Sequence[int]]) -> list[int]:
    """Of each of `size` images the number of its unit, where each set in `together` belongs to one."""
    parent = list(range(size))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, *others in together:
        for other in others:
            parent[root(other)] = root(first)
    return [root(index) for index in range(size)]


def without_copies(train: Source, judged: Sequence[Source], cache: ImageCache) -> Source:
    """`train` but for the images of the same bytes as one of `judged`, with a note."""
    size, sources = len(train), [train, *judged]

    def copies_in_train() -> Iterator[NDArray[np.int64]]:
        groups = equal_images(sources, lambda group: group[0] < size <= group[-1], cache)
        yield np.array(sorted({index for group in groups for index in group if index < size}), np.int64)

    [copies] = cache.recall(("copies", *(source.fingerprint for source in sources)), copies_in_train)
    if not len(copies):
        return train
    rest = select(train, np.delete(np.arange(size), copies).tolist())
    first = f"the first being {train.name(int(copies[0]))}"
    rest.notes.append(f"{counted(len(copies), 'image')} left out of training, being judged on too, {first}")
    return rest


def equal_images(sources: Sequence[Source], matters: Callable[[list[int]], object], cache: ImageCache) -> Members:
    """Sets of images with the same bytes that matter, numbered through all `sources`. Files of one length are
    compared by their ends, and only where these agree in whole: a large set costs a short read of each file."""
    together = Concatenation(sources, labeled=False)

    def content(number: int, last: int | None) -> Hashable:
        """That of an image as far as it is looked at; a damaged one has none."""
        source, index = cast(tuple[Pool, int], origin(together, number))
        with suppress(ImageError, OSError):
            length = source.length(index)
            return length, last == 0 or hashlib.blake2b(source.read(index, last), digest_size=16).digest()
        return None

    groups: Members = [list(range(len(together)))]
    for last in (0, _TAIL, None):
        numbers = cache.track(chain.from_iterable(groups), "comparing images")
        groups = [group for group in grouped(numbers, partial(content, last=last)) if group[1:] and matters(group)]
    return groups


def named_groups(keys: Sequence[str], pattern: str) -> Members:
    matches = [re.search(pattern, key) for key in keys]
    return grouped(range(len(keys)), lambda index: (match := matches[index]) and match[1])
