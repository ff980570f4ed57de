"""One image and its label map -> what a segmenter is shown. All randomness comes from the generator that is passed.

Order and figures are those of mmsegmentation's ADE20K pipeline, which the released recipes use: resize by a random
ratio, crop, flip, change of colours, pad. Only the part that the crop shows is resized.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from beit.config.segment import IGNORE
from beit.data.batches import SegmentationBatch
from beit.data.views.geometry import Box, Size, render, resize
from beit.pixels import from_unit, scale_size, white

_COUNTED_SIDE = 128
_CROPS = 10  # tries for one that shows more than one class


class Distortion(NamedTuple):
    """A change of colours; 0 or 1 leaves them as they are."""

    brightness: float
    """Added to pixels of 0..255."""
    contrast: float
    """Factor of the pixels."""
    saturation: float
    """Factor of HSV's saturation."""
    hue: float
    """Added to HSV's hue, in sixths of a turn."""
    contrast_last: bool
    """Whether contrast follows saturation and hue, or precedes them."""


# ------------------------------------------------------------------------------------------------------------
# Training


@dataclass
class SegmentationView:
    """A random crop of the image and its label map at a random size, flipped, in changed colours, and padded.

    `crop` is (height, width). The image is resized so that its shorter side is `base` times a ratio uniform in
    `scale` (None: its own size times the ratio). Up to ten crops are drawn until the most common class covers less
    than `category_share` of the pixels that have one. What the image does not fill is `mean`, the network's pixel
    mean, and has no class.
    """

    crop: Size
    base: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    category_share: float = 0.75
    flip: float = 0.5
    photometric: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, image: Tensor, label_map: Tensor, rng: np.random.Generator) -> SegmentationBatch:
        """`image` (C, H, W), uint8 or float in [0, 1], and `label_map` uint8 (H, W) of class indices, 255 = none."""
        box, size = self._draw_crop(label_map, rng)
        view, labels = render(image, box, size, mode="bilinear"), nearest(label_map, box, size)
        if rng.random() < self.flip:
            view, labels = view.flip(-1), labels.flip(-1)
        if self.photometric:
            view = distort(view, draw_distortion(rng))
        rows, columns = self.crop[0] - view.shape[1], self.crop[1] - view.shape[2]
        labels = functional.pad(labels.long(), (0, columns, 0, rows), value=IGNORE)
        padded = from_unit(torch.tensor(self.mean), view.dtype)[:, None, None].repeat(1, *self.crop)
        padded[:, : view.shape[1], : view.shape[2]] = view
        return SegmentationBatch(padded, labels)

    def _draw_crop(self, label_map: Tensor, rng: np.random.Generator) -> tuple[Box, Size]:
        """Which part of the image is shown, and at which size."""
        height, width = label_map.shape
        rows, columns = scale_size((height, width), self.base, rng.uniform(*self.scale))
        size = min(rows, self.crop[0]), min(columns, self.crop[1])
        h, w = max(1, round(size[0] * height / rows)), max(1, round(size[1] * width / columns))
        for _ in range(_CROPS + 1):
            box = Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
            if self.category_share >= 1 or largest_share(label_map, box, size) < self.category_share:
                break
        return box, size


def nearest(label_map: Tensor, box: Box, size: Size) -> Tensor:
    """`box` of `label_map`, (H, W), at `size`: every pixel takes the label at its centre."""
    (height, width), (rows, columns) = (box.height, box.width), size
    # Whole numbers, so that no rounding moves a label: floor((i + 1/2) * height / rows).
    i = box.top + (2 * torch.arange(rows) + 1) * height // (2 * rows)
    j = box.left + (2 * torch.arange(columns) + 1) * width // (2 * columns)
    return label_map.index_select(0, i).index_select(1, j)


def largest_share(label_map: Tensor, box: Box, size: Size) -> float:
    """Share of the most common class in `box` among the pixels that have one; 1 where there are not two classes.

    Counted on the crop at a size of at most 128 x 128, which is as good and takes a tenth of the time.
    """
    labels = nearest(label_map, box, (min(size[0], _COUNTED_SIDE), min(size[1], _COUNTED_SIDE)))
    counts = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts.max() / counts.sum()) if int(counts.count_nonzero()) > 1 else 1.0


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """mmsegmentation's PhotoMetricDistortion: each change is left out with probability one half."""
    brightness, hue = rng.uniform(-32, 32), rng.uniform(-18, 18) / 30  # hue: OpenCV's steps of two degrees
    contrast, saturation = rng.uniform(0.5, 1.5, 2).tolist()
    drawn, none = (brightness, contrast, saturation, hue), (0.0, 1.0, 1.0, 0.0)
    brightness, contrast, saturation, hue = np.where(rng.random(4) < 0.5, drawn, none).tolist()
    return Distortion(brightness, contrast, saturation, hue, contrast_last=bool(rng.random() < 0.5))


def distort(view: Tensor, change: Distortion) -> Tensor:
    """`view`, (C, H, W), uint8 or float in [0, 1], in other colours; what is not RGB has neither saturation nor hue.
    Clipped to what a pixel can be after every change, rounded once."""
    # In strips whose planes stay in the processor's cache: large tensors take several times as long for each pixel.
    strips = torch.split(view, max(1, 2**15 // view.shape[2]), 1)
    return torch.cat([_distort(strip, change) for strip in strips], 1)


def _distort(view: Tensor, change: Distortion) -> Tensor:
    pixels = view.to(torch.float32, memory_format=torch.contiguous_format, copy=True).mul_(255 / white(view))
    if change.brightness:
        pixels.add_(change.brightness).clamp_(0, 255)
    if change.contrast != 1 and not change.contrast_last:
        pixels.mul_(change.contrast).clamp_(0, 255)
    if len(pixels) == 3 and (change.saturation != 1 or change.hue):
        pixels = turn_colors(pixels, change.saturation, change.hue)
    if change.contrast != 1 and change.contrast_last:
        pixels.mul_(change.contrast).clamp_(0, 255)
    # numpy converts to bytes three times as fast as torch.
    is_byte = view.dtype == torch.uint8
    return torch.from_numpy(pixels.add_(0.5).numpy().astype(np.uint8)) if is_byte else pixels.div_(255)


def turn_colors(pixels: Tensor, saturation: float, hue: float) -> Tensor:
    """Float RGB (3, H, W) of 0..255 with HSV's saturation multiplied, up to 1, and its hue turned by `hue` sixths."""
    red, green, blue = pixels
    high, low = pixels.amax(0), pixels.amin(0)
    chroma = (high - low).clamp_(min=1e-3)  # gray has no hue, and any will do
    # Sixths of a turn from red. Selecting by lerp, and the floor below, take a tenth of where's and remainder's time.
    position = torch.lerp((red - green).div_(chroma).add_(4), (blue - red).div_(chroma).add_(2), _eq(green, high))
    position = torch.lerp(position, (green - blue).div_(chroma), _eq(red, high)).add_(hue)
    position.sub_((position / 6).floor_(), alpha=6)
    chroma = torch.minimum(chroma.mul_(saturation), high)
    low = high - chroma
    # How far each primary stands above the lowest, around the circle.
    shares = (
        (position - 3).abs_().sub_(1),
        (position - 2).abs_().neg_().add_(2),
        (position - 4).abs_().neg_().add_(2),
    )
    return torch.stack([torch.addcmul(low, share.clamp_(0, 1), chroma) for share in shares])


def _eq(first: Tensor, second: Tensor) -> Tensor:
    """1.0 where they are equal, else 0.0."""
    return torch.eq(first, second, out=torch.empty_like(first))


# ------------------------------------------------------------------------------------------------------------
# Evaluation


class SegmentationEvaluationView:
    """The whole image with its shorter side at `base` (None: as it is), and the label map at its own size.

    Sizes differ from image to image, so that samples make batches of one.
    """

    def __init__(self, base: int | None = None) -> None:
        self.base = base

    def __call__(self, image: Tensor, label_map: Tensor, rng: np.random.Generator) -> SegmentationBatch:
        return SegmentationBatch(resized_image(image, self.base), label_map.long())


def resized_image(image: Tensor, base: int | None) -> Tensor:
    """`image` (C, H, W) with its shorter side at `base`, as evaluation and prediction show it."""
    height, width = image.shape[1:]
    return resize(image, scale_size((height, width), base), mode="bilinear")
