"""One micro-batch made of its images, in this process or ahead in others."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from beit.config.errors import RunFailed, UserError
from beit.data.base import Source
from beit.data.decode import ImageError

View = Callable[..., Any]
"""(image, rng) -> sample, or with labels (image, label, rng) -> sample; a sample is a NamedTuple of tensors."""
Work = Sequence[tuple[int, int]]
"""What one micro-batch is made of: (epoch, image) pairs."""

_SAMPLES = 2  # first word of the seeds: no sample shares its stream with an order (1)
_REPLACEMENTS = 100  # tries before a set counts as unreadable
_PATIENCE = 900  # seconds without a batch after which a worker counts as hung


class WorkerError(RunFailed):
    """A loader process died or hangs; the message says which and what to do."""


class BadImage(NamedTuple):
    """A file that could not be used."""

    image: int
    name: str
    reason: str


class Fetched(NamedTuple):
    """What comes back from a worker."""

    batch: Any
    tried: int
    bad: list[BadImage]
    error: UserError | RunFailed | None = None
    """Why the run cannot go on. A value, because what is raised in a worker arrives as a quoted traceback."""


class Fetcher(Dataset[Fetched]):
    """Turns work into batches of `view`; damaged images are replaced by others, or left out."""

    def __init__(self, source: Source, view: View, seed: int, *, labeled: bool, replace: bool) -> None:
        self._source, self._view, self._seed = source, view, seed
        self._labeled, self._replace = labeled, replace

    def __getitem__(self, work: Work) -> Fetched:
        samples: list[Any] = []
        bad: list[BadImage] = []
        error: UserError | RunFailed | None = None
        for epoch, index in work:
            rng = np.random.default_rng((_SAMPLES, self._seed, epoch, index))
            try:
                sample = self._load(index, rng, bad)
            except (UserError, RunFailed) as mistake:
                error = mistake
                break
            if sample is not None:
                samples.append(sample)
        batch = _collate(samples) if samples and not error else None
        return Fetched(batch, len(samples) + len(bad), bad, error)

    def _load(self, index: int, rng: np.random.Generator, bad: list[BadImage]) -> Any | None:
        """The sample of image `index`, or of another one drawn from its own generator when it is damaged."""
        for _ in range(_REPLACEMENTS if self._replace else 1):
            try:
                image = self._source.image(index)
                labels = (self._source.label(index),) if self._labeled else ()
            except ImageError as error:
                bad.append(BadImage(index, error.name, error.reason))
                index = int(rng.integers(len(self._source)))
                continue
            return self._view(image, *labels, rng)
        if self._replace:
            raise RunFailed(
                f"--data: {_REPLACEMENTS} images in a row are damaged, the last being {bad[-1].name}: "
                f"{bad[-1].reason}; `beit check` lists the damaged files"
            )
        return None


Sample = TypeVar("Sample", bound=tuple[Tensor, ...])


def _collate(samples: Sequence[Sample]) -> Sample:
    """Samples to a batch of the same type: every field gets a first axis."""
    return type(samples[0])(*(torch.stack(field) for field in zip(*samples, strict=True)))


def fetch(
    fetcher: Fetcher, works: Iterable[Work], workers: int, pin_memory: bool = False
) -> Iterator[Fetched]:
    """``fetcher[work]`` for each of `works`, in order, computed ahead in `workers` processes (0: in this one)."""
    if workers == 0:
        return _fetch_here(fetcher, works)
    batches = _fetch_ahead(fetcher, works, workers, pin_memory)
    _unfinished.add(batches)
    return batches


_unfinished: weakref.WeakSet[Generator[Fetched]] = weakref.WeakSet()


@atexit.register
def _stop_workers() -> None:
    """Workers ignore SIGTERM, so multiprocessing would wait for them in vain at the end of the process."""
    for batches in list(_unfinished):
        batches.close()


def _fetch_here(fetcher: Fetcher, works: Iterable[Work]) -> Iterator[Fetched]:
    for work in works:
        # As in workers: how an operation is split among threads may change the last bit of a sum.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            fetched = fetcher[work]
        finally:
            torch.set_num_threads(threads)
        yield fetched


def _fetch_ahead(
    fetcher: Fetcher, works: Iterable[Work], workers: int, pin_memory: bool
) -> Generator[Fetched]:
    with warnings.catch_warnings():
        # More workers than cores pay where reading is slow, and --workers has been asked for.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            fetcher,
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


def _unchanged(fetched: Any) -> Any:
    return fetched


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
