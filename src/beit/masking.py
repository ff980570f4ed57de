"""Which patches are hidden: blockwise masking (paper section 2.3, algorithm 1) and random masking.

A mask is a bool array (rows, columns), True = hidden. It is a function of the `numpy.random.Generator` handed in
and of nothing else, so that a data loader can repeat any sample's mask.
"""

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from beit.config.errors import require

Mask = NDArray[np.bool_]
Count = Literal["exact", "at_most", "more_than"]
Aspect = Literal["log_uniform", "uniform"]

# The released recipe hides 75 of 196 patches in blocks of at least 16; other grids keep these shares.
_MASKED_SHARE = 75 / 196
_MIN_BLOCK_SHARE = 16 / 196
# The paper's algorithm 1 goes on until more than this share is hidden.
_PAPER_SHARE = 0.4
# Tries to place one block before the released rule gives up.
_ATTEMPTS = 10


class BlockwiseMasking:
    """Hides rectangles of patches until enough of the grid is hidden.

    Args:
        grid: rows and columns of patches.
        num_masked: patches to hide; default round(75/196 N). With `count="more_than"` the number to exceed;
            default floor(0.4 N), which is the paper's "until more than 0.4 N".
        min_block: smallest area drawn for a block; default max(1, round(16/196 N)). While fewer patches than
            this remain to be hidden, areas are drawn between what remains and `min_block`, as in the release.
        count: "exact" hides `num_masked` always: the released rule, then patches at the edges of its blocks.
            "at_most" is the released rule alone, which stops short in a third of the images (but hides one
            patch where that rule would hide none: a loss over no patch is not a number).
            "more_than" is the paper's algorithm 1: every block is kept, so the count varies upwards.
        aspect: how the aspect ratio is drawn from (min_aspect, 1/min_aspect): "log_uniform" as released,
            "uniform" as written in the paper.
        min_aspect: flattest block, in (0, 1].

    Raises:
        UserError: a count that hides nothing or everything, or another value outside of its range.

    The released rule favours the centre: at 14x14 a corner patch is hidden in 4 % of the masks, a centre patch in
    72 %, because blocks never leave the grid and never span it.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (14, 14),
        num_masked: int | None = None,
        min_block: int | None = None,
        count: Count = "exact",
        aspect: Aspect = "log_uniform",
        min_aspect: float = 0.3,
    ) -> None:
        for flag, value, choices in (("mask-count", count, Count), ("block-aspect", aspect, Aspect)):
            names = get_args(choices)
            require(value in names, f"--{flag} {value} is unknown; choose from {', '.join(names)}")
        require(0 < min_aspect <= 1, f"min_aspect {min_aspect} is not in (0, 1]")
        num_patches = grid[0] * grid[1]
        if num_masked is None and count == "more_than":
            num_masked = int(_PAPER_SHARE * num_patches)
        self.grid = grid
        self.num_masked = _checked_num_masked(grid, num_masked)
        self.min_block = max(1, round(_MIN_BLOCK_SHARE * num_patches)) if min_block is None else min_block
        fits = 0 < self.min_block <= num_patches
        require(fits, f"--min-block {self.min_block} is not between 1 and the {num_patches} patches")
        self.count, self.aspect, self.min_aspect = count, aspect, min_aspect

    def __call__(self, rng: np.random.Generator) -> Mask:
        """Draws one mask (rows, columns)."""
        mask = np.zeros(self.grid, dtype=np.bool_)
        cover = self._cover_more if self.count == "more_than" else self._cover_at_most
        minimum = self.num_masked if self.count == "exact" else 1
        _grow(mask, minimum - cover(mask, rng), rng)
        return mask

    def _cover_at_most(self, mask: Mask, rng: np.random.Generator) -> int:
        """The released rule: adds blocks in place without passing `num_masked`; returns the patches hidden."""
        rows, columns = self.grid
        hidden = 0
        while hidden < self.num_masked:
            remaining = self.num_masked - hidden
            for _ in range(_ATTEMPTS):
                height, width = self._block_shape(remaining, rng)
                # Strictly smaller on each side: a block never spans the grid.
                if not (0 < height < rows and 0 < width < columns):
                    continue
                block = _place(mask, height, width, rng)
                added = height * width - int(np.count_nonzero(block))
                if 0 < added <= remaining:
                    block[:] = True
                    hidden += added
                    break
            else:
                break
        return hidden

    def _cover_more(self, mask: Mask, rng: np.random.Generator) -> int:
        """The paper's algorithm 1: adds every block in place until more than `num_masked` are hidden; as above."""
        rows, columns = self.grid
        hidden = 0
        while hidden <= self.num_masked:
            height, width = self._block_shape(self.num_masked - hidden, rng)
            block = _place(mask, min(max(height, 1), rows), min(max(width, 1), columns), rng)
            hidden += block.size - int(np.count_nonzero(block))
            block[:] = True
        return hidden

    def _block_shape(self, remaining: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draws rows and columns of a block; either may be 0 or larger than the grid."""
        area = self.min_block + (remaining - self.min_block) * rng.random()
        if self.aspect == "log_uniform":
            ratio = self.min_aspect ** (1 - 2 * rng.random())
        else:
            ratio = self.min_aspect + (1 / self.min_aspect - self.min_aspect) * rng.random()
        return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))


class RandomMasking:
    """Hides `num_masked` patches chosen uniformly (paper table 4, "- blockwise masking").

    Args:
        grid: rows and columns of patches.
        num_masked: patches to hide; default round(75/196 N).

    Raises:
        UserError: a count that hides nothing or everything.
    """

    def __init__(self, grid: tuple[int, int] = (14, 14), num_masked: int | None = None) -> None:
        self.grid = grid
        self.num_masked = _checked_num_masked(grid, num_masked)

    def __call__(self, rng: np.random.Generator) -> Mask:
        """Draws one mask (rows, columns)."""
        mask = np.zeros(self.grid, dtype=np.bool_)
        mask.reshape(-1)[rng.choice(mask.size, self.num_masked, replace=False)] = True
        return mask


class NoMasking(RandomMasking):
    """Hides nothing (ablation, paper table 4)."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid, self.num_masked = grid, 0


def _place(mask: Mask, height: int, width: int, rng: np.random.Generator) -> Mask:
    """A view of `mask` of the given shape at a uniform position; the last row and column are reachable."""
    rows, columns = mask.shape
    # int(u * n) rather than rng.integers(n): ten times faster for one number, and n is far below 2^53.
    top = int(rng.random() * (rows - height + 1))
    left = int(rng.random() * (columns - width + 1))
    return mask[top : top + height, left : left + width]


def _grow(mask: Mask, missing: int, rng: np.random.Generator) -> None:
    """Hides `missing` visible patches more, in place, each beside a hidden one; from a drawn one where none is."""
    while missing > 0:
        edge = np.zeros_like(mask)
        edge[1:] |= mask[:-1]
        edge[:-1] |= mask[1:]
        edge[:, 1:] |= mask[:, :-1]
        edge[:, :-1] |= mask[:, 1:]
        edge &= ~mask
        candidates, number = np.flatnonzero(edge), missing
        if not len(candidates):  # no block was placed
            candidates, number = np.arange(mask.size), 1
        chosen = rng.choice(candidates, min(number, len(candidates)), replace=False)
        mask.reshape(-1)[chosen] = True
        missing -= len(chosen)


def _checked_num_masked(grid: tuple[int, int], num_masked: int | None) -> int:
    """`num_masked` or its default for the grid; refuses to hide nothing or everything."""
    num_patches = grid[0] * grid[1]
    size, mend = "{}x{}".format(*grid), "use larger images or smaller patches"
    require(min(grid) > 0 and num_patches > 1, f"a grid of {size} patches leaves nothing to predict from; {mend}")
    if num_masked is None:
        num_masked = round(_MASKED_SHARE * num_patches)
    asked = f"--num-masked {num_masked} of {num_patches} patches ({size})"
    hides = f"hides {'nothing' if num_masked <= 0 else 'everything'}; choose 1 to {num_patches - 1}"
    require(0 < num_masked < num_patches, f"{asked} {hides}")
    return num_masked
