"""A training verb on this machine, before anything is written: its configuration, its ranks, its images and their
labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from beit.config.run import DataConfig, TrainingConfig
from beit.data.base import Source, Split
from beit.data.loaders import View
from beit.data.sources.opening import open_source
from beit.training.console import Console
from beit.training.device import Compute, open_compute
from beit.training.plan import Plan
from beit.training.run.opening import Request, is_finished


class Session(NamedTuple):
    """One start of a training verb."""

    verb: str
    config: TrainingConfig
    compute: Compute
    console: Console
    dry_run: bool
    overwrite: bool

    def freeze(self, network: nn.Module) -> None:
        """Put `network` where the run computes, never to be trained."""
        network.to(self.compute.device).eval().requires_grad_(False)


def open_session(verb: str, config: TrainingConfig, *, dry_run: bool, overwrite: bool) -> Session | None:
    """Join the other ranks; None, after saying so, where the run is finished. Its data need not be there any more."""
    if not overwrite and is_finished(config.out, run_request(verb, config)):
        Console(os.environ.get("RANK", "0") == "0").say(
            f"{config.out} is finished; nothing to do (--overwrite starts afresh)"
        )
        return None
    compute = open_compute(config.device)
    torch.manual_seed(config.seed)
    return Session(verb, config, compute, Console(compute.main), dry_run, overwrite)


def run_request(verb: str, config: TrainingConfig, facts: Mapping[str, str] = {}) -> Request:
    """The run that `config` asks for, which also depends on `facts`."""
    fields = dataclasses.fields(config)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return Request(verb, dataclasses.asdict(config), defaults, facts)


OpenSplit = Callable[..., Source]
"""Opens the images of `data` that belong to a split; see :func:`beit.data.sources.opening.open_source`."""


class Images(NamedTuple):
    """What a run learns from, and what it is judged on."""

    train: Source
    held_back: Source

    def plan(self, config: TrainingConfig) -> Plan:
        """The timetable of a run on them."""
        return Plan(config, len(self.train))


def open_images(config: TrainingConfig, opener: OpenSplit = open_source) -> Images:
    """The images of `config.data`. Nothing is written yet, so that a mistake in the data leaves no trace."""
    train = open_split(config, "train", config.limit, config.seed, opener)
    return Images(train, open_split(config, "eval", config.eval_images, config.seed, opener))


def open_split(config: DataConfig, split: Split, limit: int | None, seed: int, opener: OpenSplit) -> Source:
    """The images of one split of `config.data`, at most `limit`."""
    return opener(
        config.sources,
        split,
        holdout=config.holdout,
        limit=limit,
        max_megapixels=config.max_megapixels,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a method is fed: images, and how it views them."""

    train: Source
    held_back: Source
    view: View
    """An image, its label if they are `labeled`, and a generator -> a training sample."""
    evaluation_view: View
    """The same -> a sample of the evaluation."""
    labeled: bool = False
    """Whether the views take labels."""
    repeats: int = 1
    """Views of an image that stand together in a batch."""
