"""One way through every evaluation: the images of a split, batch by batch, into sums, into figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from beit.config.errors import RunFailed, UserError
from beit.config.use import EvaluateConfig
from beit.data.base import Source, Split
from beit.data.loaders import HANDFUL, View
from beit.data.sources.opening import open_source
from beit.data.sources.subsets import Concatenation
from beit.stages.batches import Machine, each_batch, report_skipped
from beit.stages.inference import print_notes
from beit.stages.session import OpenSplit, open_split
from beit.training.metrics import accumulate

SPLITS: dict[str, list[Split]] = {"eval": ["eval"], "train": ["train"], "all": ["train", "eval"]}


class Evaluation(NamedTuple):
    """What a kind of model is evaluated on, and by."""

    source: Source
    view: View
    evaluate_batch: Callable[[Any], dict[str, Tensor]]
    """A batch on the device -> sums over it."""
    summarise: Callable[[dict[str, Tensor]], dict[str, Any]]
    """The sums of all batches, float64 on the host -> figures."""
    labeled: bool = False
    """Whether the view takes labels."""
    batch_size: int | None = None
    """1 where images differ in size; None: as configured."""

    def figures(self, config: EvaluateConfig, machine: Machine) -> dict[str, Any]:
        """All figures. RunFailed or UserError where too few of the images can be read."""
        source, damaged = self.source, []

        def on_bad(name: str, reason: str) -> None:
            report_skipped(name, reason)
            damaged.append(name)

        print_notes(source.notes)
        sums: dict[str, Tensor] = {}
        passes = each_batch(
            self.evaluate_batch,
            source,
            self.view,
            machine,
            batch_size=self.batch_size or config.batch_size,
            seed=config.seed,
            labeled=self.labeled,
            on_bad=on_bad,
            title="evaluating",
        )
        for _, part in passes:
            accumulate(sums, part)
        images, bad = len(source), len(damaged)
        if bad == images:
            raise RunFailed(f"none of the {images:,} images could be read")
        if bad >= HANDFUL and bad > config.max_bad * images:
            raise UserError(
                f"--data: {bad:,} of {images:,} images are damaged, more than --max-bad {config.max_bad:g} allows; "
                f"`beit check` lists them"
            )
        about = {"data": source.describe(), "images": images - bad, "damaged": bad}
        return about | self.summarise(machine.compute.sums(sums))


def open_splits(config: EvaluateConfig, opener: OpenSplit = open_source, *, labeled: bool = False) -> Source:
    """The images of `config.split`, which must agree on their classes where they are `labeled`."""
    sources: list[Source] = []
    for split in SPLITS[config.split]:
        try:
            sources.append(open_split(config, split, config.limit, config.seed, opener))
        except UserError:
            if config.split != "all" or (split == "eval" and not sources):
                raise
    return sources[0] if len(sources) == 1 else Concatenation(sources, labeled)
