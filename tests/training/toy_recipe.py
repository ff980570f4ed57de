"""A recipe with everything that can go wrong in a resume: dropout, EMA, accumulation, companions, metric windows.

Also a program: `python toy_recipe.py OUT key=value ...` runs it as a rank of torchrun or alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.config.errors import Interrupted, RunFailed, UserError
from beit.config.run import TrainingConfig
from beit.training.console import Console
from beit.training.device import Compute, choose_precision, open_compute
from beit.training.loop import fit
from beit.training.method import Evaluation, EvaluationSplit, Learner, Method, Noise, StepOutput
from beit.training.plan import Job, Plan
from beit.training.run.directory import Request
from beit.training.run.opening import open_run, stored_run

CLASSES, BATCH, IMAGES = 4, 8, 48
MISHAPS = ("poison", "sleep", "killed_at", "killed_by")
"""Knobs of the toy that are no part of its configuration."""


class ToyBatch(NamedTuple):
    inputs: Tensor
    label: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(TrainingConfig):
    data: str | tuple[str, ...] = "toys"
    out: str = "-"
    preset: str | None = None
    steps: int | None = 24
    epochs: float | None = None
    batch_size: int = BATCH
    accumulate: int = 2
    batch_norm: bool = True
    """Then the result depends on how a batch is split."""
    lr: float = 0.02
    lr_batch_size: int = BATCH
    min_lr: float = 1e-4
    warmup_steps: int | None = 4
    warmup_epochs: float | None = None
    beta2: float = 0.999
    weight_decay: float = 0.05
    clip_grad: float | None = 1.0
    ema_decay: float | None = 0.9
    log_every: int = 7
    evaluations: int = 3
    save_every: str = "3"
    precision: Literal["auto", "bf16", "float32"] = "float32"
    poison: tuple[int, ...] = ()
    """Steps (from 0) at which the loss is NaN on the last rank."""
    monitor: Literal["size", "loss"] = "size"
    """The size of the weights grows, so the best evaluation is an early one, which a resume must remember; the loss
    falls, so the best is always the newest."""
    sleep: float = 0.0
    """Seconds that every step takes longer."""
    killed_at: int | None = None
    """The step (from 0) at which the last rank sends itself `killed_by`, before torchrun starts it again."""
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
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the toy in `out`."""
    toy = toy or Toy()
    compute = open_compute("cpu", toy.timeout_seconds()) if compute is None else compute
    console = Console(compute.main)
    config = {name: value for name, value in dataclasses.asdict(toy).items() if name not in MISHAPS}
    request = Request("toy", config)
    stored = None if overwrite else stored_run(out, request)
    if stored is not None and stored.status.get("state") == "done":
        console.say("nothing to do")
        results: dict[str, Any] = json.loads((Path(out) / "results.json").read_text())
        return results
    with open_run(out, request, compute=compute, console=console, overwrite=overwrite) as run:
        batches = ToyBatches(toy, compute, on_evaluation)
        precision = choose_precision(toy.precision, compute.device)
        return fit(Job(toy_method(toy, compute), batches, Plan(toy, IMAGES), compute, precision), run, save_model)


class ToyBatches:
    """The toy's data; see :class:`beit.training.method.Batches`."""

    def __init__(self, toy: Toy, compute: Compute, on_evaluation: Callable[[], None]) -> None:
        self.toy, self.compute, self.on_evaluation = toy, compute, on_evaluation

    def train(self, start: int, stop: int) -> Iterator[ToyBatch]:
        compute, places = self.compute, self.compute.world * self.toy.accumulate
        for index in range(start, stop):
            for part in range(self.toy.accumulate):
                yield micro_batch(index, part * compute.world + compute.rank, places)

    def evaluate(
        self, split: EvaluationSplit, apply: Callable[[Any], dict[str, Tensor]], batch_size: int | None
    ) -> Iterator[dict[str, Tensor]] | None:
        return self.passes(apply) if split == "held_back" else None

    def passes(self, apply: Callable[[Any], dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        for index in range(self.compute.rank, 3, self.compute.world):
            self.on_evaluation()
            yield apply(micro_batch(10**6 + index, 0, 1))

    def samples(self, batch_size: int | None) -> list[ToyBatch]:
        return [micro_batch(10**6, 0, 1)]


def save_model(model: nn.Module, folder: Path, step: int) -> None:
    torch.save(model.state_dict(), folder / "weights.pt")
    (folder / "model.json").write_text(json.dumps({"provenance": {"step": step}}))


def toy_method(toy: Toy, compute: Compute) -> Method:
    model, seen = make_model(toy.batch_norm), Seen()
    places = compute.world * toy.accumulate
    last_rank = compute.rank == compute.world - 1

    def step(model: nn.Module, batch: ToyBatch, index: int, noise: Noise) -> StepOutput:
        time.sleep(toy.sleep)
        logits = model(batch.inputs)
        loss = F.cross_entropy(logits, batch.label)
        if index in toy.poison and last_rank:
            loss = loss * float("nan")
        is_last_pass = last_rank and batch.label.equal(micro_batch(index, places - 1, places).label)
        if index == toy.killed_at and is_last_pass and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), toy.killed_by)
        labels = micro_batch(index, 0, 1).label  # of all ranks, as a companion must be alike on them
        seen.count += F.one_hot(labels, CLASSES).sum(0) / (1 + index) / toy.accumulate
        counts = F.one_hot(logits.argmax(1), CLASSES).float().mean(0)
        return StepOutput(loss, {"used": counts, "noise": torch.rand(()), "seen": seen.count.std()})

    def summarise(means: Mapping[str, Tensor]) -> dict[str, float]:
        used = float((means["used"] > 0.05).sum())
        return {"codes_used": used, "noise": float(means["noise"]), "seen": float(means["seen"])}

    def evaluate(model: nn.Module, batch: ToyBatch) -> dict[str, Tensor]:
        assert not model.training
        return {
            "loss": F.cross_entropy(model(batch.inputs), batch.label, reduction="sum"),
            "size": list(model.parameters())[-2].norm() * BATCH,
            "count": torch.tensor(BATCH),
        }

    def draw(model: nn.Module, batches: Sequence[ToyBatch], folder: Path, step: int) -> None:
        noise = str(float(torch.rand(())))
        (folder / f"step-{step}-digest.txt").write_text(digest(model.state_dict()) + noise)

    return Method(
        learner=Learner(model=model, step=step, summarise=summarise, companions={"seen": seen}),
        evaluation=Evaluation(evaluate_batch=evaluate, monitor=toy.monitor, draw=draw),
    )


def digest(weights: dict[str, Tensor]) -> str:
    """Changes with every bit of `weights`."""
    content = b"".join(value.numpy().tobytes() for _, value in sorted(weights.items()))
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    torch.set_num_threads(1)
    values: dict[str, Any] = {}
    for argument in sys.argv[2:]:
        key, _, text = argument.partition("=")
        if key in ("nonfinite", "timeout"):
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
