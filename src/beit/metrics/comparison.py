"""Which of two models is better, and how sure that is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Difference(NamedTuple):
    """How much more often the first of two models is right, as shares of the images in [-1, 1]."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def paired_bootstrap(first: Tensor, second: Tensor, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Where two models were right, bool (N,) each of the same N images in the same order -> their difference.

    The interval is the percentile bootstrap over images (Efron and Tibshirani 1993, chapter 13).
    """
    differences = first.int() - second.int()
    counts = np.array([int((differences == value).sum()) for value in (-1, 0, 1)])
    images = counts.sum()
    # Images drawn with replacement matter by how often each of the three outcomes was drawn.
    drawn = np.random.default_rng(seed).multinomial(images, counts / images, size=resamples)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / images, (0.025, 0.975))
    return Difference(float(counts[2] - counts[0]) / float(images), float(low), float(high))
