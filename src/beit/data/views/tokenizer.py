"""One decoded image -> what a discrete VAE learns from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from beit.data.batches import ImageBatch
from beit.data.views.geometry import Box, Size, draw_box, render


@dataclass(frozen=True)
class TokenizerViews:
    """Images for training a discrete VAE.

    crop "dalle": DALL-E's recipe (2102.12092, appendix A.2, listing 1) at any size S: a random square as large as
    the image allows, resized to a side t uniform between 9/8 S and 12/8 S (never beyond the image's own
    pixels unless it is smaller than S), a random S x S part of that, a flip. Images that are not square keep the
    shape of `image_size` instead. crop "random_resized": random resized crops, which make more of few images.
    Both resize with the antialiased bicubic filter that the tokenizer will meet in pre-training.
    """

    image_size: Size
    crop: Literal["dalle", "random_resized"] = "dalle"
    min_scale: float = 0.3
    flip: float = 0.5

    def __call__(self, image: Tensor, rng: np.random.Generator) -> ImageBatch:
        size = (image.shape[1], image.shape[2])
        if self.crop == "dalle":
            box = self._dalle_box(size, rng)
        else:
            box = draw_box(size, self.min_scale, rng, self.image_size[1] / self.image_size[0])
        view = render(image, box, self.image_size)
        return ImageBatch(view.flip(-1) if rng.random() < self.flip else view)

    def _dalle_box(self, size: Size, rng: np.random.Generator) -> Box:
        """The part of the image that the recipe's two crops leave, so that only it need be resized."""
        (height, width), (rows, columns) = size, self.image_size
        fit = min(height / rows, width / columns)  # how much larger than the view the first crop is
        low, high = (max(rows, min(round(fit * rows), round(f * rows))) for f in (9 / 8, 12 / 8))
        zoom = fit * rows / int(rng.integers(low, high + 1))  # image pixels for each pixel of the view
        h = min(height, max(1, round(zoom * rows)))
        w = min(width, max(1, round(zoom * columns)))
        # Where a random part of a random square lies: the sum of the two offsets.
        first_h, first_w = min(height, max(h, round(fit * rows))), min(width, max(w, round(fit * columns)))
        top = int(rng.integers(height - first_h + 1)) + int(rng.integers(first_h - h + 1))
        left = int(rng.integers(width - first_w + 1)) + int(rng.integers(first_w - w + 1))
        return Box(top, left, h, w)
