"""What a tokenizer is worth before any pre-training: how far its tokens can be foretold without looking at an image,
and whether images of one class have like tokens."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.config.errors import UserError
from beit.config.run import DataConfig
from beit.data.base import Source
from beit.data.label_file import classes_in_file
from beit.data.sources.opening import classes_of_images, open_splits
from beit.data.sources.subsets import Subset, spread
from beit.data.views.evaluation import EvaluationView
from beit.masking import BlockwiseMasking
from beit.metrics.neighbours import class_agreement
from beit.metrics.tokens import TokenBaselines, best_mixtures_of_sums, patch_sums, predictability
from beit.stages.batches import Machine
from beit.stages.scores.features import FeatureSource
from beit.stages.session import holdout_of, open_data
from beit.tokenizers.base import VisualTokenizer
from beit.training.metrics import accumulate
from beit.training.signals import StopSignals

BANK = 2000
"""Training images whose tokens are counted, and among which neighbours are sought, at most."""
MASK_SEED = 0
"""Of the masks: the same for every tokenizer, so that figures can be compared."""
CHUNK = 64
"""Images whose masks are in memory at once."""


class Tokens(NamedTuple):
    """The tokens of images, and their classes."""

    tokens: Tensor
    """int64 (M, h, w)."""
    labels: Tensor
    """int64 (M,); -1 where an image has none."""


@dataclass(frozen=True)
class Scoring:
    """How tokens are scored: the same for all tokenizers of the same images."""

    config: DataConfig
    train: Source
    """Images whose tokens are counted, of which at most BANK are used."""
    held_back: Source
    """Images whose tokens are judged, all of them."""
    batch_size: int
    """Of each rank."""

    def scores(self, tokenizer: VisualTokenizer, machine: Machine, stop: StopSignals) -> dict[str, float]:
        """Losses of the baselines, `predictability`, and where there are classes `class_agreement` with its chance.

        Called on every rank. StopRequested on all of them when any was asked to stop meanwhile.
        """
        chosen = Subset(self.train, spread(len(self.train), BANK))
        bank = self.tokens(tokenizer, chosen, machine, stop)
        judged = self.tokens(tokenizer, self.held_back, machine, stop)
        if not len(bank.tokens) or not len(judged.tokens):
            return {}
        figures = baseline_figures(bank.tokens, judged.tokens, tokenizer.vocab_size)
        return figures | class_agreement(*bank, *judged, tokenizer.vocab_size)

    def tokens(self, tokenizer: VisualTokenizer, source: Source, machine: Machine, stop: StopSignals) -> Tokens:
        """The tokens of the images that can be read, on the host of every rank."""
        height, width = (side // tokenizer.stride for side in tokenizer.image_size)
        grids, view = FeatureSource(source, (height, width)), EvaluationView(tokenizer.image_size)
        look: Any = {"batch_size": self.batch_size, "title": "scoring tokens", "stop": stop}
        grids.compute(lambda batch: tokenizer.encode(batch.image), view, machine, **look)
        labels = torch.tensor(self.labels(source), dtype=torch.int64)
        return Tokens(grids.features[grids.whole].long(), labels[grids.whole])  # exact up to 2^24

    def labels(self, source: Source) -> list[int]:
        """The class of each image, by the file of labels or by where it lies; -1 for none, and for several."""
        if self.config.labels is None:
            return [self.classes.get(source.key(index), -1) for index in range(len(source))]
        names = classes_of_images(source, classes_in_file(self.config.labels))
        return [self.classes.setdefault(name[0], len(self.classes)) if len(name) == 1 else -1 for name in names]

    @cached_property
    def classes(self) -> dict[str, int]:
        """The class of every image that lies in a class folder, or in a set that has classes, by its key; of a file
        of labels the number of each name, as they are met."""
        if self.config.labels is not None:
            return {}
        try:
            sources = open_data(self.config, partial(open_splits, labeled=True), holdout_of(self.config)).values()
            return {source.key(index): source.label(index) for source in sources for index in range(len(source))}
        except UserError:  # which has no classes
            return {}


def baseline_figures(bank: Tensor, tokens: Tensor, vocab_size: int) -> dict[str, float]:
    """Losses of predictors that know the tokens (M, h, w) of the bank, on the tokens (B, h, w) of other images under
    block masks, and their `predictability`; nothing for a single token."""
    count, *grid = tokens.shape
    if grid[0] * grid[1] < 2:
        return {}
    masking = BlockwiseMasking((grid[0], grid[1]))
    baselines = TokenBaselines((grid[0], grid[1]), vocab_size)
    baselines.count(bank)
    sums: dict[str, Tensor] = {}
    for first in range(0, count, CHUNK):
        part = tokens[first : first + CHUNK]
        draws = (masking(np.random.default_rng((MASK_SEED, first + row))) for row in range(len(part)))
        mask = torch.from_numpy(np.stack([*draws]))
        accumulate(sums, patch_sums(baselines.losses(part, mask, mask), mask))
    return predictability(best_mixtures_of_sums(sums))
