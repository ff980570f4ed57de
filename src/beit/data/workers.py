"""Computing ahead in other processes, with errors that say what happened."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

_LOOK = (
    1  # seconds after which a wait is broken to see whether the workers are alive: they are not our children,
)
# so no signal tells of their death
_PATIENCE = 900  # seconds without a batch after which a worker counts as hung

Work = TypeVar("Work")
Result = TypeVar("Result")


class WorkerError(RuntimeError):
    """A loader process died or hangs; the message says which and what to do."""


def fetch(
    dataset: Dataset[Result], works: Iterable[Work], workers: int, pin_memory: bool = False
) -> Iterator[Result]:
    """``dataset[work]`` for each of `works`, in order, computed ahead in `workers` processes (0: in this one)."""
    if workers == 0:
        for work in works:
            with _one_thread():
                result = dataset[work]
            yield result
        return
    loader = DataLoader(
        dataset,
        batch_size=None,  # a unit of work is a micro-batch already
        sampler=works,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=_worker_context(),
        worker_init_fn=_start_worker,
        timeout=_LOOK,
        # Without a generator of its own, the loader would draw its base seed from the global one.
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    waited = 0
    while True:
        try:
            result = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            waited += _LOOK
            if "timed out" in str(error) and waited < _PATIENCE:
                continue
            raise _worker_error(error) from error
        waited = 0
        yield result


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


def _worker_context() -> Any:
    """Workers start from a clean server process: forking one that uses CUDA or threads is not safe, and starting
    a fresh interpreter for each is slow. The server imports torch once.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


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
