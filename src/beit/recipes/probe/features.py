"""Features read like images, by the loaders of a probe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class FeatureBatch(NamedTuple):
    """Features and classes."""

    features: Tensor
    """float32 (B, layers, F)."""
    label: Tensor
    """int64 (B,)."""


def feature_view(features: Tensor, label: int, rng: np.random.Generator) -> FeatureBatch:
    """What a loader makes of an image's features."""
    return FeatureBatch(features, torch.tensor(label))
