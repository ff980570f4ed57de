"""The loop of every recipe: accumulate, clip, update, average, report, evaluate, save, stop when asked."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from beit.config.errors import Interrupted, RunFailed
from beit.training.console import StepProgress, duration
from beit.training.device import Compute, Precision, autocast, eval_mode, reseed, to_device
from beit.training.failures import explained
from beit.training.method import Batches, Method
from beit.training.metrics import MEASURED, accumulate, line_of, short_number
from beit.training.optim import adamw, parameter_groups, set_learning_rate
from beit.training.plan import Plan
from beit.training.run.directory import SAMPLES, RunDirectory
from beit.training.run.saver import Saver
from beit.training.run.trackers import open_trackers
from beit.training.signals import StopRequested, StopSignals
from beit.training.state import TrainingState

GO_ON, SAVE, STOP = 0, 1, 2
EVALUATION = 2**32
"""The place of an evaluation's random numbers, beyond those of any micro-batch."""

SaveModel = Callable[[nn.Module, Path, int], None]
"""`save_model(model, folder, step)`: writes the model to use; called on the main rank, with each checkpoint."""


def fit(
    method: Method,
    batches: Batches,
    plan: Plan,
    run: RunDirectory,
    compute: Compute,
    precision: Precision,
    save_model: SaveModel,
) -> dict[str, Any]:
    """Train the model of `method` to the end of `plan`, from wherever `run` stands; then the run is done.

    Killed anywhere and called again with the same arguments, it ends with the same weights, bit for bit on a CPU,
    if the step draws random numbers from torch alone, and the batches of the same steps have the same data.

    Returns:
        The content of results.json.

    Raises:
        Interrupted: asked to stop by a signal, and saved.
        RunFailed: a loss or gradient that is not finite, no memory, saves that fail, ranks that are gone.
    """
    state = initial_state(method, plan, compute)
    checkpoint = run.restore()
    if checkpoint is not None:
        state.load_state_dict(checkpoint, compute)
        run.console.say(f"continuing after step {state.step} of {plan.steps}")
    saver = Saver(state, plan, run, compute, save_model)
    loop = Loop(method, batches, plan, run, compute, precision, saver)
    run.write_status(step=state.step, steps=plan.steps)
    try:
        with (
            loop.stop,
            explained(saver, compute),
            run.console.progress(plan.steps, state.step) as progress,
        ):
            loop.train(progress)
            return loop.finish()
    finally:
        for tracker in loop.trackers:
            tracker.close()


def initial_state(method: Method, plan: Plan, compute: Compute) -> TrainingState:
    """All of a run before its first step, on the device."""
    learner, config = method.learner, plan.config
    for module in (learner.model, *learner.companions.values()):
        module.to(compute.device)
    groups = parameter_groups(
        learner.model,
        weight_decay=config.weight_decay,
        layer_decay=learner.layer_decay,
        layer_groups=learner.layer_groups,
    )
    optimizer = adamw(groups, lr=plan.peak, betas=(config.beta1, config.beta2))
    return TrainingState(learner.model, optimizer, learner.companions, config.ema_decay, config.nonfinite)


class Loop:
    """One call of :func:`fit`, on its way."""

    def __init__(
        self,
        method: Method,
        batches: Batches,
        plan: Plan,
        run: RunDirectory,
        compute: Compute,
        precision: Precision,
        saver: Saver,
    ) -> None:
        self.learner, self.evaluation, self.details = (
            method.learner,
            method.evaluation,
            method.product.details,
        )
        self.batches, self.plan, self.run, self.saver, self.state = batches, plan, run, saver, saver.state
        self.compute, self.precision = compute, precision
        self.network = compute.distribute(self.state.model)
        """The model as the step calls it: wrapped when there are several ranks."""
        self.parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]
        self.stop = StopSignals(distributed=compute.world > 1)
        self.trackers = open_trackers(plan.config, run, self.state.step) if compute.main else []
        self.last_evaluated = -1
        """The last step that was followed by an evaluation."""

    def train(self, progress: StepProgress) -> None:
        """From the step after `state.step` to the last one."""
        state, plan = self.state, self.plan
        micro_batches = iter(self.batches.train(state.step, plan.steps))
        self.network.train()
        while True:
            if plan.should_evaluate(state.step) and self.last_evaluated != state.step:
                self.evaluate()
            if state.step == plan.steps:
                return
            set_learning_rate(state.optimizer, plan.learning_rate(self.learner.schedule, state.step))
            self.take_step(micro_batches)
            progress.advance(state.step)
            if plan.should_report(state.step):
                self.report(progress)
            wish = STOP if self.stop.requested else SAVE if self.saver.is_due() else GO_ON
            wish = self.compute.largest(wish)  # the most urgent wish of any rank is done by all
            if wish != GO_ON:
                self.save()
            if wish == STOP:
                self.leave()

    def take_step(self, micro_batches: Iterator[Any]) -> None:
        """One optimiser step: all its passes, and the update if everything is finite."""
        state, config, compute = self.state, self.plan.config, self.compute
        started, waited = time.perf_counter(), 0.0
        totals: dict[str, Tensor] = {}
        for index in range(config.accumulate):
            asked_at = time.perf_counter()
            batch = to_device(next(micro_batches), compute.device)
            waited += time.perf_counter() - asked_at
            # No generator needs saving: what a pass draws follows from its place among all passes of all ranks.
            place = index * compute.world + compute.rank
            reseed(_seed(config.seed, state.step, place), compute.device)
            is_last = index == config.accumulate - 1
            with nullcontext() if is_last else compute.no_sync(self.network):
                with autocast(compute.device, self.precision):
                    output = self.learner.step(self.network, batch, state.step)
                torch.autograd.backward(output.loss / config.accumulate)
            metrics = output.metrics | {"loss": output.loss}
            shares = {name: value.detach().float() / config.accumulate for name, value in metrics.items()}
            accumulate(totals, shares)
        self.update(totals)
        state.step += 1
        seconds = time.perf_counter() - started
        state.seconds += seconds
        state.window.time(seconds, waited)

    def update(self, totals: dict[str, Tensor]) -> None:
        """Change the weights by the gradients at hand, and count the step's figures."""
        state, clip_grad = self.state, self.plan.config.clip_grad
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad = self.compute.any_rank(~(torch.isfinite(totals["loss"]) & torch.isfinite(norm)))
        if clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, clip_grad, norm)
        state.guard.update(state.optimizer, bad)
        state.optimizer.zero_grad(set_to_none=True)
        state.update_ema()
        state.window.add(totals | {"grad_norm": norm}, counts=~bad)
        state.guard.watch(state.step + 1, bad, totals["loss"], norm)

    def report(self, progress: StepProgress) -> None:
        """Write the figures of the steps since the last report."""
        state, plan, window = self.state, self.plan, self.state.window
        state.guard.check()
        means = window.means(self.compute)
        measured = {name: means.pop(name).item() for name in MEASURED}
        images_per_second = window.steps * plan.config.batch_size / window.seconds
        figures = {
            "loss": measured["loss"],
            "lr": plan.learning_rate(self.learner.schedule, state.step - 1),
            "grad_norm": measured["grad_norm"],
            "images_per_second": images_per_second,
            "data_wait": window.waited / window.seconds,
            **self.learner.summarise(means),
        }
        line = self.record(figures)
        left = duration((plan.steps - state.step) * plan.config.batch_size / images_per_second)
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
        images = step * self.plan.config.batch_size
        self.run.write_metrics({"step": step, "epoch": epoch, "images": images, **figures})
        for tracker in self.trackers:
            tracker.log(step, figures)
        return line_of(step, self.plan.steps, epoch, figures)

    def evaluate(self) -> None:
        """Evaluate and draw the model as it is after this step."""
        state, compute, model, evaluation = self.state, self.compute, self.state.result, self.evaluation
        totals: dict[str, Tensor] = {}
        stopped = GO_ON
        compute.share_buffers(model)  # what is judged is the model that the main rank saves
        with self.eval_mode(model):
            try:
                apply = partial(evaluation.evaluate_batch, model)
                for sums in self.batches.evaluate(apply, evaluation.batch_size):
                    self.stop.poll()
                    accumulate(totals, sums)
            except StopRequested:
                stopped = STOP
        if compute.largest(stopped) == STOP:  # the evaluation is done again when the run goes on
            self.save()
            self.leave()
        totals = compute.sums(totals)
        if totals:
            figures = {f"eval/{name}": value for name, value in evaluation.summarise(totals).items()}
            state.note_evaluation(figures, f"eval/{evaluation.monitor}", evaluation.monitor_mode)
            self.run.console.say(self.record(figures))
        else:
            self.run.console.say(
                f"step {state.step}: no held-back image can be read, so nothing is evaluated"
            )
        if evaluation.draw is not None and compute.main:
            with self.eval_mode(model):
                samples = self.batches.samples(evaluation.batch_size)
                if samples:
                    evaluation.draw(model, samples, self.run.path / SAMPLES, state.step)
        self.last_evaluated = state.step

    @contextmanager
    def eval_mode(self, model: nn.Module) -> Iterator[None]:
        """`model` as it is used, not trained; what happens inside leaves no trace in the training."""
        reseed(_seed(self.plan.config.seed, self.state.step, EVALUATION), self.compute.device)
        model.eval()
        with eval_mode(self.compute.device, self.precision):
            yield
        self.network.train()

    def save(self) -> None:
        self.state.guard.check()  # nothing is saved before its last step is known to be finite
        self.saver.save()
        self.run.write_status(step=self.state.step)

    def leave(self) -> NoReturn:
        """Stop, all ranks after the same step."""
        step = self.state.step
        if self.saver.saved_step != step:
            raise RunFailed(f"stopped after step {step} without saving it; {self.saver.last_resort}")
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
            "images": state.step * plan.config.batch_size,
            "seconds": round(state.seconds, 3),
            "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "skipped_steps": state.guard.skipped,
            "last": state.last,
            "best": state.best,
            **self.details(),
        }
        self.run.finish(results)
        return results


def _seed(seed: int, step: int, place: int) -> int:
    """64 bits, unrelated for any two places of any two steps."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, step, place), digest_size=8).digest()
    return int.from_bytes(digest, "little")
