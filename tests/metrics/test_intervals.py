"""Intervals against scipy and closed forms, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from beit.metrics.intervals import FIGURES, bootstrap, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (19, 30), (30, 30), (198, 200), (1300, 2048)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    interval = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_the_bootstrap_of_single_images_is_that_of_their_mean() -> None:
    rows = np.stack([np.arange(2000) < 1300, np.ones(2000)], 1).astype(np.int64)
    error = 1.96 * math.sqrt(0.65 * 0.35 / 2000)
    low, high = bootstrap(FIGURES["top1"], rows, units=np.arange(2000))
    assert (low, high) == pytest.approx((0.65 - error, 0.65 + error), abs=3e-3)


def test_images_of_a_group_count_as_one() -> None:
    """40 groups of 50 images, each all right or all wrong, tell as much as 40 images."""
    rows = np.stack([np.repeat(np.arange(40) < 26, 50), np.ones(2000)], 1).astype(np.int64)
    low, high = bootstrap(FIGURES["top1"], rows, units=np.repeat(np.arange(40), 50))
    error = 1.96 * math.sqrt(0.65 * 0.35 / 40)
    assert (low, high) == pytest.approx((0.65 - error, 0.65 + error), abs=0.03)


def test_a_difference_depends_on_the_pairs_and_not_on_their_order() -> None:
    """Of 2,000 images the first alone is right on 200, the second alone on 100: the rest cannot tell them apart."""
    first, second = np.zeros((2, 2000, 2), dtype=np.int64)
    first[:1000, 0], second[200:1100, 0], first[:, 1], second[:, 1] = 1, 1, 1, 1

    def interval(*rows: np.ndarray) -> tuple[float, float]:
        top1 = FIGURES["top1"]
        return bootstrap(lambda one, other: top1(one) - top1(other), *rows, units=np.arange(2000))

    error = 1.96 * math.sqrt(0.15 - 0.05**2) / math.sqrt(2000)
    assert interval(first, second) == pytest.approx((0.05 - error, 0.05 + error), abs=2e-3)
    assert interval(first, first) == (0, 0)
    low, high = interval(second, first)
    assert (-high, -low) == pytest.approx(interval(first, second))


def test_scores_of_many_images_are_those_of_their_sums() -> None:
    """Two classes: of the pixels of one, 30 are found, 10 missed; of the other, 5 and 5; a third one is nowhere."""
    both, true, named = [30, 5, 0], [40, 10, 0], [35, 15, 0]
    assert FIGURES["miou"](np.array([both, true, named], float).ravel()) == pytest.approx((30 / 45 + 5 / 20) / 2)
    assert FIGURES["f1"](np.array([6.0, 8.0, 10.0])) == pytest.approx(12 / 18)
