"""k-NN and effective rank, against plain arithmetic and closed forms."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.metrics.neighbours import effective_rank, knn_accuracy, knn_votes


def plain_knn(bank: np.ndarray, labels: np.ndarray, query: np.ndarray) -> list[int]:
    """The classes for one query, likeliest first, image by image as the definition says it."""
    mean = bank.mean(axis=0)
    neighbours = min(20, *(int((labels == label).sum()) for label in set(labels.tolist())))
    near = []
    for row, label in zip(bank - mean, labels.tolist(), strict=True):
        cosine = float(row @ (query - mean) / (np.linalg.norm(row) * np.linalg.norm(query - mean)))
        near.append((cosine, label))
    votes: defaultdict[int, float] = defaultdict(float)
    for cosine, label in sorted(near, reverse=True)[:neighbours]:
        votes[label] += math.exp(cosine / 0.07)
    return sorted(votes, key=lambda label: -votes[label])


@pytest.mark.parametrize("sizes", [[60, 60, 60], [90, 80, 7]])  # 20 neighbours vote, or 7
def test_knn_is_that_of_plain_loops(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    labels = np.repeat(np.arange(3), sizes)
    # A large part in common, which cosines would see first if the bank's mean were not taken off.
    bank = 50 + centres[labels] + rng.normal(size=(len(labels), 8))
    truth = rng.integers(0, 3, size=200)
    queries = 50 + centres[truth] + rng.normal(size=(200, 8))
    wanted = [plain_knn(bank, labels, query)[0] == label for query, label in zip(queries, truth, strict=True)]
    tensors = [torch.from_numpy(array) for array in (bank, labels, queries, truth)]
    accuracy = knn_accuracy(*tensors, num_classes=3)
    assert accuracy == pytest.approx(np.mean(wanted))
    assert 0.5 < accuracy < 1  # neither answer is a matter of course


def test_a_small_class_can_win_against_a_large_one() -> None:
    """Three images of a class beside its query, a hundred of another further off: three vote, not twenty."""
    bank = torch.cat([torch.tensor([[1.0, 0.02]]).expand(3, 2), torch.tensor([[1.0, 0.1]]).expand(100, 2)])
    labels = torch.tensor([1] * 3 + [0] * 100)
    votes = knn_votes(torch.tensor([[1.0, 0.0]]), bank, labels, 2, temperature=1.0)
    assert votes.tolist() == [[0, pytest.approx(3)]]


@pytest.mark.parametrize("temperature", [0.07, 0.001])
def test_votes_are_those_of_the_definition(temperature: float) -> None:
    """As shares of the nearest image's vote: exp(1 / 0.001) itself is beyond any float."""
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(80, 8)), rng.normal(size=(9, 8))
    bank -= bank.mean(axis=0)
    labels = np.arange(80) % 4
    wanted = np.zeros((9, 4))
    for row, query in enumerate(queries):
        cosine = [query @ x / np.linalg.norm(query) / np.linalg.norm(x) for x in bank]
        for near in sorted(range(80), key=lambda i: -cosine[i])[:20]:
            wanted[row, labels[near]] += np.exp((cosine[near] - max(cosine)) / temperature)
    found = knn_votes(*map(torch.from_numpy, (queries, bank, labels)), 4, neighbours=20, temperature=temperature)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def orthonormal(rows: int, columns: int) -> Tensor:
    """Centred columns of length one, each at right angles to the others."""
    noise = torch.randn(rows, columns, dtype=torch.float64)
    basis, _ = torch.linalg.qr(noise - noise.mean(dim=0))
    return basis


def test_effective_rank_of_known_spectra() -> None:
    torch.manual_seed(0)
    basis = orthonormal(100, 8)
    assert effective_rank(basis) == pytest.approx(8)  # the same in every direction
    assert effective_rank(3 + 7 * basis) == pytest.approx(8)  # neither place nor scale matters
    assert effective_rank(torch.randn(100, 1) @ torch.randn(1, 8)) == pytest.approx(1, rel=1e-3)
    shares = torch.tensor([0.5, 0.25, 0.25, 0, 0, 0, 0, 0], dtype=torch.float64)
    assert effective_rank(basis * shares) == pytest.approx(2**1.5)  # the entropy is 1.5 bits
    assert effective_rank(torch.randn(9, 64)) <= 8  # images less one
    assert effective_rank(torch.full((50, 8), 0.1)) == 0
