"""Finite scalar quantisation: numbers and codes are one to one, and gradients pass the rounding."""

from __future__ import annotations

import itertools

import pytest
import torch

from beit.config.errors import UserError
from beit.config.tokenizer import LEVELS, FiniteScalarVAEConfig, TokenizerConfig
from beit.tokenizers.base import CategoricalTokenizer
from beit.tokenizers.fsq import FiniteScalarVAE, codes_to_tokens, quantize, tokens_to_codes


@pytest.mark.parametrize("levels", [(5, 5), (8, 6, 5), (7, 5, 5, 5, 5)])
def test_codes_and_tokens_are_one_to_one(levels: tuple[int, ...]) -> None:
    values = [[(digit - count // 2) / (count // 2) for digit in range(count)] for count in levels]
    codes = torch.tensor([*itertools.product(*values)])[:, :, None, None]
    tokens = codes_to_tokens(codes, levels)
    assert torch.equal(tokens.flatten().sort().values, torch.arange(len(codes)))
    torch.testing.assert_close(tokens_to_codes(tokens, levels), codes)


def test_every_level_is_reached_and_no_other_value() -> None:
    levels = (8, 5)
    channels = torch.linspace(-9, 9, 4001)[None, None, :, None].expand(1, 2, -1, -1)
    codes = quantize(channels, levels)
    for channel, count in enumerate(levels):
        expected = torch.tensor([(digit - count // 2) / (count // 2) for digit in range(count)])
        torch.testing.assert_close(codes[0, channel].unique(), expected)


def test_the_gradient_is_that_of_the_bounding() -> None:
    channels = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    quantize(channels, (7, 5)).sum().backward()
    half = torch.tensor([3.0, 2.0], dtype=torch.float64)[:, None, None]
    expected = (1 - channels.detach().tanh().square()) * half * 1.001 / half
    torch.testing.assert_close(channels.grad, expected)


def test_tokens_go_through_the_network_and_back() -> None:
    config = FiniteScalarVAEConfig(
        vocab_size=240,
        levels=LEVELS[240],
        width=8,
        stride=4,
        blocks_per_group=1,
        code_width=6,
        image_size=(16, 16),
    )
    torch.manual_seed(0)
    model = FiniteScalarVAE(config)
    images = torch.rand(2, 3, 16, 8)
    tokens, statistics = model(images)
    assert torch.equal(model.encode(images), tokens)
    assert tokens.shape == (2, 4, 2) and int(tokens.max()) < 240
    torch.testing.assert_close(model.decode(tokens), ((statistics[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1))
    statistics.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert not isinstance(model, CategoricalTokenizer)


def test_a_vocabulary_that_is_no_product_names_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"--vocab-size 300 .* near it are 240 and 512"):
        TokenizerConfig(data="photos", out="run", kind="fsq", vocab_size=300, steps=1, preset=None)
