"""The loop of every recipe: accumulate, clip, update, average, report, evaluate, save, stop when asked."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from beit.config.errors import Interrupted, RunFailed
from beit.training.console import StepProgress, duration
from beit.training.device import Compute, autocast, reseed, to_device
from beit.training.failures import explained
from beit.training.metrics import MEASURED, line_of, short_number
from beit.training.optim import set_learning_rate
from beit.training.plan import LoopParts, LoopPlan
from beit.training.run.directory import SAMPLES, RunDirectory
from beit.training.saving import Saver
from beit.training.signals import StopRequested, StopSignals
from beit.training.state import TrainingState
from beit.training.trackers import Tracker

GO_ON, SAVE, STOP = 0, 1, 2
EVALUATION = 2**32
"""The place of an evaluation's random numbers, beyond those of any micro-batch."""


def fit(parts: LoopParts, plan: LoopPlan, run: RunDirectory, compute: Compute) -> dict[str, Any]:
    """Train `parts.model` to the end of `plan`, from wherever `run` stands; the run is done when this returns.

    Killed anywhere and called again with the same arguments, it ends with the same weights, bit for bit on a CPU,
    if the step draws random numbers from torch alone, and the batches of the same steps have the same data.

    Returns:
        The content of results.json.

    Raises:
        Interrupted: asked to stop by a signal, and saved.
        RunFailed: a loss or gradient that is not finite, no memory, saves that fail, ranks that are gone.
    """
    for module in (parts.model, *parts.companions.values()):
        module.to(compute.device)
    state = TrainingState(parts.model, parts.optimizer, parts.companions, plan)
    saved = run.restore()
    if saved is not None:
        state.load_state_dict(saved, compute)
        run.console.say(f"continuing after step {state.step} of {plan.steps}")
    training = _Training(
        parts=parts,
        plan=plan,
        run=run,
        compute=compute,
        state=state,
        network=compute.distribute(parts.model),
        saver=Saver(state, plan, run, compute, parts.save_model),
        trackers=parts.trackers(state.step) if compute.main else (),
    )
    run.write_status(step=state.step, steps=plan.steps)
    try:
        with (
            training.stop,
            explained(training.saver, compute),
            run.console.progress(plan.steps, state.step) as progress,
        ):
            training.train(progress)
            return training.finish()
    finally:
        for tracker in training.trackers:
            tracker.close()
        compute.release()


@dataclass
class _Training:
    """One call of :func:`fit`, on its way."""

    parts: LoopParts
    plan: LoopPlan
    run: RunDirectory
    compute: Compute
    state: TrainingState
    network: nn.Module
    """The model as the step calls it: `state.model`, wrapped when there are several ranks."""
    saver: Saver
    trackers: Sequence[Tracker]
    looked_after: int = -1
    """The last step that was followed by an evaluation."""
    stop: StopSignals = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.stop = StopSignals(distributed=self.compute.world > 1)
        self.parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]

    def train(self, progress: StepProgress) -> None:
        """From the step after `state.step` to the last one."""
        state, plan = self.state, self.plan
        micro_batches = iter(self.parts.batches(state.step, plan.steps))
        self.network.train()
        while True:
            if plan.looks_after(state.step) and self.looked_after != state.step:
                self.look()
            if state.step == plan.steps:
                return
            set_learning_rate(state.optimizer, self.parts.schedule(state.step))
            self.take_step(micro_batches)
            progress.advance(state.step)
            if plan.reports_after(state.step):
                self.report(progress)
            wish = STOP if self.stop.requested else SAVE if self.saver.due() else GO_ON
            wish = self.compute.largest(wish)  # the most urgent wish of any rank is done by all
            if wish != GO_ON:
                self.save()
            if wish == STOP:
                self.leave()

    def take_step(self, micro_batches: Iterator[Any]) -> None:
        """One optimiser step: all its passes, and the update if everything is finite."""
        state, plan, compute = self.state, self.plan, self.compute
        started, waited = time.perf_counter(), 0.0
        totals: dict[str, Tensor] = {}
        for index in range(plan.accumulate):
            asked = time.perf_counter()
            batch = to_device(self.next_of(micro_batches), compute.device)
            waited += time.perf_counter() - asked
            # No generator needs saving: what a pass draws follows from its place among all passes of all ranks.
            place = index * compute.world + compute.rank
            reseed(_seed(plan.seed, state.step, place), compute.device)
            synchronised = index == plan.accumulate - 1
            with nullcontext() if synchronised else compute.unsynchronised(self.network):
                with autocast(compute.device, plan.precision):
                    output = self.parts.step(self.network, batch, state.step)
                compute.accelerator.backward(output.loss / plan.accumulate)
            for name, value in (output.metrics | {"loss": output.loss}).items():
                share = value.detach().float() / plan.accumulate
                totals[name] = totals[name] + share if name in totals else share
        self.update(totals)
        state.step += 1
        seconds = time.perf_counter() - started
        state.seconds += seconds
        state.window.time(seconds, waited)

    def next_of(self, micro_batches: Iterator[Any]) -> Any:
        try:
            return next(micro_batches)
        except StopIteration:
            raise RuntimeError(f"batches() ended before step {self.state.step + 1} was fed") from None

    def update(self, totals: dict[str, Tensor]) -> None:
        """Change the weights by the gradients at hand, and count the step's figures."""
        state, plan = self.state, self.plan
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad = self.compute.any_rank(~(torch.isfinite(totals["loss"]) & torch.isfinite(norm)))
        if plan.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, plan.clip_grad, norm)
        state.guard.update(state.optimizer, bad)
        state.optimizer.zero_grad(set_to_none=True)
        state.update_ema()
        state.window.add(totals | {"grad_norm": norm}, counts=~bad)
        state.guard.watch(state.step + 1, bad, totals["loss"], norm)

    def report(self, progress: StepProgress) -> None:
        """Write the figures of the steps since the last report."""
        state, plan, window = self.state, self.plan, self.state.window
        self.state.guard.settle()
        means = window.means(self.compute)
        measured = {name: means.pop(name).item() for name in MEASURED}
        images_per_second = window.steps * plan.batch_size / window.seconds
        figures = {
            "loss": measured["loss"],
            "lr": self.parts.schedule(state.step - 1),
            "grad_norm": measured["grad_norm"],
            "images_per_second": images_per_second,
            "data_wait": window.waited / window.seconds,
            **self.parts.summarise(means),
        }
        line = self.record(figures)
        left = duration((plan.steps - state.step) * plan.batch_size / images_per_second)
        progress.report(
            f"{line}  left {left}",
            f"loss {short_number(measured['loss'])}  {images_per_second:,.0f} images/s",
        )
        self.run.write_status(step=state.step)
        window.clear()

    def record(self, figures: dict[str, float]) -> str:
        """One line of metrics.jsonl for the step just done; the same to read."""
        step, epoch = self.state.step, self.plan.epoch(self.state.step)
        self.state.last |= figures
        self.run.write_metrics(
            {"step": step, "epoch": epoch, "images": step * self.plan.batch_size, **figures}
        )
        for tracker in self.trackers:
            tracker.log(step, figures)
        return line_of(step, self.plan.steps, epoch, figures)

    def look(self) -> None:
        """Evaluate and draw the model as it is after this step."""
        state, compute, model = self.state, self.compute, self.state.result
        if self.parts.evaluate is not None:
            totals: dict[str, Tensor] = {}
            stopped = GO_ON
            compute.share_buffers(model)  # what is judged is the model that the main rank saves
            with self.at_rest(model):
                try:
                    totals = self.parts.evaluate(model, self.stop.poll)
                except StopRequested:
                    stopped = STOP
            if compute.largest(stopped) == STOP:  # the evaluation is done again when the run goes on
                self.save()
                self.leave()
            figures = self.parts.summarise_evaluation(compute.sums(totals))
            figures = {f"eval/{name}": value for name, value in figures.items()}
            state.note_evaluation(figures, self.plan)
            self.run.console.say(self.record(figures))
        if self.parts.draw is not None and compute.main:
            with self.at_rest(model):
                self.parts.draw(model, self.run.path / SAMPLES, state.step)
        self.looked_after = state.step

    @contextmanager
    def at_rest(self, model: nn.Module) -> Iterator[None]:
        """`model` as it is used, not trained; what happens inside leaves no trace in the training."""
        reseed(_seed(self.plan.seed, self.state.step, EVALUATION), self.compute.device)
        model.eval()
        with torch.no_grad(), autocast(self.compute.device, self.plan.precision):
            yield
        self.network.train()

    def save(self) -> None:
        self.state.guard.settle()  # nothing is saved before its last step is known to be finite
        self.saver.save()
        self.run.write_status(step=self.state.step)

    def leave(self) -> NoReturn:
        """Stop, all ranks after the same step."""
        step = self.state.step
        if self.saver.saved_step != step:
            raise RunFailed(f"stopped after step {step} without saving it; {self.saver.standing}")
        raise Interrupted(
            f"interrupted and saved at step {step} of {self.plan.steps}; the same command continues"
        )

    def finish(self) -> dict[str, Any]:
        """Write the final figures, and model/ if the run was killed between its last checkpoint and its model."""
        state, plan = self.state, self.plan
        self.saver.write_model()
        results = {
            "steps": state.step,
            "epochs": plan.epoch(state.step),
            "images": state.step * plan.batch_size,
            "seconds": round(state.seconds, 3),
            "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "skipped_steps": state.guard.skipped,
            "last": state.last,
            "best": state.best,
            **self.parts.details(),
        }
        self.run.finish(results)
        return results


def _seed(seed: int, step: int, place: int) -> int:
    """64 bits, unrelated for any two places of any two steps."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, step, place), digest_size=8).digest()
    return int.from_bytes(digest, "little")
