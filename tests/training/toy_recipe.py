"""A recipe with everything that can go wrong in a resume: dropout, EMA, accumulation, companions, metric windows.

Also a program: `python toy_recipe.py OUT key=value ...` runs it as a rank of torchrun or alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.config.errors import Interrupted, RunFailed, UserError
from beit.training.console import Console
from beit.training.device import Compute, open_compute
from beit.training.loop import fit
from beit.training.optim import adamw, cosine_schedule, parameter_groups
from beit.training.plan import LoopParts, LoopPlan, StepOutput
from beit.training.run.directory import RunDirectory
from beit.training.run.opening import open_run

CLASSES, BATCH = 4, 8
MISHAPS = ("poison", "sleep", "killed_at", "killed_by")
"""Knobs of the toy that are no part of its configuration."""


class ToyBatch(NamedTuple):
    inputs: Tensor
    label: Tensor


@dataclasses.dataclass(frozen=True)
class Toy:
    steps: int = 24
    accumulate: int = 2
    batch_norm: bool = True
    """Then the result depends on how a batch is split."""
    ema_decay: float | None = 0.9
    log_every: int = 7
    eval_every: int | None = 8
    save_every_steps: int | None = 3
    keep: int = 2
    nonfinite: str = "stop"
    precision: str = "float32"
    clip_grad: float | None = 1.0
    lr: float = 0.02
    poison: tuple[int, ...] = ()
    """Steps (from 0) at which the loss is NaN on the last rank."""
    sleep: float = 0.0
    """Seconds that every step takes longer."""
    killed_at: int | None = None
    """The step (from 0) at which the last rank sends itself `killed_by`."""
    killed_by: int = signal.SIGTERM


class Seen(nn.Module):
    """A companion: counts the labels it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(CLASSES))

    count: Tensor


def make_model(batch_norm: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(32) if batch_norm else nn.LayerNorm(32)
    return nn.Sequential(nn.Linear(6, 32), norm, nn.GELU(), nn.Dropout(0.3), nn.Linear(32, CLASSES))


def micro_batch(step: int, place: int, places: int) -> ToyBatch:
    """Part `place` of `places` of the batch of `step`; the batch itself depends on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    label = torch.randint(CLASSES, (BATCH,), generator=generator)
    inputs = torch.randn(BATCH, 6, generator=generator) + label[:, None]
    share = slice(place * BATCH // places, (place + 1) * BATCH // places)
    return ToyBatch(inputs[share], label[share])


def train(
    out: str | Path,
    toy: Toy | None = None,
    *,
    compute: Compute | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
    **options: Any,
) -> dict[str, Any]:
    """Run the toy in `out`; `options` go to open_run."""
    toy = toy or Toy()
    compute = open_compute("cpu", timeout_minutes=1) if compute is None else compute
    console = Console(compute.main)
    config = {name: value for name, value in dataclasses.asdict(toy).items() if name not in MISHAPS}
    config["choice"] = "auto"
    with open_run(out, verb="toy", config=config, compute=compute, console=console, **options) as run:
        if run.finished:
            console.say("nothing to do")
            return run.results()
        assert run.settle("choice", lambda: "made") == "made"
        return train_in(run, toy, compute, on_evaluation)


def train_in(
    run: RunDirectory, toy: Toy, compute: Compute, on_evaluation: Callable[[], None]
) -> dict[str, Any]:
    model, seen = make_model(toy.batch_norm), Seen()
    places = compute.world * toy.accumulate
    last_rank = compute.rank == compute.world - 1

    def step(model: nn.Module, batch: ToyBatch, index: int) -> StepOutput:
        time.sleep(toy.sleep)
        logits = model(batch.inputs)
        loss = F.cross_entropy(logits, batch.label)
        if index in toy.poison and last_rank:
            loss = loss * float("nan")
        if (
            index == toy.killed_at
            and last_rank
            and batch.label.equal(micro_batch(index, places - 1, places).label)
        ):
            os.kill(os.getpid(), toy.killed_by)
        labels = micro_batch(index, 0, 1).label  # of all ranks, as a companion must be alike on them
        seen.count += F.one_hot(labels, CLASSES).sum(0) / (1 + index) / toy.accumulate
        counts = F.one_hot(logits.argmax(1), CLASSES).float().mean(0)
        return StepOutput(loss, {"used": counts, "noise": torch.rand(()), "seen": seen.count.std()})

    def batches(start: int, stop: int) -> Iterator[ToyBatch]:
        for index in range(start, stop):
            for part in range(toy.accumulate):
                yield micro_batch(index, part * compute.world + compute.rank, places)

    def evaluate(model: nn.Module, poll: Callable[[], None]) -> dict[str, Tensor]:
        assert not model.training
        totals = {name: torch.zeros(()) for name in ("loss", "size", "count")}
        for index in range(compute.rank, 3, compute.world):
            on_evaluation()
            poll()
            batch = micro_batch(10**6 + index, 0, 1)
            totals["loss"] += F.cross_entropy(model(batch.inputs), batch.label, reduction="sum")
            totals["size"] += list(model.parameters())[-2].norm() * BATCH
            totals["count"] += BATCH
        return totals

    def save_model(model: nn.Module, folder: Path, step: int) -> None:
        torch.save(model.state_dict(), folder / "weights.pt")

    def draw(model: nn.Module, folder: Path, step: int) -> None:
        (folder / f"step-{step}-digest.txt").write_text(
            digest(model.state_dict()) + str(float(torch.rand(())))
        )

    groups = parameter_groups(model, weight_decay=0.05)
    fields = {field.name for field in dataclasses.fields(LoopPlan)} & {
        f.name for f in dataclasses.fields(Toy)
    }
    # The size of the weights grows, so the best evaluation is an early one, which a resume must remember.
    known = {name: getattr(toy, name) for name in fields}
    plan = LoopPlan(batch_size=BATCH, steps_per_epoch=6, monitor="size", **known)
    parts = LoopParts(
        model=model,
        step=step,
        batches=batches,
        optimizer=adamw(groups, lr=toy.lr),
        schedule=lambda index: cosine_schedule(
            index, peak=toy.lr, final=1e-4, warmup_steps=4, total_steps=toy.steps
        ),
        save_model=save_model,
        evaluate=evaluate,
        draw=draw,
        summarise=lambda means: {
            "codes_used": float((means["used"] > 0.05).sum()),
            "noise": float(means["noise"]),
            "seen": float(means["seen"]),
        },
        companions={"seen": seen},
    )
    return fit(parts, plan, run, compute)


def digest(weights: dict[str, Tensor]) -> str:
    """Changes with every bit of `weights`."""
    content = b"".join(value.numpy().tobytes() for _, value in sorted(weights.items()))
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    torch.set_num_threads(1)
    values: dict[str, Any] = {}
    for argument in sys.argv[2:]:
        key, _, text = argument.partition("=")
        if key == "nonfinite":
            values[key] = text
            continue
        values[key] = (int(text),) if key == "poison" else float(text) if "." in text else int(text)
    try:
        train(sys.argv[1], Toy(**values))
    except (Interrupted, RunFailed, UserError) as stop:
        print(stop, file=sys.stderr)
        return {Interrupted: 75, RunFailed: 1, UserError: 2}[type(stop)]
    return 0


if __name__ == "__main__":
    sys.exit(main())
