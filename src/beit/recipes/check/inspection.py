"""Every member of a source read once, in several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal, TypeVar

import torch

from beit.data.base import Source

_CHUNK = 64

AnySource = TypeVar("AnySource", bound=Source)
Result = TypeVar("Result")

_inspect: Callable[[Any, int], Any]  # of a worker process
_source: Source


def inspect_all(
    inspect: Callable[[AnySource, int], Result], source: AnySource, workers: int | Literal["auto"]
) -> Iterator[Result]:
    """``inspect(source, index)`` for all of `source` in order, in `workers` processes (0: in this one; auto: as many
    as there are processors), a few dozen at a time. `inspect` must be a function of a module.
    """
    workers = (os.cpu_count() or 1) if workers == "auto" else workers
    if workers < 2 or len(source) <= _CHUNK:
        yield from (inspect(source, index) for index in range(len(source)))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (inspect, source)) as pool:
        yield from pool.map(_inspect_in_worker, range(len(source)), chunksize=_CHUNK)


def _start_worker(inspect: Callable[[Any, int], Any], source: Source) -> None:
    global _inspect, _source
    _inspect, _source = inspect, source
    torch.set_num_threads(1)


def _inspect_in_worker(index: int) -> Any:
    return _inspect(_source, index)
