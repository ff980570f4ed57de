"""Batches whose content depends on nothing but (seed, step): not on workers, ranks, accumulation or interruptions.

The loader keeps no state. Position p = step * batch_size + j of an endless stream belongs to epoch p // N and shows
image permutation(seed, epoch)[p % N]; all randomness of that sample is drawn from a generator seeded with
(seed, epoch, image). To resume, ask for the batches from another step on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.config.errors import RunFailed, UserError
from beit.data.base import Source
from beit.data.workers import Fetched, Fetcher, View, Work, fetch

OnBad = Callable[[str, str], None]

HANDFUL = 5  # damaged files that never stop a run, however small the set
_EVALUATION = 2**32 - 1  # stands for the epoch in the seeds of evaluation samples; no training run gets there
_ORDER = 1  # first word of the seeds: no order shares its stream with a sample (2)


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
    `repeats` shows every image that many times in a row, differently drawn (repeated augmentation).
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
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % (world * accumulate):
            raise UserError(
                f"--batch-size {batch_size} is not divisible by {world} processes x {accumulate} accumulated "
                f"micro-batches; choose a multiple of {world * accumulate}"
            )
        self._size = len(source)
        self._fetcher = Fetcher(source, view, seed, labeled=labeled, replace=True)
        self._batch_size, self._seed, self._repeats = batch_size, seed, repeats
        self._rank, self._world, self._accumulate = rank, world, accumulate
        self._workers, self._pin_memory = workers, pin_memory
        self._damage = _Damage(max_bad, on_bad)

    @property
    def bad_files(self) -> int:
        """Damaged files met so far by this rank."""
        return len(self._damage.files)

    def samples(self, step: int) -> list[tuple[int, int]]:
        """(epoch, image) of every sample in the global batch of `step`, in order."""
        start = step * self._batch_size
        return [self._sample(position) for position in range(start, start + self._batch_size)]

    def _sample(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position // self._repeats, self._size)
        image = int(permutation(self._seed, epoch, self._size)[place])
        return epoch * self._repeats + position % self._repeats, image

    def _works(self, start_step: int, stop_step: int) -> Iterator[Work]:
        """This rank's micro-batches: contiguous slices of the global batch, rank by rank within each slice."""
        micro = self._batch_size // (self._world * self._accumulate)
        for step in range(start_step, stop_step):
            samples = self.samples(step)
            for k in range(self._accumulate):
                first = (k * self._world + self._rank) * micro
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
    pin_memory: bool = False,
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
    fetcher = Fetcher(source, view, seed, labeled=labeled, replace=False)
    for work, fetched in zip(works, fetch(fetcher, works, workers, pin_memory), strict=True):
        damage.record(fetched)
        if fetched.batch is not None:
            damaged = {bad.image for bad in fetched.bad}
            yield [index for _, index in work if index not in damaged], fetched.batch


class _Damage:
    """Counts damaged files, reports each once, and stops the run when there are too many."""

    def __init__(self, max_bad: float, on_bad: OnBad | None) -> None:
        self._max_bad, self._on_bad = max_bad, on_bad
        self._tried = self._failed = 0
        self.files: set[int] = set()

    def record(self, fetched: Fetched) -> None:
        self._tried += fetched.tried
        self._failed += len(fetched.bad)
        for bad in fetched.bad:
            if bad.image not in self.files:
                self.files.add(bad.image)
                if self._on_bad:
                    self._on_bad(bad.name, bad.reason)
        if fetched.error:
            raise fetched.error
        if len(self.files) >= HANDFUL and self._failed > self._max_bad * self._tried:
            raise RunFailed(
                f"--data: {self._failed:,} of {self._tried:,} images read were damaged ({len(self.files):,} files), "
                f"more than --max-bad {self._max_bad:g} allows; `beit check` lists them"
            )
