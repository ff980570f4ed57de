"""What pre-training asks of a visual tokenizer."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from beit.config.errors import UserError
from beit.pixels import checked


class VisualTokenizer(nn.Module, ABC):
    """Turns images into grids of visual tokens and back (paper section 2.1).

    Images are float in [0, 1] or uint8, (B, C, H, W), with sides that are multiples of `stride`; the tokenizer maps
    pixels as its network wants them. A grid is (h, w) = (H // stride, W // stride).
    """

    kind: ClassVar[str] = ""
    """Its `tokenizer_kind` in model.json; none for what cannot be saved."""
    vocab_size: int
    """Number of different tokens V."""
    stride: int
    """Pixels per token along each axis."""
    image_size: tuple[int, int]
    """Height and width in pixels that it was trained at; it runs at any multiple of `stride`."""
    value_range: tuple[float, ...] | None = None
    """As of a :class:`beit.BeitEncoder`."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """The tokens, int64 (B, h, w); no noise."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Images in [0, 1], float32 (B, C, H, W), from tokens (B, h, w)."""

    def whole_tokens(self, images: Tensor) -> Tensor:
        """`images`, those of uint16 in [0, 1]; UserError for images with sides that are no multiples of `stride`, or,
        but in training, not in [0, 1]."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            wrong = f"images of {height}x{width} pixels do not divide into tokens of {self.stride}x{self.stride}"
            raise UserError(f"tokenizer {wrong}; choose sides that are multiples of {self.stride}")
        return checked(images, self.value_range, look=not self.training)


class CategoricalTokenizer(VisualTokenizer):
    """A tokenizer that knows how probable each token is, q(z | x): divergences, bounds and samples follow."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the tokens, float32 (B, V, h, w)."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The most probable tokens, int64 (B, h, w). No noise and no softmax: the argmax is that of the logits."""
        return self.logits(images).argmax(dim=1)
