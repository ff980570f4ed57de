"""Every member of a source read once, in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from torch.utils.data import Dataset

from beit.data.base import Source
from beit.data.loaders import fetch

_CHUNK = 64

AnySource = TypeVar("AnySource", bound=Source)
Result = TypeVar("Result")


class _Inspection(Dataset[list[Any]]):
    """What `inspect` says of the members of `source`, a few at a time."""

    def __init__(self, inspect: Callable[[Any, int], Any], source: Source) -> None:
        self.inspect, self.source = inspect, source

    def __getitem__(self, indices: Sequence[int]) -> list[Any]:
        return [self.inspect(self.source, index) for index in indices]


def inspect_all(
    inspect: Callable[[AnySource, int], Result], source: AnySource, workers: int | Literal["auto"]
) -> Iterator[Result]:
    """``inspect(source, index)`` for all of `source` in order, in `workers` processes (0: in this one; auto: as many
    as there are processors), a few dozen at a time.
    """
    workers = (os.cpu_count() or 1) if workers == "auto" else workers
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    inspection = _Inspection(inspect, source)
    for results in fetch(inspection, chunks, workers if len(chunks) > 1 else 0):
        yield from results
