"""The images of an evaluation."""

from __future__ import annotations

from typing import Any

from beit.config.errors import RunFailed, UserError
from beit.config.use import EvaluateConfig
from beit.data.base import Source, Split
from beit.data.sources.opening import open_source
from beit.data.sources.subsets import Concatenation
from beit.stages.batches import report_skipped
from beit.stages.session import OpenSplit

HANDFUL = 5
"""Damaged files that never make an evaluation worthless, however few images there are."""


def open_split(config: EvaluateConfig, opener: OpenSplit = open_source, *, labeled: bool = False) -> Source:
    """The images of `config.split`, which must agree on their classes where they are `labeled`."""
    names: dict[str, list[Split]] = {"eval": ["eval"], "train": ["train"], "all": ["train", "eval"]}
    opened: list[Source] = []
    for split in names[config.split]:
        try:
            opened.append(
                opener(
                    config.sources,
                    split,
                    holdout=config.holdout,
                    limit=config.limit,
                    max_megapixels=config.max_megapixels,
                    seed=config.seed,
                )
            )
        except UserError:
            if config.split != "all" or (split == "eval" and not opened):
                raise
    return opened[0] if len(opened) == 1 else Concatenation(opened, labeled)


class Damage:
    """Names the damaged files of a source as they come, and says in the end whether there were too many."""

    def __init__(self, source: Source, max_bad: float) -> None:
        self.images, self.max_bad, self.count = len(source), max_bad, 0

    def __call__(self, name: str, reason: str) -> None:
        report_skipped(name, reason)
        self.count += 1

    def figures(self, source: Source) -> dict[str, Any]:
        """What the figures say about the images. RunFailed or UserError when they were not good enough."""
        if self.count == self.images:
            raise RunFailed(f"none of the {self.images:,} images could be read")
        if self.count >= HANDFUL and self.count > self.max_bad * self.images:
            raise UserError(
                f"--data: {self.count:,} of {self.images:,} images are damaged, more than --max-bad "
                f"{self.max_bad:g} allows; `beit check` lists them"
            )
        return {"data": source.describe(), "images": self.images - self.count, "damaged": self.count}
