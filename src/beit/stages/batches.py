"""Images through a trained network, batch by batch: what evaluation, prediction and probes have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast, get_args

import torch
from rich.console import Console as Terminal
from rich.progress import Progress
from torch import Tensor

from beit.checkpoints.preparation import preparation
from beit.config.errors import RunFailed, UserError
from beit.data.base import Source, Split
from beit.data.loaders import OnBad, View, evaluation_batches
from beit.data.views.evaluation import EvaluationView
from beit.data.views.geometry import Filter
from beit.training.device import (
    Compute,
    Precision,
    autocast,
    choose_precision,
    open_compute,
    to_device,
)

Result = TypeVar("Result")


class OpenSplit(Protocol):
    """Opens the images of `data` that belong to a split; see :func:`open_source`."""

    def __call__(
        self,
        data: Sequence[str],
        split: Split,
        *,
        holdout: float,
        limit: int | None,
        max_megapixels: float,
        seed: int,
    ) -> Source: ...


class Machine(NamedTuple):
    """Where a network runs, how precisely, and how many processes read its images."""

    compute: Compute
    precision: Precision
    workers: int


def open_machine(precision: str, workers: int | Literal["auto"]) -> Machine:
    """This machine, for a verb that trains nothing. UserError for several ranks: each would judge its own share."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("only training takes several processes; start this command alone, without torchrun")
    compute = open_compute()
    return Machine(compute, choose_precision(precision, compute.device), num_workers(workers, compute))


def num_workers(wanted: int | Literal["auto"], compute: Compute) -> int:
    """Processes that read images for each device."""
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # On a CPU the network wants the cores itself; one worker hides the decoding behind it.
    return min(16, cores // compute.world) if compute.device.type == "cuda" else 1


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
) -> Generator[tuple[Any, Result]]:
    """Batches of this rank's share of `source`, each once, on the device, with what `apply` makes of them.

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
    )
    hidden = not (title and compute.main and sys.stderr.isatty())
    # Lines for a pipe, printed between two batches, must not end up above the bar.
    beside = sys.stdout.isatty()
    with Progress(
        console=Terminal(stderr=True), transient=True, disable=hidden, redirect_stdout=beside
    ) as bar:
        task = bar.add_task(title, total=len(source))
        for images, batch in batches:
            batch = to_device(batch, compute.device)
            with _naming(source, images), torch.no_grad(), autocast(compute.device, machine.precision):
                result = apply(batch)
            bar.advance(task, len(batch[0]) * compute.world)
            yield batch, result


@contextmanager
def _naming(source: Source, images: Sequence[int]) -> Iterator[None]:
    """Names the images in front of a RunFailed about them."""
    try:
        yield
    except RunFailed as error:
        raise RunFailed(f"{', '.join(map(source.name, images))}: {error}") from error


def totals(
    passes: Iterable[tuple[Any, Mapping[str, Tensor]]],
    sums: Mapping[str, Tensor] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """The sums of each batch from :func:`each_batch`, added to `sums`; calls `poll` with each."""
    added = dict(sums or {})
    for _, part in passes:
        poll()
        for name, value in part.items():
            added[name] = added[name] + value if name in added else value
    return added


def complain(name: str, reason: str) -> None:
    """Name a file that cannot be used, beside the output and not in it."""
    print(f"skipped {name}: {reason}", file=sys.stderr, flush=True)


def tell(notes: Iterable[str]) -> None:
    """What was ignored or decided, each line once, beside the output and not in it."""
    for note in dict.fromkeys(notes):
        print(note, file=sys.stderr, flush=True)


def run_of(path: str | Path) -> Path | None:
    """The run that the model at `path` lies in: `path` itself, or the folder around its model/; else None."""
    folder = Path(path)
    run = folder.parent if folder.resolve().name == "model" else folder
    return run if all((run / name).exists() for name in ("model", "config.yaml", "status.json")) else None


def classifier_view(size: tuple[int, int], description: dict[str, Any]) -> EvaluationView:
    """How a classifier of images of `size` (H, W) is shown them, as its description says."""
    interpolation, crop, mode = preparation(description, size)
    for name, value, known in (
        ("interpolation", interpolation, get_args(Filter)),
        ("crop_mode", mode, ("center", "squash")),
    ):
        if value not in known:
            raise UserError(
                f"the model wants {name} {value}, and only {' and '.join(known)} are known; "
                f"beit convert it --to beit and change {name} in its model.json"
            )
    return EvaluationView(
        size, crop_share=crop, interpolation=cast(Filter, interpolation), squash=mode == "squash"
    )
