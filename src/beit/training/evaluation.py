"""A model judged, measured and drawn while it is trained, as it is used and not as it learns."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from beit.training.device import Precision, eval_mode, reseed, seed_of
from beit.training.method import EvaluationSplit, Measure
from beit.training.metrics import Summary, accumulate
from beit.training.plan import Job
from beit.training.signals import StopRequested, StopSignals
from beit.training.state import TrainingState

PLACE = 2**32
"""The place of an evaluation's random numbers, beyond those of any pass."""


@dataclass(frozen=True)
class Evaluator:
    """Asks the model of `state`; what happens here leaves no trace in the training. Every rank asks the same.

    Where any rank is asked to stop, all leave by :class:`StopRequested`.
    """

    job: Job
    state: TrainingState
    stop: StopSignals

    def judge(self, split: EvaluationSplit, summarise: Summary) -> dict[str, float] | None:
        """The figures of the images of `split`, of all ranks; empty where none can be read, None where there are
        none."""
        evaluation = self.job.method.evaluation
        evaluate_batch = partial(evaluation.evaluate_batch, self.state.result)
        passes = self.job.batches.evaluate(split, evaluate_batch, evaluation.batch_size)
        if passes is None:
            return None
        totals: dict[str, Tensor] = {}
        with self.eval_mode(self.job.precision), suppress(StopRequested):
            for sums in passes:
                self.stop.poll()
                accumulate(totals, sums)
        self.stop.poll_together(self.job.compute)
        totals = self.job.compute.sums(totals)
        return summarise(totals) if totals else {}

    def measure(self, measure: Measure | None) -> dict[str, float]:
        """What the recipe measures besides, if anything."""
        if measure is None:
            return {}
        figures: Mapping[str, float] = {}
        with self.eval_mode("float32"), suppress(StopRequested):  # which passes take less, the recipe knows
            figures = measure(self.state.result, self.job.precision, self.stop)
        self.stop.poll_together(self.job.compute)
        return dict(figures)

    def draw(self, folder: Path) -> None:
        """Draw a few held-back images, where the recipe has a way to and there are any."""
        evaluation = self.job.method.evaluation
        if evaluation.draw is None:
            return
        with self.eval_mode(self.job.precision):
            if samples := self.job.batches.samples(evaluation.batch_size):
                evaluation.draw(self.state.result, samples, folder, self.state.step)

    @contextmanager
    def eval_mode(self, precision: Precision) -> Iterator[None]:
        """The model as it is used, not trained."""
        device = self.job.compute.device
        reseed(seed_of(self.job.plan.config.seed, self.state.step, PLACE), device)
        self.state.result.eval()
        with eval_mode(device, precision):
            yield
        self.state.model.train()
