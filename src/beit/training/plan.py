"""How long a run is and what happens when: its configuration, applied to so many images."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from beit.config.run import TrainingConfig
from beit.training.device import Compute, Precision
from beit.training.method import Batches, Method
from beit.training.optim import Rates, Schedule, constant_schedule, cool_down_start


@dataclass(frozen=True)
class Plan:
    """The timetable of a run of `config` on `images` training images."""

    config: TrainingConfig
    images: int

    @cached_property
    def first_steps(self) -> int:
        """Optimiser steps of the run before it was extended at all, for which its schedules are."""
        return self.config.num_steps(self.images)

    @cached_property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.extended(self.first_steps, self.images)

    @cached_property
    def ends(self) -> list[int]:
        """The steps that were the last for a time, and the last one."""
        return sorted({self.first_steps, *(self.config.ends or ()), self.steps})

    @property
    def warmup_steps(self) -> int:
        return self.config.num_warmup_steps(self.first_steps, self.images)

    @property
    def branch(self) -> int | None:
        """The step from which a run of constant rate can be extended; None of other runs."""
        return cool_down_start(self.steps) if self.config.schedule == "constant" else None

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.config.scaled(self.config.lr)

    def learning_rate(self, schedule: Schedule, step: int) -> float:
        """That of the optimiser step `step`, from 0; every group takes its `lr_scale` of it.

        Of a run that was extended the steps that were added each time have the rates of a run of their own.
        """
        config, final = self.config, self.config.scaled(self.config.min_lr)
        if config.schedule == "constant":
            return constant_schedule(step, Rates(self.peak, final, self.warmup_steps, self.steps))
        start = max(end for end in (0, *self.ends[:-1]) if end <= step)
        length = min(end for end in self.ends if end > start) - start
        warmup, decay = config.num_warmup_steps(length, self.images), config.in_steps(config.lr_steps, length)
        return schedule(step - start, Rates(self.peak, final, warmup, decay))

    def epoch(self, step: int) -> float:
        """Passes over the images after `step` steps."""
        return round(step / (self.images / self.config.batch_size), 4)

    def should_report(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.steps

    def should_evaluate(self, step: int) -> bool:
        """Whether to evaluate and draw after `step` steps."""
        return step in self.ends or (step > 0 and step % self._eval_every == 0)

    def should_save(self, step: int, seconds_since: float) -> bool:
        """Whether to save after `step` steps, the last save being so many seconds ago."""
        steps, minutes = self.config.save_interval()
        by_count = steps is not None and step % steps == 0
        by_clock = minutes is not None and seconds_since >= 60 * minutes
        return step in (self.branch, self.steps) or by_count or by_clock

    def evaluations_after(self, step: int) -> int:
        """How many evaluations follow the step `step`, one due right after it included."""
        return (self.steps - 1) // self._eval_every - max(step - 1, 0) // self._eval_every + 1

    @cached_property
    def _eval_every(self) -> int:
        return math.ceil(self.steps / self.config.evaluations)


class Job(NamedTuple):
    """What is trained, or rehearsed: a method and its images, for how long, and where."""

    method: Method
    batches: Batches
    plan: Plan
    compute: Compute
    precision: Precision


class Pace(NamedTuple):
    """Seconds that the parts of a run take: as a rehearsal finds them, then as they turn out; 0 for the unknown."""

    step: float = 0.0
    evaluation: float = 0.0
    """With its drawing."""
    save: float = 0.0
    test: float = 0.0
    """To judge once, at the end."""
    image: float = 0.0
    """To train on an image, at the machine's own rate of matrix products; the same all the time."""

    def after(self, **seconds: float) -> "Pace":
        """This pace once a part has taken `seconds`: halfway between what was thought and that."""
        thought = self._asdict()
        return self._replace(**{part: ((thought[part] or took) + took) / 2 for part, took in seconds.items()})

    def left(self, plan: Plan, step: int = 0) -> tuple[float, float, float]:
        """Seconds of training, evaluating and saving from the end of step `step` to that of the run."""
        training, (count, minutes) = (plan.steps - step) * self.step, plan.config.save_interval()
        saves = 1 + (plan.steps - step) // (count or plan.steps + 1) + training // (60 * (minutes or math.inf))
        return training, plan.evaluations_after(step) * self.evaluation + self.test, saves * self.save
