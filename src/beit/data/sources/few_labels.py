"""Fewer labels on purpose: a seeded choice of a labelled source, alike for every class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from beit.data.base import Source, stable_hash
from beit.data.sources.subsets import Subset


def label_share(source: Source, share: float, seed: int, *, balanced: bool = True) -> Subset:
    """`share` of the images of each class, rounded, at least one; or, not `balanced`, of all images together.

    With the same seed, a larger share contains a smaller one.
    """
    return _choose(source, seed, lambda count: max(1, round(share * count)), balanced)


def labels_per_class(source: Source, count: int, seed: int) -> Subset:
    """`count` images of each class. Where a class has fewer, all of them, and a note says so.

    With the same seed, a larger count contains a smaller one.
    """
    chosen = _choose(source, seed, lambda _: count, balanced=True)
    sizes = Counter(chosen.label(index) for index in range(len(chosen)))
    if short := [label for label in sorted(sizes) if sizes[label] < count]:
        name = source.classes[short[0]] if source.classes else str(short[0])
        chosen.notes.append(
            f"{len(short)} classes have fewer than {count} images, the first being '{name}' with {sizes[short[0]]}"
        )
    return chosen


def _choose(source: Source, seed: int, how_many: Callable[[int], int], balanced: bool) -> Subset:
    """Of every class with n images, the first `how_many(n)` in an order of seeded hashes."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(source)):
        members[source.label(index) if balanced else 0].append(index)
    chosen: list[int] = []
    for indices in members.values():
        order = sorted(indices, key=lambda i: stable_hash(f"{seed}:{source.key(i)}"))
        chosen += order[: how_many(len(indices))]
    subset = Subset(source, sorted(chosen))
    subset.notes = list(source.notes)
    return subset
