"""Position information: the official index and resizing, against scipy, timm and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline, RectBivariateSpline
from timm.layers import gen_relative_position_index

from beit.models.position import (
    axis_matrix,
    bias_table_rows,
    geometric_ratio,
    position_bias,
    relative_position_index,
    resize_bias_table,
    resize_position_embedding,
    sincos_embedding,
    spline_matrix,
)


@pytest.mark.parametrize(("side", "rows"), [(14, 732), (24, 2212), (32, 3972), (40, 6244)])
def test_rows_of_the_table(side: int, rows: int) -> None:
    assert bias_table_rows((side, side)) == rows


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 6)])
def test_index_is_the_official_one(grid: tuple[int, int]) -> None:
    official = gen_relative_position_index(grid, class_token=True)
    assert torch.equal(relative_position_index(grid), official)


@pytest.mark.parametrize(("target", "ratio"), [(24, 1.090307), (32, 1.134918), (40, 1.168504)])
def test_ratio_of_the_official_progression(target: int, ratio: float) -> None:
    assert geometric_ratio(13, target - 1) == pytest.approx(ratio, abs=1e-6)


def official_offsets(source: int, target: int) -> list[float]:
    ratio, offsets, step = geometric_ratio(source - 1, target - 1), [], 1.0
    for power in range(source - 1):
        offsets.append(step)
        step += ratio ** (power + 1)
    return [-x for x in reversed(offsets)] + [0.0] + offsets


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((14, 14), (24, 24)),
        ((14, 14), (32, 32)),
        ((14, 14), (40, 40)),
        ((24, 24), (14, 14)),
        ((14, 14), (10, 30)),
        ((6, 9), (12, 20)),
    ],
)
def test_table_resizing_equals_scipy(source: tuple[int, int], target: tuple[int, int]) -> None:
    table = torch.randn(bias_table_rows(source), 2, dtype=torch.float64)
    resized = resize_bias_table(table, source, target)
    assert resized.shape == (bias_table_rows(target), 2)
    assert torch.equal(resized[-3:], table[-3:])
    x, y = (official_offsets(a, b) for a, b in zip(source, target, strict=True))
    dx, dy = (np.arange(-(b - 1), b) for b in target)
    for head in range(2):
        offsets = table[:-3, head].view(len(x), len(y)).numpy()
        oracle = RectBivariateSpline(x, y, offsets, kx=3, ky=3, s=0)(dx, dy)
        np.testing.assert_allclose(resized[:-3, head].view(oracle.shape).numpy(), oracle, atol=1e-11)


def test_an_axis_that_keeps_its_size_keeps_its_values() -> None:
    table = torch.randn(bias_table_rows((4, 6)), 3, dtype=torch.float64)
    assert torch.equal(resize_bias_table(table, (4, 6), (4, 6)), table)
    one_axis = resize_bias_table(table, (4, 6), (4, 9))[:-3].view(7, 17, 3)
    expected = torch.einsum("bc,rch->rbh", torch.from_numpy(axis_matrix(6, 9)), table[:-3].view(7, 11, 3))
    torch.testing.assert_close(one_axis, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
def test_spline_is_exact_on_polynomials_and_clamps(n: int) -> None:
    knots = np.sort(np.random.default_rng(n).uniform(-3, 3, n))
    points = np.linspace(knots[0], knots[-1], 31)
    cubic = np.polynomial.Polynomial([0.3, -1.0, 0.5, 0.2][: min(n, 4)])
    np.testing.assert_allclose(spline_matrix(knots, points) @ cubic(knots), cubic(points), atol=1e-9)
    ends = spline_matrix(knots, np.array([-10.0, 10.0])) @ cubic(knots)
    np.testing.assert_allclose(ends, [cubic(knots[0]), cubic(knots[-1])], atol=1e-9)
    if n >= 5:
        values = np.sin(knots * 2)
        np.testing.assert_allclose(
            spline_matrix(knots, points) @ values, CubicSpline(knots, values)(points), atol=1e-11
        )


def test_bias_of_another_grid_is_the_bias_of_the_resized_table() -> None:
    table = torch.randn(bias_table_rows((3, 4)), 2, dtype=torch.float64, requires_grad=True)
    index = relative_position_index((5, 2))[None]
    bias = position_bias(table, (3, 4), (5, 2), index, torch.float64)
    assert bias.shape == (1, 2, 11, 11)
    resized = resize_bias_table(table, (3, 4), (5, 2))
    assert torch.equal(bias, position_bias(resized, (5, 2), (5, 2), index, torch.float64))
    assert torch.equal(bias[0, :, 0, 0], table[-1])
    bias.sum().backward()
    assert table.grad is not None


def test_position_embedding_is_resized_as_torch_does() -> None:
    embedding = torch.randn(1, 1 + 12, 5, dtype=torch.float64)
    resized = resize_position_embedding(embedding, (3, 4), (6, 5))
    maps = embedding[0, 1:].reshape(3, 4, 5).permute(2, 0, 1)[None]
    maps = F.interpolate(maps, size=(6, 5), mode="bicubic", align_corners=False)
    assert torch.equal(resized[0, 1:], maps[0].permute(1, 2, 0).reshape(30, 5))
    assert torch.equal(resized[:, 0], embedding[:, 0])
    assert resize_position_embedding(embedding, (3, 4), (3, 4)) is embedding


def test_sine_cosine_embedding_in_closed_form() -> None:
    """As MAE's on the trained grid; elsewhere at coordinates scaled to the range of that grid."""
    width, device = 12, torch.device("cpu")
    trained = sincos_embedding((3, 4), (3, 4), width, torch.float64, device)
    assert trained.shape == (1, 13, width) and not trained[0, 0].any()
    frequencies = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)], dtype=torch.float64)
    row, column = 2 * frequencies, 1 * frequencies
    expected = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()])
    torch.testing.assert_close(trained[0, 1 + 2 * 4 + 1], expected, rtol=0, atol=1e-15)
    # Twice as many rows: the two halves of row 1 lie a quarter of a patch above and below it.
    finer = sincos_embedding((6, 4), (3, 4), width, torch.float64, device)
    for i, row in ((2, 0.75 * frequencies), (3, 1.25 * frequencies)):
        expected = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()])
        torch.testing.assert_close(finer[0, 1 + i * 4 + 1], expected, rtol=0, atol=1e-15)
