"""One decoded image -> what fine-tuning sees of it, as timm's `create_transform`, which the release uses."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from beit.data.batches import LabeledBatch
from beit.data.views.colors import apply_jitter, draw_jitter, from_pillow, to_pillow
from beit.data.views.geometry import Box, Size, draw_box, render
from beit.data.views.randaugment import RandAugment
from beit.pixels import from_unit


@dataclass
class ClassificationView:
    """A labelled image as fine-tuning sees it: random resized crop, flip, colour jitter, RandAugment (of 8-bit RGB),
    random erasing.

    `mean` and `std` are the network's pixel constants, in [0, 1]: erased boxes and uncovered borders are made of
    them.
    """

    image_size: Size
    min_scale: float = 0.08
    flip: float = 0.5
    color_jitter: float = 0.0
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    erasing: float = 0.25
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        red, green, blue = (min(255, round(255 * value)) for value in (*self.mean, 0, 0)[:3])
        self.randaugment = RandAugment(self.magnitude, self.magnitude_std, fill=(red, green, blue))

    def __call__(self, image: Tensor, label: int, rng: np.random.Generator) -> LabeledBatch:
        aspect = self.image_size[1] / self.image_size[0]
        box = draw_box((image.shape[1], image.shape[2]), self.min_scale, rng, aspect)
        view = render(image, box, self.image_size)
        if rng.random() < self.flip:
            view = view.flip(-1)
        if jitter := draw_jitter(self.color_jitter, rng):
            view = apply_jitter(jitter, view)[0]
        if self.magnitude > 0 and len(view) == 3 and view.dtype == torch.uint8:
            view = from_pillow(self.randaugment(to_pillow(view), rng))
        if rng.random() < self.erasing and (erased := draw_erased_box(self.image_size, rng)):
            view = erase(view, erased, self.mean, self.std, rng)
        return LabeledBatch(view, torch.tensor(label))


def draw_erased_box(size: Size, rng: np.random.Generator) -> Box | None:
    """A box of 1/50 to 1/3 of the image, height / width log-uniform in (0.3, 1 / 0.3); None if ten do not fit."""
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        shape = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if h < height and w < width:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    return None


def erase(
    image: Tensor, box: Box, mean: tuple[float, ...], std: tuple[float, ...], rng: np.random.Generator
) -> Tensor:
    """`image` (C, H, W) with normal noise in `box`: pixels of the network's own mean and deviation.

    timm's mode "pixel" puts the noise behind the normalisation; here it is clipped to what a pixel can be.
    """
    noise = rng.standard_normal((len(mean), box.height, box.width), dtype=np.float32)
    channels = np.array([mean, std], dtype=np.float32)[:, :, None, None]
    pixels = from_unit(torch.from_numpy(channels[0] + channels[1] * noise), image.dtype)
    image = image.clone()
    image[:, box.top : box.top + box.height, box.left : box.left + box.width] = pixels
    return image
