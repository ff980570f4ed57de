"""One decoded image -> what a network is shown, as uint8. All randomness comes from the generator that is passed.

A view is called as ``view(image, rng)`` with an image uint8 (3, H, W) of any size, and returns a sample: a NamedTuple
of :mod:`beit.data.batches` without the batch axis. Sizes are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional

from beit.config.errors import UserError
from beit.data.batches import ImageBatch, LabeledBatch, PretrainBatch

Size = tuple[int, int]
Masking = Callable[[np.random.Generator], NDArray[np.bool_]]
Filter = Literal["bicubic", "bilinear"]
ImageView = Callable[[Tensor, np.random.Generator], ImageBatch]

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision weigh colours


class Box(NamedTuple):
    """A part of an image in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class Jitter(NamedTuple):
    """Factors of colour changes, 1 for none, and the order in which Pillow would make them."""

    brightness: float
    contrast: float
    saturation: float
    order: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------------
# Drawing the random numbers


def draw_box(
    size: Size,
    min_scale: float,
    rng: np.random.Generator,
    aspect: float = 1.0,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The box of a random resized crop (Inception): area uniform in (min_scale, 1) of the image, width / height
    log-uniform in `ratio` around `aspect`; after ten boxes that do not fit, the largest allowed one in the centre.
    """
    height, width = size
    low, high = math.log(ratio[0] * aspect), math.log(ratio[1] * aspect)
    for _ in range(10):
        area = height * width * rng.uniform(min_scale, 1.0)
        shape = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    shape = min(max(width / height, math.exp(low)), math.exp(high))
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    w, h = max(w, 1), max(h, 1)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_jitter(strength: float, rng: np.random.Generator) -> Jitter | None:
    """Factors uniform in (1 - strength, 1 + strength), in random order."""
    if strength == 0:
        return None
    brightness, contrast, saturation = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3).tolist()
    return Jitter(brightness, contrast, saturation, tuple(rng.permutation(3).tolist()))


# ------------------------------------------------------------------------------------------------------------
# Pixels on tensors


def render(image: Tensor, box: Box, size: Size, mode: Filter = "bicubic") -> Tensor:
    """`box` of `image` at `size`: antialiased, on uint8."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[1:] == size:
        return part
    return functional.interpolate(part[None], size, mode=mode, antialias=True)[0]


def apply_jitter(jitter: Jitter, *views: Tensor) -> list[Tensor]:
    """The same change of colours for several views of one crop, each uint8 (3, H, W).

    Pillow's three blends (with black, with the mean gray, with each pixel's gray) are affine maps of a pixel, and
    commute as long as nothing is clipped in between. So they are one 3x3 matrix here, clipped and rounded once.
    """
    brightness, contrast, saturation, _ = jitter
    scale = brightness * contrast
    row = [scale * (1 - saturation) * weight for weight in _GRAY]
    matrix = torch.tensor([[row[j] + (i == j) * scale * saturation for j in range(3)] for i in range(3)])
    planes = [view.to(torch.float32).reshape(3, -1) for view in views]
    means = planes[-1].mean(dim=1).tolist()  # of the same crop, so the last (smallest) view will do
    gray = sum(weight * mean for weight, mean in zip(_GRAY, means, strict=True))
    shift = (
        brightness * (1 - contrast) * gray + 0.5
    )  # with half a step, to round when the fraction is cut off
    changed = [torch.mm(matrix, plane).add_(shift).clamp_(0, 255.5) for plane in planes]
    # numpy converts to bytes three times as fast as torch.
    return [
        torch.from_numpy(plane.numpy().astype(np.uint8)).view(view.shape)
        for plane, view in zip(changed, views, strict=True)
    ]


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# ------------------------------------------------------------------------------------------------------------
# Pre-training


class PretrainViews:
    """Colour jitter, flip and one random resized crop, rendered for the encoder and for the tokenizer, and a mask.

    mode "fast": crop first, on tensors, antialiased bicubic for both. mode "exact": the released order on Pillow
    images (jitter of the whole image, flip, crop; bicubic for the encoder, Lanczos for the tokenizer). Both views
    always show the same box with the same changes (unilm beit/datasets.py and transforms.py).
    """

    def __init__(
        self,
        image_size: Size,
        token_size: Size,
        masking: Masking,
        *,
        min_scale: float = 0.08,
        flip: float = 0.5,
        color_jitter: float = 0.4,
        mode: Literal["fast", "exact"] = "fast",
    ) -> None:
        _check_aspects(image_size, token_size)
        self.image_size, self.token_size, self.masking = image_size, token_size, masking
        self.min_scale, self.flip, self.color_jitter, self.mode = min_scale, flip, color_jitter, mode

    def __call__(self, image: Tensor, rng: np.random.Generator) -> PretrainBatch:
        jitter = draw_jitter(self.color_jitter, rng)
        flip = rng.random() < self.flip
        aspect = self.image_size[1] / self.image_size[0]
        box = draw_box((image.shape[1], image.shape[2]), self.min_scale, rng, aspect)
        draw = self._fast if self.mode == "fast" else self._exact
        view, token_view = draw(image, box, flip, jitter)
        return PretrainBatch(view, token_view, torch.from_numpy(self.masking(rng)))

    def _fast(self, image: Tensor, box: Box, flip: bool, jitter: Jitter | None) -> tuple[Tensor, Tensor]:
        sizes = (self.image_size, self.token_size)
        views = [render(image, box, size) for size in dict.fromkeys(sizes)]  # one, when the sizes are equal
        if jitter:
            views = apply_jitter(jitter, *views)
        if flip:
            views = [view.flip(-1) for view in views]
        return views[0], views[-1]

    def _exact(self, image: Tensor, box: Box, flip: bool, jitter: Jitter | None) -> tuple[Tensor, Tensor]:
        picture = to_pillow(image)
        if jitter:
            factors = jitter[:3]
            for step in jitter.order:
                picture = _ENHANCERS[step](picture).enhance(factors[step])
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        part = picture.crop(corners)  # cropped first: resize(box=) would let pixels around the box shine in
        view = part.resize(self.image_size[::-1], Image.Resampling.BICUBIC)
        token_view = part.resize(self.token_size[::-1], Image.Resampling.LANCZOS)
        return from_pillow(view), from_pillow(token_view)


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)  # in the order of Jitter


def _check_aspects(image_size: Size, token_size: Size) -> None:
    if image_size[0] * token_size[1] != image_size[1] * token_size[0]:
        raise UserError(
            f"--image-size {image_size[0]}x{image_size[1]} and the tokenizer's {token_size[0]}x{token_size[1]} have "
            f"different shapes; both must show the same crop"
        )


class PretrainEvaluationView:
    """The centre of the image at both sizes, and a mask; deterministic but for the mask."""

    def __init__(
        self, image_size: Size, token_size: Size, masking: Masking, *, crop_share: float = 1.0
    ) -> None:
        _check_aspects(image_size, token_size)
        self.image_size, self.token_size, self.masking = image_size, token_size, masking
        self.crop_share = crop_share

    def __call__(self, image: Tensor, rng: np.random.Generator) -> PretrainBatch:
        view = center_view(image, self.image_size, self.crop_share)
        same = self.token_size == self.image_size
        token_view = view if same else center_view(image, self.token_size, self.crop_share)
        return PretrainBatch(view, token_view, torch.from_numpy(self.masking(rng)))


# ------------------------------------------------------------------------------------------------------------
# Evaluation


class EvaluationView:
    """The centre of the image: its shorter side resized to size / crop_share, then the middle cut out.

    squash: both sides are resized so, whatever the image's shape.
    """

    def __init__(
        self,
        image_size: Size,
        *,
        crop_share: float = 1.0,
        interpolation: Filter = "bicubic",
        squash: bool = False,
    ) -> None:
        self.image_size, self.crop_share = image_size, crop_share
        self.interpolation, self.squash = interpolation, squash

    def __call__(self, image: Tensor, rng: np.random.Generator) -> ImageBatch:
        view = squashed_view if self.squash else center_view
        return ImageBatch(view(image, self.image_size, self.crop_share, self.interpolation))


def squashed_view(image: Tensor, size: Size, crop_share: float, mode: Filter = "bicubic") -> Tensor:
    """Resize to size / crop_share (antialiased), then cut `size` out of the centre."""
    height, width = size
    whole = Box(0, 0, image.shape[1], image.shape[2])
    resized = render(image, whole, (int(height / crop_share), int(width / crop_share)), mode)
    return _center(resized, height, width)


def center_view(image: Tensor, size: Size, crop_share: float, mode: Filter = "bicubic") -> Tensor:
    """Resize until size / crop_share is just covered (antialiased), then cut `size` out of the centre."""
    height, width = size
    rows, columns = int(height / crop_share), int(width / crop_share)
    # A strip of 1 x 1,000,000 pixels would be enormous once resized; what lies far outside the view goes first.
    limit_rows, limit_columns = _beyond(image, rows, columns)
    image = _center(image, limit_rows, limit_columns)
    # In whole numbers: int(147 * (32 / 98)) is 47.
    fit = (columns * image.shape[1] // image.shape[2], rows * image.shape[2] // image.shape[1])
    resized = (max(rows, fit[0]), max(columns, fit[1]))
    whole = Box(0, 0, image.shape[1], image.shape[2])
    return _center(render(image, whole, resized, mode), height, width)


def _beyond(image: Tensor, rows: int, columns: int) -> Size:
    """Four times the part of `image` that a view of rows x columns can show, at most all of it."""
    fit = min(image.shape[1] / rows, image.shape[2] / columns)
    return min(image.shape[1], math.ceil(4 * fit * rows)), min(image.shape[2], math.ceil(4 * fit * columns))


def _center(image: Tensor, height: int, width: int) -> Tensor:
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


class LabeledView:
    """A view of images made one of labelled images: ``view(image, label, rng)``."""

    def __init__(self, view: ImageView) -> None:
        self.view = view

    def __call__(self, image: Tensor, label: int, rng: np.random.Generator) -> LabeledBatch:
        return LabeledBatch(self.view(image, rng).image, torch.tensor(label))
