"""Parameter groups and schedules against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from beit.training.optim import (
    Rates,
    adamw,
    cosine_schedule,
    parameter_groups,
    polynomial_schedule,
    set_learning_rate,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.table = nn.Parameter(torch.zeros(9, 2))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3)])
        self.head = nn.Linear(4, 2)
        self.odd_bias = nn.Module()
        self.odd_bias.bias = nn.Parameter(torch.zeros(2, 2))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        blocks = [list(block.parameters()) for block in self.blocks]
        rest = [self.mask_token, self.table, self.odd_bias.bias, *self.head.parameters()]
        return [[self.cls_token, self.pos_embed], *blocks, rest]  # type: ignore[list-item]


def names_where(model: nn.Module, groups: list[dict[str, object]], key: str) -> dict[str, object]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name_of[id(parameter)]: group[key] for group in groups for parameter in group["params"]}  # type: ignore


def test_weight_decay_spares_vectors_biases_and_positions() -> None:
    model = Model()
    decay = names_where(model, parameter_groups(model, weight_decay=0.05), "weight_decay")
    assert decay.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    decayed = {"mask_token", "table", "head.weight", *(f"blocks.{index}.0.weight" for index in range(3))}
    assert {name for name, value in decay.items() if value == 0.05} == decayed
    assert {decay[name] for name in decay.keys() - decayed} == {0.0}


def test_layer_decay_follows_the_closed_form() -> None:
    model = Model()
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.65, layer_groups=model.layer_groups())
    scale = names_where(model, groups, "lr_scale")
    assert scale["pos_embed"] == scale["cls_token"] == pytest.approx(0.65**4)
    for index in range(3):
        assert scale[f"blocks.{index}.1.bias"] == pytest.approx(0.65 ** (3 - index))
    assert scale["head.weight"] == scale["table"] == 1
    optimizer = adamw(groups, lr=1.0)
    set_learning_rate(optimizer, 0.1)
    rates = names_where(model, optimizer.param_groups, "lr")
    assert rates["blocks.0.0.weight"] == pytest.approx(0.1 * 0.65**3)


def test_a_parameter_forgotten_or_named_twice_is_an_error() -> None:
    model = Model()
    groups = model.layer_groups()
    with pytest.raises(ValueError, match=r"in no layer group: head\.weight, head\.bias"):
        parameter_groups(model, weight_decay=0, layer_groups=[*groups[:-1], groups[-1][:-2]])
    with pytest.raises(ValueError, match="in two layer groups"):
        parameter_groups(model, weight_decay=0, layer_groups=[*groups, [model.cls_token]])
    with pytest.raises(ValueError, match="needs the layer_groups"):
        parameter_groups(model, weight_decay=0, layer_decay=0.5)


@pytest.mark.parametrize("warmup", [0, 1, 2, 10])
def test_cosine_is_that_of_the_released_code(warmup: int) -> None:
    total, peak, final = 50, 1.5e-3, 1e-5
    rest = np.arange(total - warmup)
    cosine = final + 0.5 * (peak - final) * (1 + np.cos(math.pi * rest / len(rest)))
    expected = np.concatenate([np.linspace(0, peak, warmup), cosine])
    rates = Rates(peak, final, warmup, total)
    found = [cosine_schedule(step, rates) for step in range(total)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert cosine_schedule(total + 5, rates) == final


def test_polynomial_is_that_of_mmsegmentation() -> None:
    for step in range(100):
        regular = (3e-5 - 1e-6) * (1 - step / 100) ** 0.9 + 1e-6
        factor = 1 - (1 - step / 15) * (1 - 1e-6) if step < 15 else 1
        rate = polynomial_schedule(step, Rates(3e-5, 1e-6, 15, 100), power=0.9)
        assert rate == pytest.approx(regular * factor, rel=1e-12)


def test_adamw_is_loshchilov_and_hutters() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(7, dtype=torch.float64))
    optimizer = adamw([{"params": [parameter], "weight_decay": 0.1}], lr=0.01, betas=(0.8, 0.9))
    value, first, second = parameter.detach().clone(), torch.zeros(7), torch.zeros(7)
    for step in range(1, 6):
        gradient = torch.sin(parameter.detach() * step)
        parameter.grad = gradient.clone()
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        update = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
        value = value * (1 - 0.01 * 0.1) - 0.01 * update
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-14)
