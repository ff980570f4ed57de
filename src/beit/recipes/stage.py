"""What every training verb does around its method: open the data and the run, say what will be done, train, and
say what comes next."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from beit.checkpoints.store import save_model
from beit.config import TrainingConfig
from beit.config_file import plain
from beit.data.combined import Subset
from beit.data.loaders import Loader, evaluation_batches
from beit.data.sources import Source, open_source
from beit.recipes.announcement import announce, conclude
from beit.training.console import Console
from beit.training.device import (
    Precision,
    autocast,
    choose_precision,
    open_compute,
    to_device,
)
from beit.training.loop import fit
from beit.training.metrics import Summary, over_count, scalars
from beit.training.open_run import is_finished, open_run
from beit.training.optim import adamw, cosine_schedule, parameter_groups
from beit.training.plan import LoopPlan, Step
from beit.training.run_directory import RunDirectory
from beit.training.trackers import TensorBoardTracker, Tracker, WandbTracker

View = Callable[..., Any]
Poll = Callable[[], None]


@dataclass(kw_only=True)
class Method:
    """What a recipe brings: a network, its step, its views, and how it is judged and drawn."""

    model: nn.Module
    step: Step
    """One micro-batch -> loss and metrics; see :func:`beit.training.loop.fit`."""
    view: View
    """An image, its label if the method is `labeled`, and a generator -> a training sample."""
    evaluation_view: View
    """The same -> a sample of the evaluation."""
    evaluate: Callable[[nn.Module, Any], dict[str, Tensor]]
    """The model and a batch on the device -> sums over it, `count` among them."""
    draw: Callable[[nn.Module, Any, Path, int], None]
    """The model, a few evaluation samples as a batch, the folder for pictures, the step."""
    summarise: Summary = scalars
    summarise_evaluation: Summary = over_count
    monitor: str = "loss"
    """The evaluation's figure that says which was best."""
    monitor_mode: Literal["min", "max"] = "min"
    labeled: bool = False
    """Whether the views take labels."""
    repeats: int = 1
    """Views of an image that stand together in a batch."""
    layer_decay: float = 1.0
    layer_groups: Sequence[Sequence[nn.Parameter]] | None = None
    """The model's parameters by depth, lowest first; with them `layer_decay` slows the lower ones down."""
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    tokenizer_hash: str | None = None
    """Identity of the tokenizer whose tokens the model predicts."""
    classes: Sequence[str] | None = None
    """Names of a classifier's outputs, in order."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What else model.json should say."""
    about: Sequence[str] = ()
    """Lines for the announcement."""
    activations: float = 0
    """Bytes of activations for each image of a pass, roughly."""
    next_command: str = ""
    """What to type after this, with {out} for the run."""


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

    def __init__(self, verb: str, config: TrainingConfig, **source_options: Any) -> None:
        """Join the other ranks and open the data. `source_options` are those of :func:`open_source`.

        Nothing is written yet, so that a mistake in the data leaves no trace.
        """
        self.verb, self.config = verb, config
        self.compute = open_compute()
        self.console = Console(self.compute.main)
        options = {
            "holdout": config.holdout,
            "max_megapixels": config.max_megapixels,
            "seed": config.seed,
            "on_progress": self._drawing,
            **source_options,
        }
        self.source: Source = open_source(config.sources, "train", limit=config.limit, **options)
        self.held_back: Source = open_source(config.sources, "eval", limit=config.eval_images, **options)
        torch.manual_seed(config.seed)

    def _drawing(self, done: int, total: int) -> None:
        if done * 4 % total == 0:
            self.console.say(f"drawing the built-in scenes: {done:,} of {total:,}")

    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.config.steps is not None:
            return self.config.steps
        assert self.config.epochs is not None
        return max(1, self._steps_of(self.config.epochs))

    def _steps_of(self, epochs: float) -> int:
        """Steps that show every image `epochs` times; the loader's stream drops none at an epoch's end."""
        return round(epochs * len(self.source) / self.config.batch_size)

    def freeze(self, network: nn.Module) -> None:
        """Put `network` where the run computes, never to be trained."""
        network.to(self.compute.device).eval().requires_grad_(False)

    def train(self, method: Method, *, dry_run: bool, overwrite: bool) -> None:
        """Announce `method` and train it to its end, from wherever the run stands."""
        config, console = self.config, self.console
        loader = self._loader(method)
        if dry_run:
            announce(self, method, choose_precision(config.precision, self.compute.device))
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
            precision: Precision = run.settle(
                "precision", lambda: choose_precision(config.precision, self.compute.device)
            )
            announce(self, method, precision)
            results = self._fit(method, loader, self._plan(method, precision), run)
            conclude(self, method, results, loader.bad_files)

    # The parts of a run.

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
            workers=self._workers(),
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

    def _workers(self) -> int:
        if self.config.workers != "auto":
            return self.config.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # On a CPU the network wants the cores itself; one worker hides the decoding behind it.
        return min(16, cores // self.compute.world) if self.compute.device.type == "cuda" else 1

    def warmup(self) -> int:
        """Steps of linear warm-up."""
        if self.config.warmup_steps is not None:
            return self.config.warmup_steps
        # A recipe for hundreds of epochs, cut short by --steps, would otherwise only warm up.
        return min(self._steps_of(self.config.warmup_epochs or 0), self.steps() // 5)

    def _facts(self, method: Method) -> dict[str, str]:
        """What the run depends on besides its configuration."""
        facts = {"images": f"{self.source.fingerprint} and {self.held_back.fingerprint}"}
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

    def _fit(self, method: Method, loader: Loader, plan: LoopPlan, run: RunDirectory) -> dict[str, Any]:
        config, compute = self.config, self.compute
        peak = config.scaled(config.lr)
        groups = parameter_groups(
            method.model.to(compute.device),
            weight_decay=config.weight_decay,
            layer_decay=method.layer_decay,
            layer_groups=method.layer_groups,
        )
        return fit(
            model=method.model,
            step=method.step,
            batches=loader.batches,
            optimizer=adamw(groups, lr=peak, betas=(config.beta1, config.beta2)),
            schedule=functools.partial(
                cosine_schedule,
                peak=peak,
                final=config.scaled(config.min_lr),
                warmup_steps=self.warmup(),
                total_steps=config.in_steps(config.lr_steps, plan.steps),
            ),
            plan=plan,
            run=run,
            compute=compute,
            save_model=functools.partial(self._save, method),
            evaluate=functools.partial(self._evaluate, method, plan.precision),
            draw=functools.partial(self._draw, method, plan.precision),
            summarise=method.summarise,
            summarise_evaluation=method.summarise_evaluation,
            companions=method.companions,
            trackers=functools.partial(self._trackers, run),
        )

    def _save(self, method: Method, model: nn.Module, folder: Path, step: int) -> None:
        save_model(
            model,
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
        totals = self._no_totals(method, model)
        per_pass = self.config.batch_size // (self.compute.world * self.config.accumulate)
        batches = evaluation_batches(
            self.held_back,
            method.evaluation_view,
            batch_size=per_pass,
            seed=self.config.seed,
            rank=self.compute.rank,
            world=self.compute.world,
            workers=self._workers(),
            on_bad=self._report_bad,
            labeled=method.labeled,
        )
        for batch in batches:
            poll()
            with autocast(self.compute.device, precision):
                sums = method.evaluate(model, to_device(batch, self.compute.device))
            totals = {name: totals[name] + value for name, value in sums.items()}
        return totals

    def _no_totals(self, method: Method, model: nn.Module) -> dict[str, Tensor]:
        """Sums over nothing. Every rank needs the names, also one whose held-back images are all damaged."""
        image, label = torch.zeros(3, 64, 64, dtype=torch.uint8), (0,) if method.labeled else ()
        blank = method.evaluation_view(image, *label, np.random.default_rng(0))
        batch = type(blank)(*(field[None] for field in blank))
        sums = method.evaluate(model, to_device(batch, self.compute.device))
        return {name: torch.zeros_like(value) for name, value in sums.items()}

    @torch.no_grad()
    def _draw(self, method: Method, precision: Precision, model: nn.Module, folder: Path, step: int) -> None:
        # Spread over the set, because neighbours in it are alike.
        shown = Subset(self.held_back, spread(len(self.held_back), PICTURES))
        batches = evaluation_batches(
            shown,
            method.evaluation_view,
            batch_size=PICTURES,
            seed=self.config.seed,
            labeled=method.labeled,
        )
        batch = next(batches, None)
        if batch is None:
            return
        with autocast(self.compute.device, precision):
            method.draw(model, to_device(batch, self.compute.device), folder, step)

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
