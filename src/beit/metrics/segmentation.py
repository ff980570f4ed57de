"""How a segmenter is shown images of any size, and judged.

A label map holds class indices, and `IGNORE` where there is none to learn or to judge by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config.segment import SegmentConfig
from beit.data.label_maps.table import IGNORE
from beit.data.views.segmentation import resized
from beit.models.decoders import resize_map
from beit.models.segmentation import SCALES, SemanticSegmenter, multi_scale_flip, sliding_window, whole_image

Size = tuple[int, int]
FEW = 16
"""Classes whose logits are enlarged at once."""


class Inference(NamedTuple):
    """How images are shown to a segmenter: kept in model.json."""

    resize: int | None
    """Pixels of the shorter side; None for images as they are."""
    crop: Size
    """Height and width of a window."""
    stride: Size | None
    """From one window to the next; None for the whole image in one pass."""
    multi_scale: bool = False
    """Average over six sizes and their mirror images (released code)."""

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> Inference:
        """That of a model.json."""
        crop, stride = description.get("crop"), description.get("stride")
        size = description["image_size"] if crop is None else crop
        return cls(description.get("resize"), _pair(size), None if stride is None else _pair(stride))

    def in_window(self, window: Literal["slide", "whole"] | None) -> Inference:
        """In windows, two thirds of one apart unless it is known how far, or in one pass; None: as it is."""
        if window == "whole":
            return self._replace(stride=None)
        if window == "slide" and self.stride is None:
            return self._replace(stride=SegmentConfig.two_thirds(self.crop))
        return self

    def sizes(self, size: Size) -> list[Size]:
        """Those in which the network sees an image that `scores` takes in `size`."""
        return [resized(size, self.resize, scale) for scale in SCALES] if self.multi_scale else [size]

    @property
    def reduced(self) -> int | None:
        """The shorter side of the images that `scores` takes; None for originals, of which several scales are to be
        made (from each in one step, as by mmsegmentation)."""
        return None if self.multi_scale else self.resize

    def scores(self, model: SemanticSegmenter, images: Tensor, size: Size) -> Tensor:
        """(B, C, *size) of images (B, 3, H, W) with the shorter side at `reduced`: logits, or logarithms of averaged
        probabilities."""
        predict = partial(whole_image, model)
        if self.stride is not None:
            predict = partial(_in_windows, predict, self.crop, self.stride)
        if self.multi_scale:
            shares = multi_scale_flip(predict, images, self.sizes(_pair(images.shape[2:])), size=size)
            return shares.clamp_(min=torch.finfo(shares.dtype).tiny).log_()
        return resize_map(predict(images), size)

    def words(self) -> str:
        """For the announcement of a run."""
        shown = "at their own size" if self.resize is None else f"with {self.resize} px on the shorter side"
        scales = ", averaged over six sizes and their mirror images" if self.multi_scale else ""
        if self.stride is None:
            return f"judged on whole images {shown}{scales}"
        (height, width), (down, right) = self.crop, self.stride
        windows = f"in windows of {height}x{width} px that are {down}x{right} px apart"
        return f"judged on images {shown}, {windows}{scales}"


def likeliest(logits: Tensor, size: Size) -> Tensor:
    """The class of every pixel, int64 (B, *size), of logits (B, C, H, W) resized to `size`, a few classes at a time:
    all logits of a large photograph would not fit into memory."""
    best, classes = _best(logits[:, :FEW], size)
    for first in range(FEW, logits.shape[1], FEW):
        values, found = _best(logits[:, first : first + FEW], size)
        classes = torch.where(values > best, first + found, classes)
        best = torch.maximum(best, values)
    return classes


def _best(logits: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    values, classes = resize_map(logits, size).max(1)
    return values, classes


def _in_windows(predict: Any, window: Size, stride: Size, images: Tensor) -> Tensor:
    return sliding_window(predict, images, window, stride)


def _pair(value: Sequence[int]) -> Size:
    return value[0], value[1]


# ------------------------------------------------------------------------------------------------------------
# Judged


def pixel_loss(logits: Tensor, label_map: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled pixels of logits (B, C, H, W) and class indices (B, H, W); 0 without any.

    mmsegmentation divides by all pixels, so that there an image that is mostly padding counts for less.
    """
    total = F.cross_entropy(logits, label_map, ignore_index=IGNORE, reduction="sum")
    return total / (label_map != IGNORE).sum().clamp(min=1)


def confusion(predicted: Tensor, label_map: Tensor, num_classes: int) -> Tensor:
    """Labelled pixels by class (row) and predicted class (column), int64 (C, C), of class indices of one shape."""
    place = torch.where(label_map == IGNORE, num_classes**2, label_map * num_classes + predicted).flatten()
    # Added up without asking how many there are of each: a GPU's host need not wait.
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=place.device)
    counts.scatter_add_(0, place, torch.ones_like(place))
    return counts[:-1].view(num_classes, num_classes)


def segmentation_sums(scores: Tensor, label_map: Tensor) -> dict[str, Tensor]:
    """Loss and confusion of scores (B, C, H, W) as sums over the labelled pixels, and their `count`."""
    return {
        "loss": F.cross_entropy(scores, label_map, ignore_index=IGNORE, reduction="sum"),
        "count": (label_map != IGNORE).sum(),
        "confusion": confusion(scores.argmax(1), label_map, scores.shape[1]),
    }


class Areas(NamedTuple):
    """Of every class, in pixels or any other unit: float64 (C,)."""

    both: Tensor
    true: Tensor
    predicted: Tensor

    @property
    def iou(self) -> Tensor:
        """Intersection over union; not a number for a class that is neither there nor predicted."""
        return self.both / (self.true + self.predicted - self.both)

    @property
    def accuracy(self) -> Tensor:
        """Share of a class's pixels that are named right; not a number for a class that is not there."""
        return self.both / self.true


def areas(table: Tensor) -> Areas:
    """Of a confusion table (C, C)."""
    table = table.double()
    return Areas(table.diagonal(), table.sum(1), table.sum(0))


def segmentation_figures(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """mIoU and mean accuracy over the classes that occur, accuracy over all pixels; the loss where it was summed.

    Not numbers, which files have as null, where no pixel is labelled.
    """
    found = areas(totals["confusion"])
    loss = {"loss": float(totals["loss"] / totals["count"])} if "loss" in totals else {}
    return {
        **loss,
        "miou": float(found.iou.nanmean()),
        "macc": float(found.accuracy.nanmean()),
        "aacc": float(found.both.sum() / found.true.sum()),
    }


def by_class(table: Tensor, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """For each class of a confusion table: intersection over union, accuracy, and its share of the pixels."""
    found = areas(table)
    columns = {"iou": found.iou, "accuracy": found.accuracy, "share": found.true / found.true.sum()}
    return {
        name: {key: None if value[i].isnan() else float(value[i]) for key, value in columns.items()}
        for i, name in enumerate(names)
    }
