"""Sources made of other sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beit.config.errors import UserError
from beit.data.base import Source


class Subset:
    """Some images of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = torch.tensor(indices, dtype=torch.int64)
        self.classes = source.classes
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def key(self, index: int) -> str:
        return self._source.key(int(self._indices[index]))

    def image(self, index: int) -> Tensor:
        return self._source.image(int(self._indices[index]))

    def label(self, index: int) -> Any:
        return self._source.label(int(self._indices[index]))

    def describe(self) -> str:
        whole = len(self) == len(self._source)
        return self._source.describe() if whole else f"{len(self):,} chosen of {self._source.describe()}"

    @property
    def fingerprint(self) -> str:
        chosen = hashlib.blake2b(self._indices.numpy().tobytes(), digest_size=16).hexdigest()
        return f"{self._source.fingerprint} {chosen}"


class Numbered(Subset):
    """A source whose labels are the numbers of its images: what is computed finds its image again."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, range(len(source)))

    def label(self, index: int) -> int:
        return index


class Concatenation:
    """Several sources one after the other; with labels, they must agree on the classes."""

    def __init__(self, sources: Sequence[Source], labeled: bool) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        names = {source.classes for source in sources}
        if labeled and len(names) > 1:
            raise UserError("--data: the sets named together have different classes; train on one of them")
        self.classes = names.pop() if len(names) == 1 else None
        self.notes = [note for source in sources for note in source.notes]

    def _find(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[part], index - (int(self._ends[part - 1]) if part else 0)

    def __len__(self) -> int:
        return int(self._ends[-1])

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

    def describe(self) -> str:
        return f"{len(self):,} images: {'; '.join(source.describe() for source in self._sources)}"

    @property
    def fingerprint(self) -> str:
        return " + ".join(source.fingerprint for source in self._sources)


def spread(size: int, count: int) -> list[int]:
    """At most `count` different numbers below `size`, evenly spaced."""
    return sorted({index * size // count for index in range(count)})
