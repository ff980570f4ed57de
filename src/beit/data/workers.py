"""Computing ahead in other processes, with errors that say what happened."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import weakref
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from beit.config.errors import RunFailed

_PATIENCE = 900  # seconds without a batch after which a worker counts as hung

Work = TypeVar("Work")
Result = TypeVar("Result")


class WorkerError(RunFailed):
    """A loader process died or hangs; the message says which and what to do."""


def fetch(
    dataset: Dataset[Result], works: Iterable[Work], workers: int, pin_memory: bool = False
) -> Iterator[Result]:
    """``dataset[work]`` for each of `works`, in order, computed ahead in `workers` processes (0: in this one)."""
    if workers == 0:
        return _fetch_here(dataset, works)
    results = _fetch_ahead(dataset, works, workers, pin_memory)
    _unfinished.add(results)
    return results


_unfinished: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()


@atexit.register
def _stop_workers() -> None:
    """Workers ignore SIGTERM, so multiprocessing would wait for them in vain at the end of the process."""
    for results in list(_unfinished):
        results.close()


def _fetch_here(dataset: Dataset[Result], works: Iterable[Work]) -> Iterator[Result]:
    for work in works:
        with _one_thread():
            result = dataset[work]
        yield result


def _fetch_ahead(
    dataset: Dataset[Result], works: Iterable[Work], workers: int, pin_memory: bool
) -> Generator[Result]:
    loader = DataLoader(
        dataset,
        batch_size=None,  # a unit of work is a micro-batch already
        sampler=works,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        # Forked workers share the tables of a source, and their death is noticed at once.
        multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn",
        worker_init_fn=_start_worker,
        timeout=_PATIENCE,
        # Without a generator of its own, the loader would draw its base seed from the global one.
        generator=torch.Generator(),
    )
    iterator: Any = iter(loader)
    try:
        yield from iterator
    except RuntimeError as error:
        raise _worker_error(error) from error
    finally:
        # A traceback may keep the iterator alive to the end of the process, and its workers with it.
        iterator._shutdown_workers()


@contextmanager
def _one_thread() -> Iterator[None]:
    """What workers have: how work is split among threads may change the last bit of a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _unchanged(result: Any) -> Any:
    return result


def _worker_error(error: RuntimeError) -> RuntimeError:
    text = str(error)
    if "exited unexpectedly" in text or "killed by signal" in text:
        return WorkerError(
            f"a loader process died ({text.splitlines()[0]}); most often memory ran out: lower --workers. "
            f'In a script, training must be called under `if __name__ == "__main__":`'
        )
    if "timed out" in text:
        return WorkerError(
            f"no batch for {_PATIENCE} seconds: a loader process hangs; check the disk of --data"
        )
    return error


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and SIGTERM reach the whole process group; the main process ends its step and then stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
