"""The interval of a difference: against what is known of it, and what it must not depend on."""

from __future__ import annotations

import math

import pytest
import torch

from beit.metrics.comparison import paired_bootstrap


def test_the_interval_is_that_of_the_paired_difference() -> None:
    """Of 2,000 images the first alone is right on 200, the second alone on 100: the rest cannot tell them apart."""
    first, second = torch.zeros(2000, dtype=torch.bool), torch.zeros(2000, dtype=torch.bool)
    first[:1000], second[200:1100] = True, True
    mean, low, high = paired_bootstrap(first, second)
    assert mean == pytest.approx(0.05)
    error = math.sqrt(0.15 - 0.05**2) / math.sqrt(2000)
    assert (low, high) == pytest.approx((0.05 - 1.96 * error, 0.05 + 1.96 * error), abs=1e-3)


def test_it_depends_on_the_pairs_and_not_on_their_order() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 500, generator=rng) < torch.tensor([[0.7], [0.6]])
    order = torch.randperm(500, generator=rng)
    forward = paired_bootstrap(first, second)
    assert paired_bootstrap(first[order], second[order]) == forward
    mean, low, high = paired_bootstrap(second, first)
    assert mean == pytest.approx(-forward.mean) and low < mean < high
    assert (low, high) == pytest.approx((-forward.high, -forward.low), abs=0.005)
    assert tuple(paired_bootstrap(first, first)) == (0, 0, 0)
