"""Work done ahead in other processes, in order, whose silence and death are told from each other."""

import atexit
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from copy import copy
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from beit.config.errors import RunFailed
from beit.data.base import Source
from beit.patience import DEFAULT, OutOfPatience, Silence, patience

Result = TypeVar("Result", covariant=True)

AnySource = TypeVar("AnySource", bound=Source)

_CHUNK = 64
_LANES = 64  # workers whose progress is followed
_DEATH = getattr(signal, "SIGCHLD", signal.SIGINT)  # Windows has no signal for it


class WorkerError(RunFailed):
    """A loader process died; the message says which and what to do."""


class Task(Dataset[Result]):
    """What workers do: ``task[work]`` is the result of a piece of work."""

    def __init__(self, timeout: float = 3 * DEFAULT) -> None:
        self.timeout = timeout
        """Seconds that all workers together may be silent."""
        self.progress = torch.zeros(_LANES, 2, dtype=torch.int64)
        """Of each worker, how many images it has begun, and the last of them; shared with workers."""

    def begin(self, index: int) -> None:
        """Note that this process turns to an image."""
        lane = self.progress.numpy()[getattr(get_worker_info(), "id", 0) % _LANES]
        lane[:] = lane[0] + 1, index

    def place(self, index: int) -> str:
        """What an image is called, for messages about a worker that was last seen there."""
        return ""


def fetch(task: Task[Any], works: Iterable[Any], workers: int, pin_memory: bool = False) -> Iterator[Any]:
    """``task[work]`` for each of `works`, in order, computed ahead in `workers` processes (0: in this one)."""
    if workers == 0:
        return _fetch_here(task, works)
    batches = _fetch_ahead(task, works, workers, pin_memory)
    _unfinished.add(batches)
    return batches


_unfinished: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()


@atexit.register
def _stop_workers() -> None:
    """Workers ignore SIGTERM, so multiprocessing would wait for them in vain at the end of the process."""
    for batches in list(_unfinished):
        batches.close()


def fetch_each(
    visit: Callable[[AnySource, int], Any], source: AnySource, workers: int | Literal["auto"]
) -> Iterator[Any]:
    """``visit(source, index)`` for all of `source` in order, in `workers` processes (0: in this one; auto: as many as
    there are processors), a few dozen at a time."""
    workers = (os.cpu_count() or 1) if workers == "auto" else workers
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    for results in fetch(_Visits(visit, source), chunks, workers if len(chunks) > 1 else 0):
        yield from results


class _Visits(Task[list[Any]]):
    """A few members of a source at a time."""

    def __init__(self, visit: Callable[[Any, int], Any], source: Source) -> None:
        super().__init__()
        self.visit, self.source = visit, source

    def __getitem__(self, indices: Sequence[int]) -> list[Any]:
        return [self.visit(self.source, index) for index in indices]


def _fetch_here(task: Task[Any], works: Iterable[Any]) -> Iterator[Any]:
    for work in works:
        # As in workers: how an operation is split among threads may change the last bit of a sum.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            fetched = task[work]
        finally:
            torch.set_num_threads(threads)
        yield fetched


def _fetch_ahead(task: Task[Any], works: Iterable[Any], workers: int, pin_memory: bool) -> Generator[Any]:
    iterator = _start_workers(task, works, workers, pin_memory)
    try:
        while (fetched := _wait_for_next(iterator, task)) is not None:
            yield fetched
    except (OutOfPatience, RuntimeError, OSError, EOFError) as error:
        raise _worker_error(error, iterator, task) from error
    finally:
        # A traceback may keep the iterator alive to the end of the process, and its workers with it.
        iterator._shutdown_workers()
        for worker in iterator._workers:  # one that hangs hears nothing else
            worker.kill()


def _start_workers(task: Task[Any], works: Iterable[Any], workers: int, pin_memory: bool) -> Any:
    task.progress.share_memory_()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # More workers than cores pay where reading is slow, and --workers has been asked for.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            task,
            batch_size=None,  # a unit of work is a micro-batch already
            sampler=works,
            num_workers=workers,
            pin_memory=pin_memory,
            multiprocessing_context=_context(),
            worker_init_fn=_start_worker,
            timeout=1,  # then it looks whether all are alive
            # Without a generator of its own, the loader would draw its base seed from the global one.
            generator=torch.Generator(),
        )
        on_death = signal.getsignal(_DEATH)
        iterator = iter(loader)
    # The loader's own handler raises wherever the main thread is; deaths are looked for where a batch is awaited.
    if threading.current_thread() is threading.main_thread():
        signal.signal(_DEATH, on_death)
    return iterator


def _context() -> BaseContext:
    """Forked workers, where there are any: they share the tables of a source."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = copy(multiprocessing.get_context(method))
    context.Event = _End  # type: ignore[method-assign,assignment]
    return context


class _End:
    """An Event that none can wait for: asking a usual one takes a lock, and who is killed then keeps it for ever."""

    def __init__(self) -> None:
        self._told = multiprocessing.RawValue("b", 0)

    def set(self) -> None:
        self._told.value = 1

    def is_set(self) -> bool:
        return bool(self._told.value)


def _wait_for_next(iterator: Any, task: Task[Any]) -> Any:
    """The next batch, None after the last; patient as long as any worker gets on."""
    while True:
        before = task.progress.clone()
        with patience(task.timeout):
            while torch.equal(before, task.progress):
                try:
                    return next(iterator, None)
                except RuntimeError as error:
                    if "DataLoader timed out" not in str(error):
                        raise


def _worker_error(error: BaseException, iterator: Any, task: Task[Any]) -> BaseException:
    """What `error`, which ended the work ahead, comes from, in words; itself where it comes from no process."""
    reason, workers = str(error).partition("\n")[0], iterator._workers
    dead = wait([worker.sentinel for worker in workers], 1)
    if isinstance(error, OutOfPatience) and not dead:
        worker = workers[(number := iterator._task_info[iterator._rcvd_idx][0])]
        worker.kill()
        seen = int(task.progress[number % _LANES, 1])
        return Silence(f"loader process {worker.pid} is silent{task.place(seen)}: a disk hangs or --timeout is short")
    if not dead and "exited unexpectedly" not in reason:
        return error
    pids = ", ".join(str(worker.pid) for worker in workers if worker.sentinel in dead)
    return WorkerError(
        f"a loader process died (pid {pids}: {reason}); most often memory ran out: lower --workers. "
        f'In a script, training must be called under `if __name__ == "__main__":`'
    )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and SIGTERM reach the whole process group; the main process ends its step and then stops the workers.
    for number in {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"} & signal.Signals.__members__.keys():
        signal.signal(signal.Signals[number], signal.SIG_IGN)
