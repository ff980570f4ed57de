"""Images through a network that does not learn from them, batch by batch."""

import os
import sys
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from beit.config.errors import RunFailed
from beit.config.run import MachineConfig, TrainingConfig
from beit.data.base import Source
from beit.data.loaders import OnBad, View, evaluation_batches
from beit.patience import DEFAULT
from beit.training.console import bar
from beit.training.device import Compute, Precision, choose_precision, eval_mode, to_device

Result = TypeVar("Result")


class Machine(NamedTuple):
    """Where a network runs, how precisely, and how many processes read its images."""

    compute: Compute
    precision: Precision
    workers: int
    timeout: float = DEFAULT
    """Seconds that any of them may be silent."""

    def alone(self) -> "Machine":
        """This rank's part of it, for what each rank does whole."""
        return self._replace(compute=Compute(self.compute.device))


def open_machine(config: MachineConfig, compute: Compute, precision: Precision | None = None) -> Machine:
    """What `config` asks for of the machine that `compute` has joined, at a `precision` that is chosen already."""
    precision = precision or choose_precision(config.precision, compute.device)
    timeout = config.timeout_seconds() if isinstance(config, TrainingConfig) else DEFAULT
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # On a CPU the network wants the cores itself; one worker hides the decoding behind it.
    workers = min(16, cores // compute.world) if compute.device.type == "cuda" else 1
    return Machine(compute, precision, workers if config.workers == "auto" else config.workers, timeout)


def each_batch(
    apply: Callable[[Any], Result],
    source: Source,
    view: View,
    machine: Machine,
    *,
    batch_size: int,
    seed: int = 0,
    labeled: bool = False,
    on_bad: OnBad | None = None,
    title: str = "",
) -> Generator[tuple[list[int], Any, Result]]:
    """Numbers of images of this rank's share of `source`, their batch on the device, and what `apply` makes of it.

    `batch_size` is that of this rank; damaged images are told to `on_bad` and left out. A RunFailed of `apply` gets
    the names of its images. With a `title`, a terminal shows progress under it.
    """
    compute = machine.compute
    batches = evaluation_batches(
        source,
        view,
        batch_size=batch_size,
        seed=seed,
        rank=compute.rank,
        world=compute.world,
        workers=machine.workers,
        on_bad=on_bad,
        labeled=labeled,
        timeout=machine.timeout,
    )
    with bar(title, len(source), shown=bool(title) and compute.main) as progress:
        for images, batch in batches:
            batch = to_device(batch, compute.device)
            try:
                with eval_mode(compute.device, machine.precision):
                    result = apply(batch)
            except RunFailed as error:
                raise RunFailed(f"{', '.join(map(source.name, images))}: {error}") from error
            progress.move(len(batch[0]) * compute.world)
            yield images, batch, result


def report_skipped(name: str, reason: str) -> None:
    """Name a file that cannot be used, beside the output and not in it."""
    print(f"skipped {name}: {reason}", file=sys.stderr, flush=True)
