"""The loss without logits is the plain loss, with its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.models import layers
from beit.models.layers import linear_cross_entropy


@pytest.mark.parametrize("logits", [1, 7 * 50, 2**22])
def test_loss_share_and_gradients_are_those_of_the_plain_loss(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time, seven rows of 50 logits, all at once."""
    monkeypatch.setattr(layers, "LOGITS", logits)
    torch.manual_seed(0)
    layer, inputs, targets = nn.Linear(16, 50), torch.randn(24, 16, requires_grad=True), torch.randint(50, (24,))

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(3 * loss, [inputs, layer.weight, layer.bias])

    plain = F.cross_entropy(layer(inputs), targets)
    loss, share = linear_cross_entropy(inputs, layer, targets)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    assert share == (layer(inputs).argmax(1) == targets).float().mean()
    for ours, expected in zip(gradients(loss), gradients(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_loss() -> None:
    torch.manual_seed(0)
    layer, inputs, targets = nn.Linear(64, 300), torch.randn(200, 64), torch.randint(300, (200,))

    def both(loss: Tensor) -> tuple[Tensor, Tensor]:
        return loss.detach(), torch.autograd.grad(loss, layer.weight)[0]

    exact = both(F.cross_entropy(layer(inputs), targets))
    with torch.autocast("cpu", torch.bfloat16):
        plain = both(F.cross_entropy(layer(inputs).float(), targets))
        ours = both(linear_cross_entropy(inputs, layer, targets)[0])
    for wide, narrow, own in zip(exact, plain, ours, strict=True):
        assert own.dtype == torch.float32
        assert (own - wide).norm() <= 1.1 * (narrow - wide).norm() + 1e-7


def test_float64_stays_float64_and_no_gradient_is_made_where_none_is_asked_for() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 11).double(), torch.randn(5, 8, dtype=torch.float64)
    targets = torch.randint(11, (5,))
    with torch.no_grad():
        loss, _ = linear_cross_entropy(inputs, layer, targets)
        torch.testing.assert_close(loss, F.cross_entropy(layer(inputs), targets), rtol=1e-14, atol=0)
    assert not loss.requires_grad
