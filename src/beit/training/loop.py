"""The loop of every recipe: accumulate, clip, update, average, report, evaluate, save, stop when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from beit.config.errors import Interrupted, RunFailed, out_of_memory
from beit.patience import Silence
from beit.training.console import StepProgress, duration
from beit.training.device import Compute, Precision, autocast, reseed, seed_of, to_device
from beit.training.evaluation import Evaluator
from beit.training.method import Batches, Method
from beit.training.metrics import MEASURED, accumulate, brief_line, line_of
from beit.training.optim import adamw, parameter_groups, set_learning_rate
from beit.training.plan import Pace, Plan
from beit.training.run.directory import SAMPLES, RunDirectory
from beit.training.run.saver import Saver
from beit.training.run.trackers import Track, open_trackers
from beit.training.signals import StopRequested, StopSignals
from beit.training.state import TrainingState

GO_ON, SAVE, STOP = 0, 1, 2
LOST_RANK = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe")
"""What torch says of it when another rank is gone."""

SaveModel = Callable[[nn.Module, Path, int], None]
"""`save_model(model, folder, step)`: writes the model to use; called on the main rank, with each checkpoint."""
Conclude = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def fit(
    method: Method,
    batches: Batches,
    plan: Plan,
    run: RunDirectory,
    compute: Compute,
    precision: Precision,
    save_model: SaveModel,
    pace: Pace | None = None,
    conclude: Conclude = lambda results: {},
) -> dict[str, Any]:
    """Train the model of `method` from wherever `run` stands to the end of `plan`. Returns what results.json holds.

    Killed anywhere and called again with the same arguments, it ends with the same weights, bit for bit on a CPU,
    if the step draws random numbers from torch alone, and the batches of the same steps have the same data.
    `pace` is what a rehearsal found; the time that is left is told by it, and by what the parts turn out to take.
    `conclude`: results -> what they hold besides.

    Raises:
        Interrupted: asked to stop by a signal, and saved.
        RunFailed: a loss or gradient that is not finite, no memory, saves that fail, ranks that are gone.
    """
    state = initial_state(method, plan, compute)
    if (checkpoint := run.restore()) is not None:
        state.load_state_dict(checkpoint, compute)
        run.console.say(f"continuing after step {state.step:,} of {plan.steps:,}")
    saver = Saver(state, plan, run, compute, save_model)
    # Killed between a state and its model-best/, or gone back to an older state: the best is found again.
    if method.evaluation.keep_best and not saver.holds_best():
        state.best = {}
    run.write_status(step=state.step, steps=plan.steps)
    with (
        StopSignals(distributed=compute.world > 1) as stop,
        explained(saver, compute),
        open_trackers(plan.config, run, state.step, compute) as trackers,
        run.console.progress(plan.steps, state.step) as progress,
    ):
        evaluator = Evaluator(method.evaluation, batches, state, compute, precision, plan.config.seed, stop)
        loop = Loop(method, batches, plan, run, saver, evaluator, trackers, progress, pace or Pace())
        try:
            loop.train()
            return loop.finish(conclude)
        except StopRequested:
            loop.save_and_leave()  # an evaluation is done again when the run goes on
        except Silence:
            # Of a run that was asked to stop, unless part of the next step is done, the last one is kept.
            if not stop.requested or compute.world * plan.config.accumulate > 1:
                raise
            loop.save_and_leave()


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


@contextmanager
def explained(saver: Saver, compute: Compute) -> Iterator[None]:
    """Turn a lack of memory and the loss of another rank into a RunFailed that says what to do."""
    try:
        yield
    except (RunFailed, Interrupted):
        raise
    except (RuntimeError, MemoryError) as error:
        step, config, text = saver.state.step + 1, saver.plan.config, str(error).lower()
        if out_of_memory(error):
            raise RunFailed(
                f"out of memory in step {step}, with --batch-size {config.batch_size} and --accumulate"
                f" {config.accumulate}: double --accumulate or lower --batch-size; {saver.last_resort}"
            ) from error
        if compute.world > 1 and any(sign in text for sign in LOST_RANK):
            raise RunFailed(
                f"rank {compute.rank} lost touch with another rank in step {step}; {saver.last_resort}"
            ) from error
        raise


@dataclass(eq=False)
class Loop:
    """One call of :func:`fit`, on its way."""

    method: Method
    batches: Batches
    plan: Plan
    run: RunDirectory
    saver: Saver
    evaluator: Evaluator
    trackers: Sequence[Track]
    progress: StepProgress
    pace: Pace
    last_evaluated: int = -1
    """The last step that was followed by an evaluation."""

    def __post_init__(self) -> None:
        self.learner, self.state, self.stop = self.method.learner, self.saver.state, self.evaluator.stop
        self.compute, self.precision = self.saver.compute, self.evaluator.precision
        self.network = self.compute.distribute(self.state.model)
        """The model as the step calls it: wrapped when there are several ranks."""
        self.parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]

    def train(self) -> None:
        """From the step after `state.step` to the last one."""
        state, plan = self.state, self.plan
        micro_batches = iter(self.batches.train(state.step, plan.steps))
        self.network.train()
        while True:
            if state.step == 0 < plan.steps:
                self.measure_start()
            if plan.should_evaluate(state.step) and self.last_evaluated != state.step:
                self.evaluate()
            if state.step == plan.steps:
                return
            set_learning_rate(state.optimizer, plan.learning_rate(self.learner.schedule, state.step))
            self.take_step(micro_batches)
            self.progress.advance(state.step, self.seconds_left if self.pace.step else None)
            if plan.should_report(state.step):
                self.report()
            wish = STOP if self.stop.requested else SAVE if self.saver.is_due() else GO_ON
            wish = self.compute.largest(wish)  # the most urgent wish of any rank is done by all
            if wish == STOP:
                self.save_and_leave()
            if wish == SAVE:
                self.save()

    def take_step(self, micro_batches: Iterator[Any]) -> None:
        """One optimiser step: all its passes, and the update if everything is finite."""
        state, config, compute, step = self.state, self.plan.config, self.compute, self.learner.step
        assert step is not None, "a run of no steps takes none"
        started, waited = time.perf_counter(), 0.0
        totals: dict[str, Tensor] = {}
        for index in range(config.accumulate):
            asked_at = time.perf_counter()
            batch = to_device(next(micro_batches), compute.device)
            waited += time.perf_counter() - asked_at
            # No generator needs saving: what a pass draws follows from its place among all passes of all ranks.
            reseed(seed_of(config.seed, state.step, index * compute.world + compute.rank), compute.device)
            is_last = index == config.accumulate - 1
            with nullcontext() if is_last else compute.no_sync(self.network):
                with autocast(compute.device, self.precision):
                    output = step(self.network, batch, state.step)
                torch.autograd.backward(output.loss / config.accumulate)
            metrics = output.metrics | {"loss": output.loss}
            shares = {name: value.detach().float() / config.accumulate for name, value in metrics.items()}
            accumulate(totals, shares)
        self.update(totals)
        state.step += 1
        state.window.time(time.perf_counter() - started, waited)

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

    @property
    def seconds_left(self) -> float:
        return sum(self.pace.left(self.plan, self.state.step))

    def report(self) -> None:
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
            **({"mfu": images_per_second * self.pace.image} if self.pace.image else {}),
            **self.learner.summarise(means),
        }
        self.pace = self.pace.after(step=window.seconds / window.steps)
        line = f"{self.record(figures)}; {duration(self.seconds_left)} left"
        self.progress.report(line, f"{brief_line(figures)}, {images_per_second:,.0f} images/s")
        self.run.write_status(step=state.step)
        window.clear()

    def record(self, figures: dict[str, float]) -> str:
        """One line of metrics.jsonl for the step just done; the same to read."""
        step, epoch = self.state.step, self.plan.epoch(self.state.step)
        line = line_of(step, self.plan.steps, epoch, figures, self.state.last)
        self.state.last |= figures
        images = step * self.plan.config.batch_size
        self.run.write_metrics({"step": step, "epoch": epoch, "images": images, **figures})
        for track in self.trackers:
            track(step, figures)
        return line

    def record_evaluation(self, figures: dict[str, float]) -> None:
        """Record the figures of an evaluation, and say them."""
        if figures:
            short = f"held-back images, step {self.state.step:,}: {brief_line(figures)}"
            self.progress.report(self.record(figures), short, training=False)

    def measure_start(self) -> None:
        """Measure the model before its first step, and what needs none, where the recipe has a way to; or judge it
        whole."""
        evaluation = self.method.evaluation
        figures = self.evaluator.measure(evaluation.yardsticks)
        if not evaluation.at_start:
            figures |= under("eval", self.evaluator.measure(evaluation.measure))
        self.record_evaluation(figures)
        if evaluation.at_start:
            figures |= self.evaluate()
        self.state.first = figures

    def evaluate(self) -> dict[str, float]:
        """Evaluate and draw the model as it is after this step, and keep it if it is the best so far; its figures."""
        started = time.perf_counter()
        state, evaluation = self.state, self.method.evaluation
        monitor, self.last_evaluated = f"eval/{evaluation.monitor}", state.step
        self.compute.share_buffers(state.result)  # what is judged is the model that the main rank saves
        judged = self.evaluator.judge("held_back", evaluation.summarise)
        if judged == {}:
            self.run.console.say(f"step {state.step}: no held-back image can be read: nothing is evaluated")
        figures = under("eval", (judged or {}) | self.evaluator.measure(evaluation.measure))
        is_best = bool(judged) and state.is_best(figures, monitor, evaluation.monitor_mode)
        if is_best and evaluation.keep_best:
            self.save()  # without these figures yet: a run that goes on from here evaluates again
        self.record_evaluation(figures)
        if is_best and (not evaluation.keep_best or self.saver.write_best()):
            state.note_best(figures, monitor)
        if self.compute.main:
            self.run.bear(SAMPLES, partial(self.evaluator.draw, self.run.path / SAMPLES))
        self.pace = self.pace.after(evaluation=time.perf_counter() - started)
        return figures

    def test(self) -> None:
        """Judge the model that is kept, once, on images that nothing was chosen by."""
        evaluation = self.method.evaluation
        judged = self.evaluator.judge("test", evaluation.summarise_test or evaluation.summarise)
        if judged == {}:
            self.run.console.say("no test image can be read, so nothing is judged")
        elif judged:
            self.run.console.say(f"judged on test, once: {self.record(under('test', judged))}")

    def save(self) -> None:
        started = time.perf_counter()
        self.state.guard.check()  # nothing is saved before its last step is known to be finite
        self.saver.save()
        self.pace = self.pace.after(save=time.perf_counter() - started)
        self.run.write_status(step=self.state.step)

    def save_and_leave(self) -> NoReturn:
        """Stop, all ranks after the same step."""
        self.save()
        step = self.state.step
        if self.saver.saved_step != step:
            raise RunFailed(f"stopped after step {step} without saving it; {self.saver.last_resort}")
        raise Interrupted(f"interrupted and saved at step {step} of {self.plan.steps}; the same command continues")

    def finish(self, conclude: Conclude) -> dict[str, Any]:
        """Write the final figures, and model/ if the run was killed between its last checkpoint and its model."""
        state, plan = self.state, self.plan
        self.saver.write_model()
        details = self.method.product.details()  # of the last evaluation
        self.test()
        results = {
            "steps": state.step,
            "epochs": plan.epoch(state.step),
            "images": state.step * plan.config.batch_size,
            "seconds": round(self.run.elapsed, 3),
            "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "skipped_steps": state.guard.skipped,
            "first": state.first,
            "last": state.last,
            "best": state.best,
            **details,
        }
        results |= conclude(results)
        self.run.finish(results)
        return results


def under(split: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Figures by the names that they have for a split."""
    return {f"{split}/{name}": value for name, value in figures.items()}
