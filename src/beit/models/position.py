"""Where a patch is: relative position bias, position embeddings, and the resizing of both.

A grid is (rows, columns) of patches; nothing here assumes that it is square.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Grid = tuple[int, int]
CLS_TOKENS = 1
"""Rows of a table of position embeddings before those of the patches: the class token's."""
CLS_ROWS = 3
"""Last rows of every bias table: class token to patch, patch to class token, class token to itself."""


def bias_table_rows(grid: Grid) -> int:
    """Rows of a bias table: one for each offset between two patches of `grid`, and three for the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ROWS


def relative_position_index(grid: Grid, device: torch.device | None = None) -> Tensor:
    """The row of the bias table for each pair (looking token, token looked at): int64 (1 + N, 1 + N).

    Row and column 0 are the class token. Computed anew where it is needed: a few integer operations cost less
    than keeping N x N buffers in every block in step with the image size.
    """
    rows, columns = grid
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    row_offset = row[:, None] - row[None, :] + rows - 1
    column_offset = column[:, None] - column[None, :] + columns - 1
    index = F.pad(row_offset * (2 * columns - 1) + column_offset, (1, 0, 1, 0))
    cls_to_patch = bias_table_rows(grid) - CLS_ROWS
    index[0, :] = cls_to_patch
    index[:, 0] = cls_to_patch + 1
    index[0, 0] = cls_to_patch + 2
    return index


def position_bias(table: Tensor, table_grid: Grid, grid: Grid, index: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of every pair of tokens, (B, heads, T, T) in `dtype`.

    table: (rows of table_grid, heads); resized when `grid` differs from `table_grid`.
    index: the row of the table of `grid` for each pair, (B, T, T), shared by all blocks of one forward pass; B is 1
        where all images have the same tokens, see :func:`relative_position_index`.
    """
    if grid != table_grid:
        table = resize_bias_table(table, table_grid, grid)
    # Gathered in the table's own precision: the gradient sums thousands of pairs into each row.
    bias = table.t().index_select(1, index.flatten())
    return bias.view(-1, *index.shape).transpose(0, 1).to(dtype)


class RelativePositionBias(nn.Module):
    """One learned bias for each head and offset between two tokens, shared by all blocks (paper appendix A); a module
    for its official name."""

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(bias_table_rows(grid), num_heads))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def sincos_embedding(grid: Grid, trained: Grid, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sine-cosine position embeddings of the patches of `grid`, (1, 1 + N, width); the class token's is zero.

    A quarter of the width each has sines and cosines of the column, and sines and cosines of the row, at frequencies
    10000**(-k / quarter) (MAE's; the formula is of "Attention is all you need"). Coordinates are patches of the
    `trained` grid: (i + .5) trained / grid - .5, so that another image size keeps their range.
    """
    return _sincos_embedding(grid, trained, width, dtype, device)


@lru_cache(maxsize=64)
def _sincos_embedding(grid: Grid, trained: Grid, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    row, column = (
        np.outer((np.arange(now) + 0.5) * before / now - 0.5, frequencies)
        for now, before in zip(grid, trained, strict=True)
    )
    row, column = np.repeat(row, grid[1], axis=0), np.tile(column, (grid[0], 1))
    patches = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
    # Kept on its device: copying it from the host would make a GPU wait in every step.
    with torch.inference_mode(False):
        return torch.from_numpy(np.pad(patches, ((1, 0), (0, 0))))[None].to(device, dtype)


def resize_bias_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Bias table of `source` (its rows, heads) -> of `target`, as the official code resizes it.

    Cubic spline along each axis over source offsets that grow geometrically, so that near neighbours keep their
    values and far ones are stretched. The three rows of the class token are kept.
    """
    rows, columns = (
        torch.from_numpy(axis_matrix(*sides)).to(table.device, table.dtype)
        for sides in zip(source, target, strict=True)
    )
    offsets = table[:-CLS_ROWS].view(2 * source[0] - 1, 2 * source[1] - 1, -1)
    with torch.autocast(table.device.type, enabled=False):
        patches = torch.einsum("ar,rch,bc->abh", rows, offsets, columns)
    return torch.cat([patches.flatten(0, 1), table[-CLS_ROWS:]])


@lru_cache(maxsize=64)
def axis_matrix(source: int, target: int) -> NDArray[np.float64]:
    """(2 target - 1, 2 source - 1): takes a bias over the offsets of `source` patches to those of `target`."""
    if source == target:
        return np.eye(2 * source - 1)
    ratio = geometric_ratio(source - 1, target - 1)
    half = np.cumsum(ratio ** np.arange(source - 1))
    knots = np.concatenate([-half[::-1], [0.0], half])
    points = np.arange(-(target - 1), target, dtype=np.float64)
    return spline_matrix(knots, points)


def geometric_ratio(terms: int, total: int) -> float:
    """q with 1 + q + ... + q**(terms - 1) = total, by the official bisection: within [1.01, 1.5], to 1e-6.

    A table that shrinks therefore keeps q = 1.01: its far offsets are cut off, not squeezed.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**terms) / (1 - ratio) > total:
            high = ratio
        else:
            low = ratio
    return ratio


def spline_matrix(knots: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(points, knots): values at `knots` -> the not-a-knot cubic spline through them at `points`.

    Points outside are clamped to the ends. Fewer than four knots give the one polynomial through them.
    """
    degree = min(3, len(knots) - 1)
    ends = np.repeat(knots[[0, -1]], degree + 1)
    # Not-a-knot: at the second knot and the last but one nothing bends, so that B-splines have no joint there.
    joints = np.sort(np.concatenate([ends, knots[2:-2]]))
    points = np.clip(points, knots[0], knots[-1])
    return np.asarray(_b_splines(joints, degree, points) @ np.linalg.inv(_b_splines(joints, degree, knots)))


def _b_splines(joints: NDArray[np.float64], degree: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The B-splines over `joints` at `points`, (points, joints - degree - 1), by the recursion of Cox and de Boor."""
    interval = np.searchsorted(joints, points, side="right") - 1
    values = np.eye(len(joints) - 1)[np.clip(interval, degree, len(joints) - degree - 2)]
    for order in range(1, degree + 1):
        span = joints[order:] - joints[:-order]
        share = (points[:, None] - joints[:-order]) / np.where(span > 0, span, 1)
        values = share[:, :-1] * values[:, :-1] + (1 - share[:, 1:]) * values[:, 1:]
    return values


def resize_position_embedding(embedding: Tensor, source: Grid, target: Grid) -> Tensor:
    """Learned position embeddings (1, 1 + N, D) of `source` -> of `target`; the class token's is kept.

    Bicubic, align_corners=False, no antialiasing: the official code's fine-tuning at another resolution.
    """
    if source == target:
        return embedding
    patches = embedding[:, 1:].view(1, *source, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=target, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
