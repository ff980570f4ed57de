"""Batches whose content depends on nothing but (seed, step): not on workers, ranks, accumulation or interruptions.

The loader keeps no state. Position p = step * batch_size + j of an endless stream belongs to epoch p // N and shows
image permutation(seed, epoch)[p % N]; all randomness of that sample is drawn from a generator seeded with
(seed, epoch, image). To resume, ask for the batches from another step on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from beit.config.errors import RunFailed, UserError, require
from beit.data.base import Source
from beit.data.decode import ImageError
from beit.data.workers import Task, fetch
from beit.patience import DEFAULT

View = Callable[..., Any]
"""(image, rng) -> sample, or with labels (image, label, rng) -> sample; a sample is a NamedTuple of tensors."""
Work = Sequence[tuple[int, int]]
"""What one micro-batch is made of: (epoch, image) pairs."""
OnBad = Callable[[str, str], None]

HANDFUL = 5  # damaged files that never stop a run, however small the set
_ORDER, _SAMPLES, _NEW = 1, 2, 3  # first word of the seeds: no order shares its stream with a sample
_EVALUATION = 2**32 - 1  # stands for the epoch in the seeds of evaluation samples; no training run gets there
_REPLACEMENTS = 100  # tries before a set counts as unreadable


# ------------------------------------------------------------------------------------------------------------
# Which images


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of the images in `epoch`."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(size)


class Loader:
    """Training batches of `source` through `view`, for this rank.

    `batch_size` is the global one, over all ranks and accumulated micro-batches. A damaged image is reported once
    through `on_bad(name, reason)` and replaced by another; when more than the share `max_bad` of the images read
    were damaged (and at least five files), the run stops with :class:`RunFailed`. With `labeled`, the view is
    called as view(image, label, rng); a label that does not fit stops the run with :class:`UserError`.
    `repeats` shows every image that many times in a row, differently drawn (repeated augmentation). After `cycle`
    epochs what is drawn for an image comes again; the view is then called as view(image, rng, another rng that does
    not, the number of the view or -1 for one in place of a damaged image). Nobody may be silent over an image for
    more than `timeout` seconds.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        max_bad: float = 0.05,
        on_bad: OnBad | None = None,
        labeled: bool = False,
        repeats: int = 1,
        cycle: int | None = None,
        pin_memory: bool = False,
        timeout: float = DEFAULT,
    ) -> None:
        parts, whole = f"{world} processes x {accumulate} accumulated micro-batches", world * accumulate
        divides = batch_size > 0 and batch_size % whole == 0
        require(divides, f"--batch-size {batch_size} is not divisible by {parts}; choose a multiple of {whole}")
        self._size = len(source)
        self._fetcher = _Fetcher(source, view, seed, labeled=labeled, replace=True, timeout=timeout)
        self._fetcher.cycle = cycle
        self._batch_size, self._seed, self._repeats = batch_size, seed, repeats
        self._rank, self._world, self._accumulate = rank, world, accumulate
        self._workers, self._pin_memory = workers, pin_memory
        self._damage = _Damage(max_bad, on_bad)

    def samples(self, step: int) -> list[tuple[int, int]]:
        """(epoch, image) of every sample in the global batch of `step`, in order."""
        samples = []
        for position in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, place = divmod(position // self._repeats, self._size)
            image = int(permutation(self._seed, epoch, self._size)[place])
            samples.append((epoch * self._repeats + position % self._repeats, image))
        return samples

    def _works(self, start_step: int, stop_step: int) -> Iterator[Work]:
        """This rank's micro-batches: contiguous slices of the global batch, rank by rank within each slice."""
        micro = self._batch_size // (self._world * self._accumulate)
        for step in range(start_step, stop_step):
            samples = self.samples(step)
            for first in range(self._rank * micro, self._batch_size, self._world * micro):
                yield samples[first : first + micro]

    def batches(self, start_step: int, stop_step: int) -> Iterator[Any]:
        """Micro-batches of steps start_step <= step < stop_step, `accumulate` of them for each step."""
        works = self._works(start_step, stop_step)
        for fetched in fetch(self._fetcher, works, self._workers, self._pin_memory):
            self._damage.record(fetched)
            yield fetched.batch


def evaluation_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    on_bad: OnBad | None = None,
    labeled: bool = False,
    timeout: float = DEFAULT,
) -> Iterator[tuple[list[int], Any]]:
    """Every image of `source` once, dealt out to the ranks in turn: batches, and the numbers of the images in them.
    Damaged ones are reported and left out.

    `batch_size` is that of this rank; the last batch may be smaller, and ranks may differ by one image. A sample's
    randomness is a function of (seed, image) alone: every evaluation sees the same.
    """
    share = range(rank, len(source), world)
    works = [
        [(_EVALUATION, index) for index in share[start : start + batch_size]]
        for start in range(0, len(share), batch_size)
    ]
    damage = _Damage(1.0, on_bad)
    fetcher = _Fetcher(source, view, seed, labeled=labeled, replace=False, timeout=timeout)
    for work, fetched in zip(works, fetch(fetcher, works, workers), strict=True):
        damage.record(fetched)
        if fetched.batch is not None:
            yield [index for _, index in work if index not in dict(fetched.bad)], fetched.batch


class _Damage:
    """Counts damaged files, reports each once, and stops the run when there are too many."""

    def __init__(self, max_bad: float, on_bad: OnBad | None) -> None:
        self._max_bad, self._on_bad = max_bad, on_bad
        self._tried = self._failed = 0
        self.files: set[int] = set()

    def record(self, fetched: "_Fetched") -> None:
        self._tried += fetched.tried
        self._failed += len(fetched.bad)
        for index, damage in fetched.bad:
            if self._on_bad and index not in self.files:
                self._on_bad(damage.name, damage.reason)
            self.files.add(index)
        if fetched.error:
            raise fetched.error
        if len(self.files) >= HANDFUL and self._failed > self._max_bad * self._tried:
            read = f"{self._failed:,} of {self._tried:,} images read were damaged ({len(self.files):,} files)"
            raise RunFailed(f"--data: {read}, more than --max-bad {self._max_bad:g} allows; `beit check` lists them")


# ------------------------------------------------------------------------------------------------------------
# One micro-batch, in a worker or in the main process


class _Fetched(NamedTuple):
    """What comes back from a worker."""

    batch: Any
    tried: int
    bad: list[tuple[int, ImageError]]
    """Images that could not be used, by their numbers."""
    error: UserError | RunFailed | None = None
    """Why the run cannot go on. A value, because what is raised in a worker arrives as a quoted traceback."""


class _Fetcher(Task[_Fetched]):
    """Turns work into batches of `view`; damaged images are replaced by others, or left out."""

    cycle: int | None = None

    def __init__(
        self, source: Source, view: View, seed: int, *, labeled: bool, replace: bool, timeout: float
    ) -> None:
        super().__init__(timeout)
        self._source, self._view, self._seed = source, view, seed
        self._labeled, self._replace = labeled, replace

    def place(self, index: int) -> str:
        return f" over {self._source.name(index)}"

    def __getitem__(self, work: Work) -> "_Fetched":
        samples: list[Any] = []
        bad: list[tuple[int, ImageError]] = []
        try:
            for epoch, index in work:
                if (sample := self._load(epoch, index, bad)) is not None:
                    samples.append(sample)
        except (UserError, RunFailed) as error:
            return _Fetched(None, len(samples) + len(bad), bad, error)
        except MemoryError:  # the need of the machine, and no damage
            need = f"memory ran out over {self._source.name(index)}: lower --workers or --batch-size"
            return _Fetched(None, len(samples) + len(bad), bad, RunFailed(need))
        batch = type(samples[0])(*map(torch.stack, zip(*samples, strict=True))) if samples else None
        return _Fetched(batch, len(samples) + len(bad), bad)

    def _load(self, epoch: int, index: int, bad: list[tuple[int, ImageError]]) -> Any:
        """The sample of image `index`, or of another one drawn from its own generator when it is damaged."""
        again = epoch if self.cycle is None else epoch % self.cycle
        rng = np.random.default_rng((_SAMPLES, self._seed, again, index))
        new, number = np.random.default_rng((_NEW, self._seed, epoch, index)), again * len(self._source) + index
        for _ in range(_REPLACEMENTS if self._replace else 1):
            self.begin(index)
            try:
                image = self._source.image(index)
                labels = (self._source.label(index),) if self._labeled else ()
            except ImageError as error:
                bad.append((index, error))
                index, number = int(rng.integers(len(self._source))), -1
                continue
            return self._view(image, *labels, rng, *([] if self.cycle is None else [new, number]))
        if self._replace:
            row = f"{_REPLACEMENTS} images in a row are damaged, the last being {bad[-1][1]}"
            raise RunFailed(f"--data: {row}; `beit check` lists the damaged files")
        return None
