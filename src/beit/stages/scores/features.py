"""Features of a frozen encoder, computed once and kept in the place of images."""

from collections.abc import Callable
from contextlib import closing, suppress

import torch
from torch import Tensor

from beit.data.base import Source
from beit.data.batches import ImageBatch
from beit.data.decode import ImageError
from beit.data.sources.subsets import Subset
from beit.data.views.evaluation import ImageView
from beit.stages.batches import Machine, each_batch
from beit.training.signals import StopRequested, StopSignals


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
        apply: Callable[[ImageBatch], Tensor],
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
        self.features.zero_()
        self.whole.zero_()
        passes = each_batch(
            apply, self._source, view, machine, batch_size=batch_size, on_bad=self._reasons.__setitem__, title=title
        )
        with suppress(StopRequested), closing(passes):
            for numbers, _, features in passes:
                stop.poll()
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
