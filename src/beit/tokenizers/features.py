"""Tokens of meaning: k-means of the features that a frozen encoder, the teacher, has of patches.

The teacher may be any encoder that the package loads, one of an earlier round of pre-training among them. Its weights
are part of the tokenizer and of its identity.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.tokenizers.kmeans import KMeansTokenizer


class Teacher(Protocol):
    """What is asked of an encoder."""

    config: EncoderConfig

    def intermediates(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Patches after the named blocks, each as a map (B, D, h, w)."""


class FeatureKMeans(KMeansTokenizer):
    """k-means of the features after block `layer` of the teacher: each channel standardised, then each vector of
    length one, so that distances are angles.

    Args:
        encoder: the teacher, an nn.Module; its patches are the tokens' cells, its pixel statistics apply.
    """

    kind = "features"
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Teacher, vocab_size: int, layer: int) -> None:
        config = encoder.config
        if not 0 <= layer < config.depth:
            raise UserError(f"layer {layer} is not one of the {config.depth} blocks; give 0 to {config.depth - 1}")
        super().__init__(vocab_size, config.width, config.patch_size, config.image_size, config.channels)
        self.encoder = cast(nn.Module, encoder)
        self.layer = layer
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("std", torch.ones(config.width))

    def read(self, images: Tensor) -> Tensor:
        [features] = cast(Teacher, self.encoder).intermediates(images, [self.layer])
        return features.flatten(2).mT

    def scale(self, vectors: Tensor) -> Tensor:
        return F.normalize((vectors - self.mean) / self.std, dim=-1)

    def adapt(self, vectors: Tensor) -> None:
        self.mean.copy_(vectors.mean(dim=0))
        self.std.copy_(vectors.std(dim=0, correction=0).clamp(min=1e-6))
