"""Images through a network that does not learn from them, batch by batch; and what the verbs that train nothing have
in common: this machine, notes and files, and how images are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from rich.console import Console as Terminal
from rich.progress import Progress

from beit.checkpoints.preparation import preparation
from beit.config.errors import RunFailed, UserError
from beit.config.run import TrainingConfig
from beit.config.use import EvaluateConfig, PredictConfig
from beit.data.base import Source
from beit.data.loaders import OnBad, View, evaluation_batches
from beit.data.views.evaluation import EvaluationView
from beit.data.views.geometry import Filter
from beit.training.device import Compute, Precision, choose_precision, eval_mode, open_compute, to_device

Result = TypeVar("Result")


class Machine(NamedTuple):
    """Where a network runs, how precisely, and how many processes read its images."""

    compute: Compute
    precision: Precision
    workers: int


def open_machine(config: TrainingConfig | EvaluateConfig | PredictConfig, compute: Compute) -> Machine:
    """What `config` asks for of the machine that `compute` has joined."""
    precision = choose_precision(config.precision, compute.device)
    return Machine(compute, precision, num_workers(config.workers, compute))


def num_workers(workers: int | Literal["auto"], compute: Compute) -> int:
    """Processes that read images for each device."""
    if workers != "auto":
        return workers
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
            try:
                with eval_mode(compute.device, machine.precision):
                    result = apply(batch)
            except RunFailed as error:
                raise RunFailed(f"{', '.join(map(source.name, images))}: {error}") from error
            bar.advance(task, len(batch[0]) * compute.world)
            yield batch, result


def report_skipped(name: str, reason: str) -> None:
    """Name a file that cannot be used, beside the output and not in it."""
    print(f"skipped {name}: {reason}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------
# Verbs that train nothing


def open_machine_alone(config: EvaluateConfig | PredictConfig) -> Machine:
    """This machine, for a verb that trains nothing. UserError for several ranks: each would judge its own share."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("only training takes several processes; start this command alone, without torchrun")
    return open_machine(config, open_compute(config.device))


def print_notes(notes: Iterable[str]) -> None:
    """What was ignored or decided, each line once, beside the output and not in it."""
    for note in dict.fromkeys(notes):
        print(note, file=sys.stderr, flush=True)


def require_writable_file(out: str) -> None:
    """Make the folder around the file `out`. UserError, before any work, where there can be no such file."""
    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.filename} is in no folder, or is none, or cannot be written ({error.strerror})"
        raise UserError(f"--out {out}: {reason}; choose another") from error


def run_of(path: str | Path) -> Path | None:
    """The run that the model at `path` lies in: `path` itself, or the folder around its model/; else None."""
    folder = Path(path)
    run = folder.parent if folder.resolve().name == "model" else folder
    return run if all((run / name).exists() for name in ("model", "config.yaml", "status.json")) else None


def classifier_view(size: tuple[int, int], description: dict[str, Any]) -> EvaluationView:
    """How a classifier of images of `size` (H, W) is shown them, as its description says."""
    interpolation, crop, mode = preparation(description, size)
    filters, modes = get_args(Filter), ("center", "squash")
    if interpolation not in filters or mode not in modes:
        raise UserError(
            f"the model wants interpolation {interpolation} and crop_mode {mode}, and only {', '.join(filters)} and "
            f"{', '.join(modes)} are known; beit convert it --to beit and change these in its model.json"
        )
    return EvaluationView(
        size, crop_share=crop, interpolation=cast(Filter, interpolation), squash=mode == "squash"
    )
