"""Sources made of other sources, and the choices that make them: seeded, balanced, or evenly spaced."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from beit.config.errors import require
from beit.config.values import counted
from beit.data.base import Source, grouped, stable_hash


class _Joined(ABC):
    """Passes on what is asked about an image to the source that it is in."""

    @abstractmethod
    def _find(self, index: int) -> tuple[Source, int]:
        """The source, and the image's number there."""

    def name(self, index: int) -> str:
        source, inner = self._find(index)
        return source.name(inner)

    def key(self, index: int) -> str:
        source, inner = self._find(index)
        return source.key(inner)

    def image(self, index: int) -> Tensor:
        source, inner = self._find(index)
        return source.image(inner)

    def label(self, index: int) -> Any:
        source, inner = self._find(index)
        return source.label(inner)


class Subset(_Joined):
    """Some images of a source, in the order of `indices`; perhaps under `labels` of their own, of `classes`."""

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        labels: Sequence[int] | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self._source = source
        self.indices = np.array(indices, np.int64)
        self._labels = None if labels is None else np.array(labels, np.int64)
        self.classes = source.classes if labels is None else classes
        self.notes = list(source.notes)

    def label(self, index: int) -> Any:
        return super().label(index) if self._labels is None else int(self._labels[index])

    def _find(self, index: int) -> tuple[Source, int]:
        return self._source, int(self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)

    def chosen(self, indices: Sequence[int]) -> "Subset":
        """Some of them."""
        return Subset(self, indices)

    def describe(self) -> str:
        chosen = "" if len(self) == len(self._source) else f"{len(self):,} chosen of "
        own = "" if self._labels is None else f", {len(self.classes or ())} classes from a file"
        return f"{chosen}{self._source.describe()}{own}"

    @property
    def fingerprint(self) -> str:
        own = [] if self._labels is None else [repr([self.classes, self._labels.tolist()]).encode()]
        digests = (hashlib.blake2b(x, digest_size=16).hexdigest() for x in (self.indices.tobytes(), *own))
        return " ".join([self._source.fingerprint, *digests])


def origin(source: Source, index: int) -> tuple[Source, int]:
    """The source that is made of no other, and the image's number there."""
    while isinstance(source, _Joined):
        source, index = source._find(index)
    return source, index


class Concatenation(_Joined):
    """Several sources one after the other; with labels, they must agree on the classes."""

    def __init__(self, sources: Sequence[Source], labeled: bool) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        names = {source.classes for source in sources}
        alike = not labeled or len(names) == 1
        require(alike, "--data: the sets named together have different classes; train on one of them")
        self.classes = names.pop() if len(names) == 1 else None
        self.notes = [note for source in sources for note in source.notes]

    def _find(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[part], index - (int(self._ends[part - 1]) if part else 0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def describe(self) -> str:
        return f"{len(self):,} images: {'; '.join(source.describe() for source in self._sources)}"

    @property
    def fingerprint(self) -> str:
        return " + ".join(source.fingerprint for source in self._sources)


# ------------------------------------------------------------------------------------------------------------
# Choices


def spread(size: int, count: int) -> list[int]:
    """At most `count` different numbers below `size`, evenly spaced."""
    return sorted({index * size // count for index in range(count)})


def seeded_choice(source: Source, count: int | None, seed: int) -> list[int]:
    """Numbers of at most `count` images (None: of all) in rising order. With the same seed, a larger choice contains
    a smaller."""
    return sorted(_seeded_order(source, range(len(source)), seed)[:count])


def limited(source: Source, count: int | None, seed: int) -> Source:
    """At most `count` images of `source`, None for all."""
    if count is None or count >= len(source):
        return source
    return select(source, seeded_choice(source, count, seed))


def select(source: Source, indices: Sequence[int]) -> "Subset":
    """Some images of `source`, as what it is."""
    return source.chosen(indices) if isinstance(source, Subset) else Subset(source, indices)


def label_share(source: Source, share: float, seed: int, *, balanced: bool = True) -> Subset:
    """`share` of the images of each class, rounded, at least one; or, not `balanced`, of all images together.

    With the same seed, a larger share contains a smaller one.
    """
    return _few_labels(source, seed, lambda count: max(1, round(share * count)), balanced)


def labels_per_class(source: Source, count: int, seed: int) -> Subset:
    """`count` images of each class. Where a class has fewer, all of them, and a note says so.

    With the same seed, a larger count contains a smaller one.
    """
    subset = _few_labels(source, seed, lambda _: count, balanced=True)
    sizes = Counter(subset.label(index) for index in range(len(subset)))
    if short := [label for label in sorted(sizes) if sizes[label] < count]:
        name = source.classes[short[0]] if source.classes else str(short[0])
        first = f"the first being '{name}' with {sizes[short[0]]}"
        few = counted(len(short), "class", "has/have")
        subset.notes.append(f"{few} fewer than {counted(count, 'image')}, {first}")
    return subset


def _few_labels(source: Source, seed: int, how_many: Callable[[int], int], balanced: bool) -> Subset:
    """Of every class with n images, the first `how_many(n)` in a seeded order."""
    classes = grouped(range(len(source)), source.label if balanced else lambda index: 0)
    parts = (_seeded_order(source, indices, seed)[: how_many(len(indices))] for indices in classes)
    return Subset(source, sorted(index for part in parts for index in part))


def _seeded_order(source: Source, indices: Iterable[int], seed: int) -> list[int]:
    return sorted(indices, key=lambda index: stable_hash(f"{seed}:{source.key(index)}"))
