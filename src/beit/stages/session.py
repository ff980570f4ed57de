"""A training verb on this machine, before anything is written: its configuration, its ranks, its images and their
labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from beit.config.errors import UserError
from beit.config.run import DataConfig, TrainingConfig
from beit.data.base import Source, Splits
from beit.data.loaders import View
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import Subset, limited
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


OpenSplits = Callable[..., Splits[Any]]
"""Opens the images of `data` by split; see :func:`beit.data.sources.opening.open_splits`."""


class Images(NamedTuple):
    """What a run learns from, and what it is judged on."""

    train: Source
    held_back: Source
    """What is chosen on: `val`, or what takes its place; empty where none is held back."""
    test: Source | None = None
    """What is judged once, at the end."""
    all_held_back: Source | None = None
    """What `held_back` is a choice of, which nothing is trained on."""

    @property
    def fingerprint(self) -> str:
        """Changes when images of any split are added, removed or renamed."""
        return " and ".join(part.fingerprint for part in (self.train, self.held_back, self.test) if part)

    def plan(self, config: TrainingConfig) -> Plan:
        """The timetable of a run on them."""
        return Plan(config, len(self.train))


def open_images(config: TrainingConfig, opener: OpenSplits = open_splits) -> Images:
    """The images of `config.data`. Nothing is written yet, so that a mistake in the data leaves no trace."""
    splits = open_data(config, opener, holdout_of(config))
    names = ", ".join(config.sources)
    if "train" not in splits:
        raise UserError(
            f"--data {names} holds images for evaluation alone; name that folder itself to train on it"
        )
    train = limited(splits["train"], config.limit, config.seed)
    if "val" not in splits and config.holdout != 0:
        raise UserError(f"--data {names} leaves no image for evaluation; add images, or --holdout 0")
    val = splits.get("val") or Subset(train, [])
    return Images(train, limited(val, config.eval_images, config.seed), splits.get("test"), val)


def open_data(config: DataConfig, opener: OpenSplits, holdout: Holdout) -> Splits[Source]:
    """The images of `config.data` by split."""
    return opener(config.sources, holdout=holdout, max_megapixels=config.max_megapixels)


def holdout_of(config: DataConfig) -> Holdout:
    """What takes the place of `val`."""
    classes_of = None
    if config.labels is not None:
        from beit.data.label_file import classes_in_file

        classes_of = classes_in_file(config.labels)
    return Holdout(config.holdout, config.group_by, classes_of, config.eval_sources)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a method is fed: images, and how it views them."""

    images: Images
    view: View
    """An image, its label if they are `labeled`, and a generator -> a training sample."""
    evaluation_view: View
    """The same -> a sample of the evaluation."""
    labeled: bool = False
    """Whether the views take labels."""
    repeats: int = 1
    """Views of an image that stand together in a batch."""
