"""The loop of every recipe: accumulate, clip, update, average, report, evaluate, save, stop when asked."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from beit.config.errors import Interrupted, LostRank, RunFailed, out_of_memory
from beit.patience import Silence
from beit.training.console import Bar, bar, duration
from beit.training.device import Compute
from beit.training.metrics import MEASURED, brief_line, line_of
from beit.training.optim import set_learning_rate
from beit.training.plan import Job, Pace, Plan
from beit.training.run.directory import SAMPLES, RunDirectory
from beit.training.run.saver import Saver
from beit.training.run.trackers import Track, open_trackers
from beit.training.signals import StopRequested, stop_signals
from beit.training.state import Evaluator, Stepper, TrainingState, initial_state

GO_ON, SAVE, STOP = 0, 1, 2

SaveModel = Callable[[nn.Module, Path, int], None]
"""`save_model(model, folder, step)`: writes the model to use; called on the main rank, with each checkpoint."""
Conclude = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def fit(
    job: Job, run: RunDirectory, save_model: SaveModel, pace: Pace | None = None, conclude: Conclude = dict
) -> dict[str, Any]:
    """Train the model of `job` from wherever `run` stands to the end of its plan. Returns what results.json holds.

    Killed anywhere and called again with the same arguments, it ends with the same weights, bit for bit on a CPU,
    if the step draws random numbers from torch alone, and the batches of the same steps have the same data.
    `pace` is what a rehearsal found; the time that is left is told by it, and by what the parts turn out to take.
    `conclude`: results -> what they hold besides.

    Raises:
        Interrupted: asked to stop by a signal, and saved.
        RunFailed: a loss or gradient that is not finite, no memory, saves that fail, ranks that are gone.
    """
    plan, compute, state = job.plan, job.compute, initial_state(job)
    restore(state, run, plan, compute)
    saver = Saver(job, state, run, save_model)
    # Killed between a state and its model-best/, or gone back to an older state: the best is found again.
    if job.method.evaluation.keep_best and not compute.from_main(saver.holds_best):
        state.best = {}
    run.write_status(step=state.step, steps=plan.steps)
    with (
        stop_signals(distributed=compute.world > 1) as stop,
        explained(saver),
        open_trackers(plan.config, run, state.step, compute) as trackers,
        bar("steps", plan.steps, done=state.step, shown=compute.main, file=sys.stdout) as progress,
    ):
        evaluator = Evaluator(job, state, stop)
        loop = Loop(job, run, saver, Stepper(job, state), evaluator, trackers, progress, pace or Pace())
        try:
            loop.train()
            return loop.finish(conclude)
        except StopRequested:
            loop.save_and_leave()  # an evaluation is done again when the run goes on
        except Silence:
            # Of a run that was asked to stop, unless part of the next step is done, the last one is kept.
            if not stop.requested or compute.world * plan.config.passes > 1:
                raise
            loop.save_and_leave()


def restore(state: TrainingState, run: RunDirectory, plan: Plan, compute: Compute) -> None:
    """Go on from the newest state of `run`, where there is one, and say so."""
    checkpoint = run.restore()
    if checkpoint is not None:
        state.load_state_dict(checkpoint, compute)
        run.console.say(f"continuing after step {state.step:,} of {plan.steps:,}")
        if (before := checkpoint.get("split", state.split)) != state.split:
            now, then = (f"{processes} x {passes}" for processes, passes in (state.split, before))
            effect = "sums are rounded otherwise, and dropout and batch norms, if any, follow the passes"
            run.console.say(f"a step has {now} passes instead of {then}: {effect}")


@contextmanager
def explained(saver: Saver) -> Iterator[None]:
    """Make of a lack of memory and of the loss of another rank a RunFailed that says what to do."""
    compute = saver.job.compute
    try:
        with compute.in_touch():
            yield
    except LostRank as error:
        lost = f"rank {compute.rank} lost touch with another rank in step {saver.state.step + 1}"
        raise RunFailed(f"{lost}; {saver.last_resort}") from error
    except (RunFailed, Interrupted):
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        config = saver.job.plan.config
        sizes = f"--batch-size {config.batch_size} and --accumulate {config.passes}"
        mend = f"double --accumulate or lower --batch-size; {saver.last_resort}"
        raise RunFailed(f"out of memory in step {saver.state.step + 1}, with {sizes}: {mend}") from error


@dataclass(eq=False)
class Loop:
    """One call of :func:`fit`, on its way."""

    job: Job
    run: RunDirectory
    saver: Saver
    stepper: Stepper
    evaluator: Evaluator
    trackers: Sequence[Track]
    progress: Bar
    pace: Pace
    last_evaluated: int = -1
    """The last step that was followed by an evaluation."""

    def __post_init__(self) -> None:
        self.method, self.plan, self.compute = self.job.method, self.job.plan, self.job.compute
        self.learner, self.state, self.stop = self.method.learner, self.saver.state, self.evaluator.stop

    def train(self) -> None:
        """From the step after `state.step` to the last one."""
        state, plan = self.state, self.plan
        micro_batches = iter(self.job.batches.train(state.step, plan.steps))
        self.stepper.network.train()
        while True:
            if state.step == 0 < plan.steps:
                self.measure_start()
            if plan.should_evaluate(state.step) and self.last_evaluated != state.step:
                self.evaluate()
            if state.step == plan.steps:
                return
            set_learning_rate(state.optimizer, plan.learning_rate(self.learner.schedule, state.step))
            self.stepper.take_step(micro_batches)
            self.progress.move_to(state.step, self.seconds_left if self.pace.step else None)
            if plan.should_report(state.step):
                self.report()
            wish = STOP if self.stop.requested else SAVE if self.saver.is_due() else GO_ON
            wish = self.compute.largest(wish)  # the most urgent wish of any rank is done by all
            if wish == STOP:
                self.save_and_leave()
            if wish == SAVE:
                self.save()

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
        line, left = self.record(figures), f"{duration(self.seconds_left)} left"
        short = f"training images: {brief_line(figures)}, {images_per_second:,.0f} images/s"
        self.run.console.report(f"{line}; {left}", short, f"step {state.step:,} of {plan.steps:,}, {short}; {left}")
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
            self.run.console.report(self.record(figures), short)

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
            # Among many the best is partly luck, so the figures say what they were chosen by.
            state.best = {"step": state.step, "monitor": monitor, "remark": "chosen on these images", **figures}
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
        self.run.gather_log()
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
        self.run.gather_log()
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
