"""Features of a frozen encoder: computed once and read like images, and classified by their nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from beit.data.base import Source
from beit.data.batches import LabeledBatch
from beit.data.decode import ImageError
from beit.data.sources.subsets import Numbered, Subset
from beit.data.views.evaluation import ImageView, LabeledView
from beit.stages.batches import Machine, each_batch
from beit.training.signals import StopRequested, StopSignals


class FeatureBatch(NamedTuple):
    """Features and classes."""

    features: Tensor
    """float32 (B, layers, F)."""
    label: Tensor
    """int64 (B,)."""


def feature_view(features: Tensor, label: int, rng: np.random.Generator) -> FeatureBatch:
    """What a loader makes of an image's features."""
    return FeatureBatch(features, torch.tensor(label))


class FeatureSource(Subset):
    """A source with features in the place of images, once they are computed. Damaged images stay damaged."""

    def __init__(self, source: Source, shape: tuple[int, int]) -> None:
        """`shape` is (layers, F)."""
        super().__init__(source, range(len(source)))
        self.features = torch.zeros(len(source), *shape)
        """float32 (images, layers, F); zero for damaged images."""
        self.whole = torch.zeros(len(source), dtype=torch.bool)
        """Which images could be read."""
        self._reasons: dict[str, str] = {}

    def compute(
        self,
        apply: Callable[[LabeledBatch], Tensor],
        view: ImageView,
        machine: Machine,
        *,
        batch_size: int,
        title: str,
        stop: StopSignals,
    ) -> None:
        """Fill in the features (B, layers, F) that `apply` gives for batches of `view`, together with other ranks.

        StopRequested on all ranks when any of them was asked to stop meanwhile.
        """
        passes = each_batch(
            apply,
            Numbered(self._source),
            LabeledView(view),
            machine,
            batch_size=batch_size,
            labeled=True,
            on_bad=self._reasons.__setitem__,
            title=title,
        )
        with suppress(StopRequested), closing(passes):
            for batch, features in passes:
                stop.poll()
                numbers = batch.label.cpu()
                self.features[numbers] = features.float().cpu()
                self.whole[numbers] = True
        stop.poll_together(machine.compute)
        if machine.compute.world > 1:
            self.whole = machine.compute.sums({"whole": self.whole})["whole"].bool()
            for layer in range(self.features.shape[1]):  # one by one, because a sum takes a copy in float64
                shares = machine.compute.sums({"features": self.features[:, layer]})
                self.features[:, layer] = shares["features"].float()

    def labels(self) -> Tensor:
        """The class of every image, int64."""
        return torch.tensor([self.label(index) for index in range(len(self))])

    def image(self, index: int) -> Tensor:
        if not self.whole[index]:
            name = self.name(index)
            raise ImageError(name, self._reasons.get(name, "it could not be read"))
        return self.features[index]


def neighbour_votes(
    queries: Tensor, bank: Tensor, labels: Tensor, num_classes: int, *, neighbours: int, temperature: float
) -> Tensor:
    """Weighted k-NN by cosine similarity (Wu et al. 2018): votes (Q, num_classes) for queries (Q, F).

    Each of the `neighbours` nearest rows of `bank` (M, F) votes for its class in `labels` (M,) with the weight
    exp(similarity / temperature), as a share of the nearest row's, so that no temperature is too low for float32.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    nearest, rows = similarity.topk(min(neighbours, len(bank)), dim=1)
    votes = torch.zeros(len(queries), num_classes, device=queries.device, dtype=queries.dtype)
    return votes.scatter_add_(1, labels[rows], ((nearest - nearest[:, :1]) / temperature).exp())
