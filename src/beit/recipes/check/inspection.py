"""Every member of a source looked at once, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from beit.data.base import Source

_CHUNK = 64

Examined = TypeVar("Examined", bound=Source)
Seen = TypeVar("Seen")

_examine: Callable[[Any, Sequence[int]], list[Any]]  # of a worker process
_source: Source


def examine_all(
    examine: Callable[[Examined, Sequence[int]], list[Seen]], source: Examined, workers: int
) -> Iterator[list[Seen]]:
    """``examine(source, indices)`` for all of `source` in order, a few dozen at a time, in `workers` processes (0: in
    this one). `examine` must be a function of a module.
    """
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    if workers < 2 or len(chunks) < 2:
        yield from (examine(source, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (examine, source)) as pool:
        yield from pool.map(_examine_in_worker, chunks)


def _start_worker(examine: Callable[[Any, Sequence[int]], list[Any]], source: Source) -> None:
    global _examine, _source
    _examine, _source = examine, source
    torch.set_num_threads(1)


def _examine_in_worker(indices: Sequence[int]) -> list[Any]:
    return _examine(_source, indices)
