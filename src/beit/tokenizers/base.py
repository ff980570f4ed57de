"""What pre-training asks of a visual tokenizer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class VisualTokenizer(Protocol):
    """Turns images into grids of visual tokens and back (paper section 2.1).

    Images are float in [0, 1] or uint8, (B, 3, H, W), with sides that are multiples of `stride`; the tokenizer maps
    pixels as its network wants them. A grid is (h, w) = (H // stride, W // stride).
    """

    @property
    def vocab_size(self) -> int:
        """Number of different tokens V."""
        ...

    @property
    def stride(self) -> int:
        """Pixels per token along each axis."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that it was trained at; it runs at any multiple of `stride`."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the tokens, float32 (B, V, h, w)."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """The most probable tokens, int64 (B, h, w); no noise."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Images in [0, 1], float32 (B, 3, H, W), from tokens (B, h, w)."""
        ...
