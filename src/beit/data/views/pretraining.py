"""One decoded image -> what the encoder and the tokenizer are shown of it, and which patches are hidden."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from beit.config.errors import require
from beit.config.values import counted
from beit.data.batches import PretrainBatch
from beit.data.views.colors import Jitter, apply_jitter, draw_jitter, from_pillow, to_pillow
from beit.data.views.geometry import Box, Size, center_view, draw_box, render

Masking = Callable[[np.random.Generator], NDArray[np.bool_]]


@dataclass(frozen=True)
class _TwoSizes:
    """What the encoder and the tokenizer are shown of one crop; UserError unless it has one shape in both."""

    image_size: Size
    token_size: Size
    masking: Masking
    num_masked: int | None = None
    """Patches that every mask hides, where networks are told so, whose shapes hang on it."""

    def mask(self, rng: np.random.Generator) -> Tensor:
        """Draws one, bool (rows, columns). Looked at here, on the host: a GPU would have to be waited for."""
        mask = torch.from_numpy(self.masking(rng))
        if self.num_masked not in (None, hidden := int(mask.sum())):
            raise ValueError(f"a mask hides {counted(hidden, 'patch')}, and its rule says {self.num_masked}")
        return mask

    def __post_init__(self) -> None:
        (height, width), (rows, columns) = self.image_size, self.token_size
        differ = f"--image-size {height}x{width} and the tokenizer's {rows}x{columns} have different shapes"
        require(height * columns == width * rows, f"{differ}; both must show the same crop")


@dataclass(frozen=True)
class PretrainViews(_TwoSizes):
    """Colour jitter, flip and one random resized crop, rendered for the encoder and for the tokenizer, and a mask.

    mode "fast": crop first, on tensors, antialiased bicubic for both. mode "exact": the released order on Pillow
    images (jitter of the whole image, flip, crop; bicubic for the encoder, Lanczos for the tokenizer). Both views
    always show the same box with the same changes (unilm beit/datasets.py and transforms.py).
    """

    min_scale: float = 0.08
    flip: float = 0.5
    color_jitter: float = 0.4
    mode: Literal["fast", "exact"] = "fast"

    def __call__(
        self, image: Tensor, rng: np.random.Generator, of_mask: np.random.Generator | None = None, number: int = -1
    ) -> PretrainBatch:
        jitter = draw_jitter(self.color_jitter, rng)
        flip = rng.random() < self.flip
        aspect = self.image_size[1] / self.image_size[0]
        box = draw_box((image.shape[1], image.shape[2]), self.min_scale, rng, aspect)
        draw = self._fast if self.mode == "fast" else self._exact
        view, token_view = draw(image, box, flip, jitter)
        return PretrainBatch(view, token_view, self.mask(of_mask or rng), torch.tensor(number))

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


class PretrainEvaluationView(_TwoSizes):
    """The centre of the image at both sizes, and a mask; deterministic but for the mask."""

    def __call__(self, image: Tensor, rng: np.random.Generator) -> PretrainBatch:
        view = center_view(image, self.image_size)
        token_view = view if self.token_size == self.image_size else center_view(image, self.token_size)
        return PretrainBatch(view, token_view, self.mask(rng))
