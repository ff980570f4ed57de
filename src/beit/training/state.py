"""Everything that changes while a run trains, which is what a checkpoint holds; the step that changes it; and what
the model is asked on the way, as it is used and not as it learns."""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import InitVar, dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._logging import set_logs  # type: ignore[attr-defined]  # documented at torch._logging

from beit.training.device import Compute, Precision, autocast, eval_mode, reseed, seed_of, to_device
from beit.training.method import EvaluationSplit, Measure, Noise
from beit.training.metrics import MetricWindow, Summary, accumulate
from beit.training.nonfinite import NonFiniteGuard
from beit.training.optim import adamw, parameter_groups
from beit.training.plan import Job
from beit.training.signals import StopRequested, StopSignals

PLACE = 2**32
"""The place of an evaluation's random numbers, beyond those of any pass."""


@dataclass(eq=False)
class TrainingState:
    """Weights, their moving average, optimiser, progress, and the figures under way.

    Randomness and the place in the data are not here: both follow from `step`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    companions: Mapping[str, nn.Module]
    ema_decay: float | None
    nonfinite: InitVar[Literal["stop", "skip"]]
    split: Sequence[int] = (1, 1)
    """The processes, and the passes of each, that share a batch."""
    step: int = 0
    """Optimiser steps done."""
    last: dict[str, Any] = field(default_factory=dict)
    """The newest figures, of training and of evaluation."""
    first: dict[str, Any] = field(default_factory=dict)
    """What was measured before the first step."""
    best: dict[str, Any] = field(default_factory=dict)
    """The figures of the best evaluation."""

    def __post_init__(self, nonfinite: Literal["stop", "skip"]) -> None:
        self.ema = None if self.ema_decay is None else copy.deepcopy(self.model).eval().requires_grad_(False)
        self.window, self.guard = MetricWindow(), NonFiniteGuard(nonfinite)

    @property
    def result(self) -> nn.Module:
        """The model to evaluate and to keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the average towards the weights; called before `step` counts the step that changed them."""
        if self.ema is None or self.ema_decay is None:
            return
        # A young average follows closely, or a short run would average mostly its first step.
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        averages, current = ([*x.parameters(), *x.buffers()] for x in (self.ema, self.model))
        for average, tensor in zip(averages, current, strict=True):
            if not average.is_floating_point():
                average.copy_(tensor)
        moving = [x.is_floating_point() for x in averages]
        torch._foreach_lerp_([*compress(averages, moving)], [*compress(current, moving)], 1 - decay)

    def is_best(self, figures: Mapping[str, float], monitor: str, mode: Literal["min", "max"]) -> bool:
        """Whether an evaluation's figures are the best so far, by the figure `monitor`; the earlier of equals is."""
        sign = 1 if mode == "max" else -1
        if not math.isfinite(figures.get(monitor, math.nan)):
            return False
        return not self.best or sign * figures[monitor] > sign * self.best[monitor]

    def state_dict(self, compute: Compute) -> dict[str, Any]:
        """All of it as tensors and primitives; every rank must call this."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "companions": {name: module.state_dict() for name, module in self.companions.items()},
            "window": self.window.state_dict(compute),
            "guard": self.guard.state_dict(),
            **{name: getattr(self, name) for name in ("step", "split", "last", "first", "best")},
        }

    def load_state_dict(self, state: Mapping[str, Any], compute: Compute) -> None:
        """Go on from `state`; anything missing or left over is an error."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.companions.keys() != state["companions"].keys():
            raise KeyError(f"the checkpoint has companions {list(state['companions'])}")
        for name, module in self.companions.items():
            module.load_state_dict(state["companions"][name])
        self.window.load_state_dict(state["window"], compute)
        self.guard.load_state_dict(state["guard"])
        self.step = state["step"]
        self.last, self.best = dict(state["last"]), dict(state["best"])
        self.first = dict(state.get("first", {}))  # runs of 0.1 have none


def initial_state(job: Job) -> TrainingState:
    """All of a run before its first step, on the device."""
    learner, config, compute = job.method.learner, job.plan.config, job.compute
    for module in (learner.model, *learner.companions.values()):
        module.to(compute.device)
    groups = parameter_groups(
        learner.model,
        weight_decay=config.weight_decay,
        layer_decay=learner.layer_decay,
        layer_groups=learner.layer_groups,
    )
    optimizer = adamw(groups, lr=job.plan.peak, betas=(config.beta1, config.beta2))
    split = compute.world, config.passes
    return TrainingState(learner.model, optimizer, learner.companions, config.ema_decay, config.nonfinite, split)


@dataclass(eq=False)
class Stepper:
    """Takes the optimiser steps of a run, and of its rehearsal."""

    job: Job
    state: TrainingState

    def __post_init__(self) -> None:
        model, self.passes = self.state.model, self.job.plan.config.passes
        if self.job.plan.config.compile == "on":
            set_logs(recompiles=True)  # shapes are the same in all steps; of others it is told
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # of CUDA where there is none
            model = cast(nn.Module, torch.compile(model, dynamic=False))
        self.network = self.job.compute.distribute(model)
        """The model as the step calls it: compiled, or wrapped when there are several ranks."""
        self.parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]

    def take_step(self, micro_batches: Iterator[Any]) -> None:
        """One optimiser step: all its passes, and the update if everything is finite."""
        job, state, step = self.job, self.state, self.job.method.learner.step
        config, compute = job.plan.config, job.compute
        assert step is not None, "a run of no steps takes none"
        size = config.batch_size // (compute.world * self.passes)
        started, waited = time.perf_counter(), 0.0
        totals: dict[str, Tensor] = {}
        for index in range(self.passes):
            asked_at = time.perf_counter()
            batch = to_device(next(micro_batches), compute.device)
            waited += time.perf_counter() - asked_at
            # No generator needs saving: what is drawn for a sample follows from its place in the batch of all passes
            # of all ranks, and what dropout draws from the place of the pass.
            place = index * compute.world + compute.rank
            reseed(seed_of(config.seed, state.step, place), compute.device)
            noise = Noise(config.seed, state.step, range(place * size, (place + 1) * size), compute.device)
            is_last = index == self.passes - 1
            with nullcontext() if is_last else compute.no_sync(self.network):
                with autocast(compute.device, job.precision):
                    output = step(self.network, batch, state.step, noise)
                torch.autograd.backward(output.loss / self.passes)
            metrics = output.metrics | {"loss": output.loss}
            shares = {name: value.detach().float() / self.passes for name, value in metrics.items()}
            accumulate(totals, shares)
        self.update(totals)
        state.step += 1
        state.window.seconds += time.perf_counter() - started
        state.window.waited += waited

    def update(self, totals: dict[str, Tensor]) -> None:
        """Change the weights by the gradients at hand, and count the step's figures."""
        state, clip_grad = self.state, self.job.plan.config.clip_grad
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad = self.job.compute.any_rank(~(torch.isfinite(totals["loss"]) & torch.isfinite(norm)))
        if clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, clip_grad, norm)
        state.guard.update(state.optimizer, bad)
        state.optimizer.zero_grad(set_to_none=True)
        state.update_ema()
        state.window.add(totals | {"grad_norm": norm}, counts=~bad)
        state.guard.watch(state.step + 1, bad, totals["loss"], norm)


# ------------------------------------------------------------------------------------------------------------
# What is asked of the model on the way


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
        try:
            with eval_mode(device, precision):
                yield
        finally:  # a drawing that fails is borne, and training goes on
            self.state.model.train()
