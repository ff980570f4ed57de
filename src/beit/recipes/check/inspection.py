"""Every member of a source read once, in several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal, TypeVar

import torch

from beit.data.base import Source

_CHUNK = 64

AnySource = TypeVar("AnySource", bound=Source)
Result = TypeVar("Result")

_inspect: Callable[[Any, Sequence[int]], list[Any]]  # of a worker process
_source: Source


def inspect_all(
    inspect: Callable[[AnySource, Sequence[int]], list[Result]],
    source: AnySource,
    workers: int | Literal["auto"],
) -> Iterator[list[Result]]:
    """``inspect(source, indices)`` for all of `source` in order, a few dozen at a time, in `workers` processes (0: in
    this one; auto: as many as there are processors). `inspect` must be a function of a module.
    """
    workers = (os.cpu_count() or 1) if workers == "auto" else workers
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    if workers < 2 or len(chunks) < 2:
        yield from (inspect(source, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (inspect, source)) as pool:
        yield from pool.map(_inspect_in_worker, chunks)


def _start_worker(inspect: Callable[[Any, Sequence[int]], list[Any]], source: Source) -> None:
    global _inspect, _source
    _inspect, _source = inspect, source
    torch.set_num_threads(1)


def _inspect_in_worker(indices: Sequence[int]) -> list[Any]:
    return _inspect(_source, indices)
