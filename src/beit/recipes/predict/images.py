"""The images of `beit predict`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from beit.config.errors import RunFailed
from beit.config.use import PredictConfig
from beit.data.loaders import View
from beit.data.sources.opening import open_images
from beit.data.sources.subsets import Numbered
from beit.stages.batches import Machine, Result, complain, each_batch, tell


class PredictionImages:
    """The images that `config` names, found but not yet read; damaged ones are named as they come, and left out."""

    def __init__(self, config: PredictConfig, machine: Machine) -> None:
        self.source = open_images(config.images, config.max_megapixels)
        tell(self.source.notes)
        if config.workers == "auto" and len(self.source) <= config.batch_size:
            machine = machine._replace(workers=0)  # starting a process takes longer than a few images
        self._machine = machine

    def passes(
        self, apply: Callable[[Any], Result], view: View, batch_size: int
    ) -> Generator[tuple[Any, Result]]:
        """Batches of views, whose labels are the numbers of the images, with what `apply` makes of them."""
        return each_batch(
            apply,
            Numbered(self.source),
            view,
            self._machine,
            batch_size=batch_size,
            labeled=True,
            on_bad=complain,
            title="predicting",
        )

    def summary(self, noun: str, count: int) -> str:
        """That `noun` came out for `count` images, in words. RunFailed when there are none."""
        images = len(self.source)
        if not count:
            raise RunFailed(f"none of the {images:,} images could be read")
        left_out = images - count
        skipped = f"; {left_out:,} could not be read and are named above" if left_out else ""
        return f"{noun} for {count:,} of {images:,} images{skipped}"
