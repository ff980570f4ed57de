"""The baselines beside the masked-token loss have the values that arithmetic gives them."""

from __future__ import annotations

import math

import pytest
import torch

from beit.metrics.tokens import TokenBaselines

GRID, VOCAB, IMAGES = (4, 4), 8, 400


def draw(kind: str) -> torch.Tensor:
    """Tokens (IMAGES, 4, 4): independent, fixed by the place, or constant over an image."""
    generator = torch.Generator().manual_seed(0)
    shape = {"independent": (IMAGES, *GRID), "image": (IMAGES, 1, 1), "place": (1, *GRID)}[kind]
    return torch.randint(VOCAB, shape, generator=generator).expand(IMAGES, *GRID).contiguous()


def best(kind: str, mask: torch.Tensor) -> dict[str, float]:
    tokens = draw(kind)
    baselines = TokenBaselines(GRID, VOCAB)
    baselines.count(tokens)
    return {name: float(value.min()) for name, value in baselines.losses(tokens, mask, mask).items()}


@pytest.fixture
def mask() -> torch.Tensor:
    hidden = torch.zeros(IMAGES, *GRID, dtype=torch.bool)
    hidden[:, 1:3, 1:3] = True
    return hidden


def test_independent_tokens_cannot_be_predicted(mask: torch.Tensor) -> None:
    losses = best("independent", mask)
    assert losses["unigram_loss"] == pytest.approx(math.log(VOCAB), abs=0.01)
    assert losses["copy_neighbour_loss"] == pytest.approx(math.log(VOCAB), abs=0.01)


def test_tokens_fixed_by_their_place_are_known_from_it(mask: torch.Tensor) -> None:
    losses = best("place", mask)
    assert losses["position_unigram_loss"] < 0.1
    assert losses["unigram_loss"] > 1


def test_a_constant_image_is_known_from_the_nearest_visible_patch(mask: torch.Tensor) -> None:
    losses = best("image", mask)
    assert losses["copy_neighbour_loss"] < 0.1
    assert losses["unigram_loss"] == pytest.approx(math.log(VOCAB), abs=0.05)


def test_the_copied_patch_is_visible_and_nearest() -> None:
    baselines = TokenBaselines((1, 5), VOCAB)
    mask = torch.tensor([[False, True, True, True, False]])
    nearest = baselines._nearest_visible(mask)[0].tolist()
    assert nearest[:2] == [0, 0]
    assert nearest[2] in (0, 4)
    assert nearest[3:] == [4, 4]
