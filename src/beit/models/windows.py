"""How images of any size are shown to a segmenter: resized, in overlapping windows, in several scales.

Shapes: B images of (H, W) pixels, C classes. `predict` is any function (B, 3, H, W) -> logits (B, C, H, W).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config.errors import UserError
from beit.config.segment import SegmentConfig
from beit.models.decoders import resize_map
from beit.models.segmentation import SemanticSegmenter
from beit.pixels import per_channel, scale_size, to_unit

Size = tuple[int, int]
"""Height and width in pixels."""
Predict = Callable[[Tensor], Tensor]
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of multi-scale inference (released code)."""
FEW_CLASSES = 16
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
    def from_description(cls, description: Mapping[str, Any]) -> "Inference":
        """That of a model.json."""
        crop, stride = description.get("crop") or description["image_size"], description.get("stride")
        return cls(description.get("resize"), pair(crop), stride and pair(stride))

    def with_window(self, window: Literal["slide", "whole"] | None) -> "Inference":
        """In windows (two thirds of one apart where model.json does not say), or in one pass; None: as it is."""
        if window == "whole":
            return self._replace(stride=None)
        if window == "slide" and self.stride is None:
            return self._replace(stride=SegmentConfig.two_thirds(self.crop))
        return self

    def sizes(self, size: Size) -> list[Size]:
        """Those in which the network sees an image that `scores` takes in `size`: of several scales, none has a
        shorter side below that of a window (released code)."""
        base = self.resize or min(size)
        shorter = [max(round(base * scale), *self.crop) for scale in SCALES]
        return [scale_size(size, side) for side in shorter] if self.multi_scale else [size]

    def windows(self, size: Size) -> int:
        """How many times the network sees an image that `scores` takes in `size`, or a part of it."""
        count, stride = 0, self.stride
        for shape in self.sizes(size):
            sides = [] if stride is None else zip(shape, self.crop, stride, strict=True)
            count += prod(len(_starts(length, min(length, side), step)) for length, side, step in sides)
        return 2 * count if self.multi_scale else count

    @property
    def input_side(self) -> int | None:
        """The shorter side of the images that `scores` takes; None for originals, of which several scales are to be
        made (from each in one step, as by mmsegmentation)."""
        return None if self.multi_scale else self.resize

    def scores(self, model: SemanticSegmenter, images: Tensor, size: Size) -> Tensor:
        """(B, C, *size) of images (B, 3, H, W) with the shorter side at `input_side`: logits, or logarithms of
        averaged probabilities."""

        def predict(images: Tensor) -> Tensor:
            if self.stride is None:
                return whole_image(model, images)
            return sliding_window(partial(whole_image, model), images, self.crop, self.stride)

        if self.multi_scale:
            shares = multi_scale_flip(predict, images, self.sizes(pair(images.shape[2:])), size)
            return shares.clamp_(min=torch.finfo(shares.dtype).tiny).log_()
        return resize_map(predict(images), size)

    def words(self) -> str:
        """For the announcement of a run."""
        side = "at their own size" if self.resize is None else f"with {self.resize} px on the shorter side"
        scales = ", averaged over six sizes and their mirror images" if self.multi_scale else ""
        if self.stride is None:
            return f"judged on whole images {side}{scales}"
        (height, width), (down, right) = self.crop, self.stride
        return f"judged on images {side}, in windows of {height}x{width} px that are {down}x{right} px apart{scales}"


def whole_image(model: SemanticSegmenter, images: Tensor) -> Tensor:
    """Logits (B, C, H, W) of images (B, 3, H, W) of any size, float in [0, 1] or uint8, in one pass.

    Right and below they are padded with the encoder's mean pixel, zero once normalised, to multiples of the patch.
    """
    config = model.encoder.config
    height, width = images.shape[-2:]
    down, right = -height % config.patch_size, -width % config.patch_size
    if down or right:
        unit = to_unit(images)
        images = per_channel(config.pixel_mean, unit).repeat(len(unit), 1, height + down, width + right)
        images[..., :height, :width] = unit
    logits: Tensor = model(images)
    return logits[..., :height, :width]


def sliding_window(predict: Predict, images: Tensor, window: Size, stride: Size, *, max_batch: int = 8) -> Tensor:
    """Logits (B, C, H, W) of images (B, 3, H, W): of overlapping windows, averaged where they overlap.

    window, stride: (height, width) in pixels. The last window of a row or column ends at the edge; along an axis
    that is shorter than the window there is one, of that length (mmsegmentation's rule).
    max_batch: windows that `predict` is given at once.
    """
    if not 0 < stride[0] <= window[0] or not 0 < stride[1] <= window[1]:
        raise UserError(f"windows of {window} pixels every {stride} leave gaps; choose a smaller stride")
    height, width = (min(side, length) for side, length in zip(window, images.shape[-2:], strict=True))
    tops = _starts(images.shape[-2], height, stride[0])
    lefts = _starts(images.shape[-1], width, stride[1])
    corners = list(product(range(len(images)), tops, lefts))
    total: Tensor | None = None
    count = torch.zeros(images.shape[-2:], device=images.device)
    for first in range(0, len(corners), max_batch):
        batch = corners[first : first + max_batch]
        crops = [images[i, :, top : top + height, left : left + width] for i, top, left in batch]
        logits = predict(torch.stack(crops))
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], *images.shape[-2:])
        for (image, top, left), values in zip(batch, logits, strict=True):
            total[image, :, top : top + height, left : left + width] += values
            count[top : top + height, left : left + width] += image == 0
    assert total is not None
    return total.div_(count)


def multi_scale_flip(predict: Predict, images: Tensor, sizes: Sequence[Size], size: Size) -> Tensor:
    """Class probabilities (B, C, *size), averaged over images (B, 3, H, W) in several `sizes` and mirrored.

    sizes: (height, width) of each; resized once, from `images`, so that these are to be the originals.
    size: (height, width) of the result. Logits are resized to it before they are made probabilities, as in
    mmsegmentation.
    """
    images = to_unit(images)
    total: Tensor | None = None
    for scale in sizes:
        resized = scale != tuple(images.shape[-2:])
        scaled = F.interpolate(images, size=scale, mode="bilinear", antialias=True) if resized else images
        for mirrored in (False, True):
            logits = predict(scaled.flip(-1)).flip(-1) if mirrored else predict(scaled)
            shares = resize_map(logits, size).softmax(dim=1)
            total = shares if total is None else total.add_(shares)
    assert total is not None
    return total.div_(2 * len(sizes))


def likeliest(logits: Tensor, size: Size) -> Tensor:
    """The class of every pixel, int64 (B, *size), of logits (B, C, H, W) resized to `size`, a few classes at a time:
    all logits of a large photograph would not fit into memory."""
    best, classes = resize_map(logits[:, :FEW_CLASSES], size).max(1)
    for first in range(FEW_CLASSES, logits.shape[1], FEW_CLASSES):
        values, indices = resize_map(logits[:, first : first + FEW_CLASSES], size).max(1)
        classes = torch.where(values > best, first + indices, classes)
        best = torch.maximum(best, values)
    return classes


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: `stride` apart, the last flush with the end."""
    return [*range(0, length - window, stride), length - window]


def pair(value: Sequence[int]) -> Size:
    return value[0], value[1]
