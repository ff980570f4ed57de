"""Both terms of the bound, where they are known in closed form: two patches of one pixel, and two codes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from beit.recipes.evaluate.bound import Bound
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.fsq import FiniteScalarVAE

MEANS, SCALES = (-0.5, 1.0), (0.5, 2.0)
"""Of the distribution that each code gives every pixel's logit."""
PRIOR = ((0.3, 0.7), (0.9, 0.1))
POSTERIOR = ((0.8, 0.2), (0.4, 0.6))
"""Of the codes at each place: the likeliest are 0 and 1."""
PIXELS = (0.2, 0.55)


class Toy(DiscreteVAE):
    """A tokenizer whose distributions are tables."""

    def __init__(self, posterior: tuple[tuple[float, ...], ...]) -> None:
        torch.nn.Module.__init__(self)
        self.log_q = torch.tensor(posterior).log()

    def logits(self, images: Tensor) -> Tensor:
        return self.log_q.T[None, :, None].expand(len(images), -1, -1, -1)

    def statistics(self, tokens: Tensor) -> Tensor:
        mean, scale = (torch.tensor(values)[tokens][:, None].expand(-1, 3, -1, -1) for values in (MEANS, SCALES))
        return torch.cat([mean, scale.log()], dim=1)


class Finite(FiniteScalarVAE):
    """The same likelihood, and no posterior."""

    __init__ = torch.nn.Module.__init__  # type: ignore[assignment]
    statistics = Toy.statistics


def likelihood(place: int, code: int) -> float:
    """Of the three values of a pixel, all alike: a density of values mapped to [.1, .9]."""
    x = 0.1 + 0.8 * PIXELS[place]
    distance = abs(math.log(x / (1 - x)) - MEANS[code])
    return float((math.exp(-distance / SCALES[code]) / (2 * SCALES[code] * x * (1 - x))) ** 3)


def figures(posterior: tuple[tuple[float, ...], ...], predict: Tensor, images: int = 1) -> dict[str, float]:
    bound = Bound(Toy(posterior), "all", seed=0)
    pixels = torch.tensor(PIXELS).expand(images, 3, 1, 2)
    predict = predict.expand(images, 1, 2)
    tokens = torch.tensor([[[0, 1]]]).expand(images, 1, 2)
    logits = torch.tensor(PRIOR).log().expand(images, 2, 2)[predict.flatten(1)]
    sums = bound.sums(pixels, tokens, logits, predict)
    return bound.figures(sums | {"count": predict.sum()}, vocab_size=2)


EXACT = sum(math.log(sum(PRIOR[i][k] * likelihood(i, k) for k in (0, 1))) for i in (0, 1))
"""log p(x | x~)."""
BOTH = torch.tensor([[True, True]])


def test_both_terms_are_those_of_the_closed_form_and_bound_the_likelihood() -> None:
    found = figures(POSTERIOR, BOTH)
    assert found["elbo_reconstruction"] == pytest.approx(math.log(likelihood(0, 0) * likelihood(1, 1)), rel=1e-5)
    assert found["elbo_prior"] == pytest.approx(math.log(0.3 * 0.1), rel=1e-5)
    assert found["elbo_prior_uniform"] == pytest.approx(-2 * math.log(2))
    assert found["elbo_reconstruction"] + found["elbo_prior"] < EXACT
    hidden = figures(POSTERIOR, torch.tensor([[False, True]]))
    assert hidden["elbo_prior"] == pytest.approx(math.log(0.1), rel=1e-5)


def test_drawn_tokens_give_the_bound_of_the_whole_posterior() -> None:
    found = figures(POSTERIOR, BOTH, images=2000)
    pairs = [(i, k) for i in (0, 1) for k in (0, 1)]
    expected = sum(POSTERIOR[i][k] * math.log(likelihood(i, k)) for i, k in pairs)
    divergence = sum(POSTERIOR[i][k] * math.log(POSTERIOR[i][k] / PRIOR[i][k]) for i, k in pairs)
    assert found["elbo_reconstruction_sampled"] == pytest.approx(expected, abs=0.05)
    assert found["elbo_prior_sampled"] == pytest.approx(-divergence, rel=1e-5)
    assert expected - divergence < EXACT


def test_of_a_posterior_without_doubt_the_two_bounds_are_one() -> None:
    found = figures(((1.0, 1e-30), (1e-30, 1.0)), BOTH)
    assert found["elbo_reconstruction_sampled"] == pytest.approx(found["elbo_reconstruction"])
    assert found["elbo_prior_sampled"] == pytest.approx(found["elbo_prior"])


def test_finite_scalars_have_the_bound_of_their_one_answer() -> None:
    bound = Bound(Finite(), "all", seed=0)  # type: ignore[call-arg]
    pixels, tokens = torch.tensor(PIXELS).expand(1, 3, 1, 2), torch.tensor([[[0, 1]]])
    sums = bound.sums(pixels, tokens, torch.tensor(PRIOR).log(), BOTH[None])
    found = bound.figures(sums | {"count": torch.tensor(2)}, vocab_size=2)
    expected = figures(POSTERIOR, BOTH)
    assert found == {name: expected[name] for name in found} and "elbo_reconstruction" in found
    assert "lower bound" in bound.words() and "elbo_prior_sampled" not in found


def test_a_tokenizer_without_a_likelihood_of_pixels_leaves_the_prior_alone() -> None:
    bound = Bound(torch.nn.Identity(), "all", seed=0)  # type: ignore[arg-type]
    sums = bound.sums(torch.rand(1, 3, 1, 2), torch.tensor([[[0, 1]]]), torch.tensor(PRIOR).log(), BOTH[None])
    found = bound.figures(sums | {"count": torch.tensor(2)}, vocab_size=2)
    assert found.keys() == {"elbo_prior", "elbo_prior_uniform"}
    assert "the prior term alone" in bound.words()
