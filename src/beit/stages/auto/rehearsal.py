"""How long a run's parts take here, measured in seconds of the real thing, and how many steps fit into a time."""

import copy
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from beit.config.run import TrainingConfig
from beit.training.device import Compute, eval_mode
from beit.training.method import Method
from beit.training.optim import set_learning_rate
from beit.training.plan import Job, Pace
from beit.training.state import Stepper, initial_state

WARM_UP, TIMED = 1, 1
"""Steps that are not timed, and the fewest that are."""
SHARE = 0.05
"""Share of a run's steps that its rehearsal takes at most."""
RESERVE = 0.05
"""Share of a budget that is left free: a machine is not always equally fast."""
EVALUATION_SHARE = 0.2
"""Evaluations may take this share of a budget; beyond it there are fewer."""
WRITING = 2e8
"""Bytes a second that a disk writes at least."""


def fit_into(seconds: float, pace: Pace, config: TrainingConfig) -> tuple[int, int]:
    """Optimiser steps and evaluations of a run that has so many seconds left."""
    seconds *= 1 - RESERVE
    most = EVALUATION_SHARE * seconds / pace.evaluation if pace.evaluation > 0 else math.inf
    evaluations = max(1, math.floor(min(config.evaluations, most)))
    steps, minutes = config.save_interval()
    saves = 1 + (0 if minutes is None else math.floor(seconds / (60 * minutes)))
    step = pace.step + (pace.save / steps if steps else 0)
    left = seconds - evaluations * pace.evaluation - saves * pace.save
    return max(1, math.floor(left / step)), evaluations


def measure(job: Job, *, passes: tuple[int, int], seconds: float) -> Pace:
    """The pace of `job`, whose evaluation and final test take so many `passes`, on this machine; about `seconds` are
    spent on steps. The method is left as it was."""
    with untouched(job.method), torch.random.fork_rng(devices=[]):
        step, size = _time_steps(job, seconds)
        with eval_mode(job.compute.device, job.precision):
            a_pass, drawing = _time_evaluation(job)
    evaluation, test = (count * a_pass for count in passes)
    return Pace(step, evaluation + drawing, size / WRITING, test)


@contextmanager
def untouched(method: Method) -> Iterator[None]:
    """What the method learns is taken back at the end."""
    modules = [method.learner.model, *method.learner.companions.values()]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    try:
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)
            module.zero_grad(set_to_none=True)


def companion_bytes(method: Method) -> int:
    """Bytes of what the method keeps besides its model, as tokens of the views that come again."""
    return sum(x.nbytes for module in method.learner.companions.values() for x in module.state_dict().values())


def _time_steps(job: Job, seconds: float) -> tuple[float, int]:
    """Seconds of a step, the loading of its images among them, and bytes of the state after it."""
    compute, state = job.compute, initial_state(job)
    set_learning_rate(state.optimizer, 0.0)  # without the warm-up of the run its first rates might diverge
    stepper = Stepper(job, state)
    stepper.network.train()
    micro_batches = iter(job.batches.train(0, 10**6))  # a rehearsal may be longer than its run
    start = time.monotonic()
    done, least, most = 0, WARM_UP + TIMED, SHARE * job.plan.steps
    while not compute.largest(int(done >= least and (time.monotonic() > start + seconds or done > most))):
        if done == WARM_UP:
            start = time.monotonic()
        stepper.take_step(micro_batches)
        _wait_for(compute)
        done += 1
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    size = parameters * (16 if state.ema is None else 20) + companion_bytes(job.method)
    return (time.monotonic() - start) / (done - WARM_UP), size


def _time_evaluation(job: Job) -> tuple[float, float]:
    """Seconds of a pass over held-back images, the second one, and of a drawing."""
    evaluation, model = job.method.evaluation, job.method.learner.model.eval()
    batches, compute = job.batches, job.compute
    sums = batches.evaluate("held_back", partial(evaluation.evaluate_batch, model), evaluation.batch_size) or ()
    times = [time.monotonic()]
    for _ in itertools.islice(sums, 2):
        _wait_for(compute)
        times.append(time.monotonic())
    seconds = times[-1] - times[-2] if times[1:] else 0.0
    start = time.monotonic()
    if evaluation.draw is not None and compute.main and (samples := batches.samples(evaluation.batch_size)):
        with TemporaryDirectory() as folder:
            evaluation.draw(model, samples, Path(folder), 0)
    return seconds, time.monotonic() - start


def _wait_for(compute: Compute) -> None:
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
