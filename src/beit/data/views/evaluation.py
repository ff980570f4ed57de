"""One decoded image -> what a trained network is shown of it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from beit.data.batches import ImageBatch, LabeledBatch
from beit.data.views.geometry import Filter, Size, center_view, squashed_view

ImageView = Callable[[Tensor, np.random.Generator], ImageBatch]


@dataclass(frozen=True)
class EvaluationView:
    """The centre of the image: its shorter side resized to size / crop_share, then the middle cut out.

    squash: both sides are resized so, whatever the image's shape.
    """

    image_size: Size
    crop_share: float = 1.0
    interpolation: Filter = "bicubic"
    squash: bool = False

    def __call__(self, image: Tensor, rng: np.random.Generator) -> ImageBatch:
        view = squashed_view if self.squash else center_view
        return ImageBatch(view(image, self.image_size, self.crop_share, self.interpolation))


class LabeledView:
    """A view of images made one of labelled images: ``view(image, label, rng)``."""

    def __init__(self, view: ImageView) -> None:
        self.view = view

    def __call__(self, image: Tensor, label: int, rng: np.random.Generator) -> LabeledBatch:
        return LabeledBatch(self.view(image, rng).image, torch.tensor(label))
