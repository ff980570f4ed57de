"""What every training verb does around its method: open the data and the run, say what will be done, train, and
say what comes next."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from beit.checkpoints.store import save_model
from beit.config.files import plain
from beit.config.run import TrainingConfig
from beit.data.loaders import Loader, evaluation_batches
from beit.data.sources.opening import open_source
from beit.data.sources.subsets import Subset
from beit.stages.announcement import announce, conclude
from beit.stages.batches import Machine, OpenSplit, each_batch, num_workers, totals
from beit.stages.method import Method
from beit.training.console import Console
from beit.training.device import (
    Precision,
    autocast,
    choose_precision,
    open_compute,
    to_device,
)
from beit.training.loop import fit
from beit.training.optim import adamw, parameter_groups
from beit.training.plan import LoopParts, LoopPlan
from beit.training.run.directory import RunDirectory
from beit.training.run.opening import is_finished, open_run
from beit.training.signals import stoppable_preparation
from beit.training.trackers import TensorBoardTracker, Tracker, WandbTracker

Poll = Callable[[], None]


def is_done(verb: str, config: TrainingConfig, overwrite: bool) -> bool:
    """Say so when the run in `config.out` is finished; its data need not be there any more."""
    if overwrite or not is_finished(config.out, verb=verb, config=plain(dataclasses.asdict(config))):
        return False
    Console(os.environ.get("RANK", "0") == "0").say(
        f"{config.out} is finished; nothing to do (--overwrite starts afresh)"
    )
    return True


PICTURES = 8
"""Images in a drawing."""


class Stage:
    """One training verb on this machine: data, devices, and the run directory."""

    def __init__(self, verb: str, config: TrainingConfig, open_split: OpenSplit = open_source) -> None:
        """Join the other ranks and open the data.

        Nothing is written yet, so that a mistake in the data leaves no trace.
        """
        self.verb, self.config = verb, config
        self.compute = open_compute()
        self.console = Console(self.compute.main)
        opened = functools.partial(
            open_split,
            config.sources,
            holdout=config.holdout,
            max_megapixels=config.max_megapixels,
            seed=config.seed,
        )
        self.source = opened("train", limit=config.limit)
        self.held_back = opened("eval", limit=config.eval_images)
        torch.manual_seed(config.seed)

    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.num_steps(len(self.source))

    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return self.config.num_warmup_steps(len(self.source))

    def freeze(self, network: nn.Module) -> None:
        """Put `network` where the run computes, never to be trained."""
        network.to(self.compute.device).eval().requires_grad_(False)

    def train(self, method: Method, *, dry_run: bool, overwrite: bool) -> None:
        """Announce `method` and train it to its end, from wherever the run stands."""
        config, console = self.config, self.console
        loader = self._loader(method)
        expected = choose_precision(config.precision, self.compute.device)
        if not method.prepare:  # what is prepared can only be judged after that
            self._rehearse(method, expected)
        if dry_run:
            announce(self, method, expected)
            console.say("dry run: nothing was written")
            return
        with open_run(
            config.out,
            verb=self.verb,
            config=plain(dataclasses.asdict(config)),
            compute=self.compute,
            console=console,
            facts=self._facts(method),
            overwrite=overwrite,
            heading=f"beit {self.verb} --config THIS-FILE",
        ) as run:
            precision: Precision = run.settle("precision", lambda: expected)
            announce(self, method, precision)
            if method.prepare:
                with stoppable_preparation(self.compute) as stop:
                    method.prepare(self._machine(precision), stop)
            plan = self._plan(method, precision)
            results = fit(self._parts(method, loader, plan, run), plan, run, self.compute)
            conclude(self, method, results, loader.bad_files)

    # The parts of a run.

    @torch.no_grad()
    def _rehearse(self, method: Method, precision: Precision) -> None:
        """One image through the training view, and one through the evaluation: a mistake shows in seconds, and
        before anything is written."""
        machine = self._machine(precision)._replace(workers=0)
        seed, labeled = self.config.seed, method.labeled
        next(evaluation_batches(self.source, method.view, batch_size=1, seed=seed, labeled=labeled), None)
        judge = functools.partial(method.evaluate, method.model.to(self.compute.device).eval())
        view = method.evaluation_view
        next(each_batch(judge, self.held_back, view, machine, batch_size=1, seed=seed, labeled=labeled), None)
        method.model.train()

    def _loader(self, method: Method) -> Loader:
        config, compute = self.config, self.compute
        return Loader(
            self.source,
            method.view,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=compute.rank,
            world=compute.world,
            accumulate=config.accumulate,
            workers=num_workers(config.workers, compute),
            max_bad=config.max_bad,
            on_bad=self._report_bad,
            labeled=method.labeled,
            repeats=method.repeats,
            pin_memory=compute.device.type == "cuda",
        )

    def _report_bad(self, name: str, reason: str) -> None:
        line = f"skipped {name}: {reason}"
        if self.compute.main:
            self.console.say(line)
        else:  # the other ranks have no log, but damage that only they meet must be named
            print(line, file=sys.stderr, flush=True)

    def _machine(self, precision: Precision) -> Machine:
        return Machine(self.compute, precision, num_workers(self.config.workers, self.compute))

    def _facts(self, method: Method) -> dict[str, str]:
        """What the run depends on besides its configuration."""
        facts = {"images": f"{self.source.fingerprint} and {self.held_back.fingerprint}", **method.facts}
        return facts if method.tokenizer_hash is None else {**facts, "tokenizer": method.tokenizer_hash}

    def _plan(self, method: Method, precision: Precision) -> LoopPlan:
        config, steps = self.config, self.steps()
        save_steps, save_minutes = config.save_interval()
        return LoopPlan(
            steps=steps,
            batch_size=config.batch_size,
            steps_per_epoch=len(self.source) / config.batch_size,
            seed=config.seed,
            accumulate=config.accumulate,
            precision=precision,
            clip_grad=config.clip_grad,
            ema_decay=config.ema_decay,
            nonfinite=config.nonfinite,
            log_every=config.log_every,
            eval_every=math.ceil(steps / config.evaluations),
            save_every_steps=save_steps,
            save_every_minutes=save_minutes,
            keep=config.keep,
            monitor=method.monitor,
            monitor_mode=method.monitor_mode,
        )

    def _parts(self, method: Method, loader: Loader, plan: LoopPlan, run: RunDirectory) -> LoopParts:
        config = self.config
        peak = config.scaled(config.lr)
        groups = parameter_groups(
            method.model.to(self.compute.device),
            weight_decay=config.weight_decay,
            layer_decay=method.layer_decay,
            layer_groups=method.layer_groups,
        )
        return LoopParts(
            model=method.model,
            step=method.step,
            batches=loader.batches,
            optimizer=adamw(groups, lr=peak, betas=(config.beta1, config.beta2)),
            schedule=functools.partial(
                method.schedule,
                peak=peak,
                final=config.scaled(config.min_lr),
                warmup_steps=self.warmup(),
                total_steps=config.in_steps(config.lr_steps, plan.steps),
            ),
            save_model=functools.partial(self._save, method),
            evaluate=functools.partial(self._evaluate, method, plan.precision),
            draw=functools.partial(self._draw, method, plan.precision) if method.draw else None,
            details=method.details,
            summarise=method.summarise,
            summarise_evaluation=method.summarise_evaluation,
            companions=method.companions,
            trackers=functools.partial(self._trackers, run),
        )

    def _save(self, method: Method, model: nn.Module, folder: Path, step: int) -> None:
        save_model(
            method.to_keep(model),
            folder,
            provenance={"verb": self.verb, "step": step, "data": list(self.config.sources)},
            tokenizer_hash=method.tokenizer_hash,
            classes=method.classes,
            extra=method.description,
        )

    @torch.no_grad()
    def _evaluate(
        self, method: Method, precision: Precision, model: nn.Module, poll: Poll
    ) -> dict[str, Tensor]:
        passes = each_batch(
            functools.partial(method.evaluate, model),
            self.held_back,
            method.evaluation_view,
            self._machine(precision),
            batch_size=method.evaluation_batch_size
            or self.config.batch_size // (self.compute.world * self.config.accumulate),
            seed=self.config.seed,
            labeled=method.labeled,
            on_bad=self._report_bad,
        )
        return totals(passes, self._no_totals(method, model), poll)

    def _no_totals(self, method: Method, model: nn.Module) -> dict[str, Tensor]:
        """Sums over nothing. Every rank needs the names, also one whose held-back images are all damaged."""
        image, label = (
            torch.zeros(method.input_shape, dtype=torch.uint8),
            (method.blank_label,) if method.labeled else (),
        )
        blank = method.evaluation_view(image, *label, np.random.default_rng(0))
        batch = type(blank)(*(field[None] for field in blank))
        sums = method.evaluate(model, to_device(batch, self.compute.device))
        return {name: torch.zeros_like(value) for name, value in sums.items()}

    @torch.no_grad()
    def _draw(self, method: Method, precision: Precision, model: nn.Module, folder: Path, step: int) -> None:
        assert method.draw is not None
        # Spread over the set, because neighbours in it are alike.
        shown = Subset(self.held_back, spread(len(self.held_back), PICTURES))
        batches = evaluation_batches(
            shown,
            method.evaluation_view,
            batch_size=method.evaluation_batch_size or PICTURES,
            seed=self.config.seed,
            labeled=method.labeled,
        )
        samples = [to_device(batch, self.compute.device) for _, batch in batches]
        if samples:
            with autocast(self.compute.device, precision):
                method.draw(model, samples, folder, step)

    def _trackers(self, run: RunDirectory, step: int) -> list[Tracker]:
        trackers: list[Tracker] = []
        if self.config.tensorboard:
            trackers.append(TensorBoardTracker(run.path / "tensorboard", step))
        if self.config.wandb is not None:
            trackers.append(WandbTracker(run.path, self.config.wandb, run.identity, run.config))
        return trackers


def spread(size: int, count: int) -> list[int]:
    """At most `count` different numbers below `size`, evenly spaced."""
    return sorted({index * size // count for index in range(count)})
