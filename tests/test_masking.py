"""Masks: the released statistics, exact counts on any grid, and a function of the generator alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beit.config.errors import UserError
from beit.masking import BlockwiseMasking, Count, RandomMasking

grids = st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda grid: grid[0] * grid[1] > 2)
counts: list[Count] = ["exact", "at_most", "more_than"]


def draw(masking: BlockwiseMasking | RandomMasking, number: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([masking(rng) for _ in range(number)])


@pytest.mark.slow
def test_at_most_has_the_statistics_of_the_released_generator() -> None:
    """Reference figures: 20,000 masks of unilm's masking_generator.py at 14x14, 75 patches, blocks of 16."""
    masks = draw(BlockwiseMasking(count="at_most"), 20_000)
    hidden = masks.sum(axis=(1, 2))
    rate = masks.mean(axis=0)

    assert hidden.mean() == pytest.approx(74.47, abs=0.1)
    assert (hidden == 75).mean() == pytest.approx(0.666, abs=0.01)
    assert 60 <= hidden.min() <= 68
    assert hidden.max() == 75
    assert rate[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.040, abs=0.01)
    assert np.concatenate([rate[0], rate[-1], rate[:, 0], rate[:, -1]]).mean() == pytest.approx(0.134, abs=0.01)
    assert rate[6:8, 6:8].mean() == pytest.approx(0.716, abs=0.01)
    # Exclusive positions would leave the last row and column visible for ever; the rule is symmetric.
    assert rate[-1] == pytest.approx(rate[0], abs=0.02)
    assert rate[:, -1] == pytest.approx(rate[0], abs=0.02)


def test_exact_hides_75_and_stays_blockwise() -> None:
    masks = draw(BlockwiseMasking(), 2000)
    assert (masks.sum(axis=(1, 2)) == 75).all()

    def hidden_neighbours(masks: np.ndarray) -> float:
        """Share of hidden patches whose right neighbour is hidden as well."""
        return float((masks[:, :, :-1] & masks[:, :, 1:]).sum() / masks[:, :, :-1].sum())

    # Blocks remain, and what fills a mask up lies beside them: .38 is the rate of random masking.
    assert hidden_neighbours(masks) > 0.75
    assert hidden_neighbours(draw(RandomMasking(), 2000)) == pytest.approx(74 / 195, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "released"), [((14, 14), 0.034), ((24, 24), 0.013)])
def test_exact_leaves_no_more_crumbs_than_the_released_rule(grid: tuple[int, int], released: float) -> None:
    """A crumb is a hidden patch with no hidden neighbour; singles drawn anywhere left one in 30 and 56 % of masks."""

    def share_with_crumbs(count: Count) -> float:
        masking = BlockwiseMasking(grid, count=count)
        masks = np.stack([masking(np.random.default_rng(seed)) for seed in range(10_000)])
        masks = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
        vertical = masks[:, :-2, 1:-1] | masks[:, 2:, 1:-1]
        horizontal = masks[:, 1:-1, :-2] | masks[:, 1:-1, 2:]
        return float((masks[:, 1:-1, 1:-1] & ~vertical & ~horizontal).any(axis=(1, 2)).mean())

    assert share_with_crumbs("exact") <= share_with_crumbs("at_most") == pytest.approx(released, abs=0.006)


@pytest.mark.parametrize("grid", [(1, 40), (40, 1), (7, 5)])
def test_all_patches_grow_from_one_where_no_block_fits(grid: tuple[int, int]) -> None:
    """A block never spans the grid: none of 30 patches and more fits into any of these."""
    masking = BlockwiseMasking(grid, num_masked=30, min_block=35)
    assert all(len(list(regions(masking(np.random.default_rng(seed))))) == 1 for seed in range(50))


def regions(mask: np.ndarray) -> Iterator[set[tuple[int, int]]]:
    """The connected regions of hidden patches (row, column)."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    while left:
        region, border = set(), {left.pop()}
        while border:
            region |= border
            border = {(r + i, c + j) for r, c in border for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))} & left
            left -= border
        yield region


def test_at_most_is_the_released_rule_to_the_bit() -> None:
    """And the paper's rule as it was: digests of masks drawn before `exact` changed."""
    digests = [
        hashlib.sha256(draw(BlockwiseMasking(count=count), 200).tobytes()).hexdigest()[:12] for count in counts[1:]
    ]
    assert digests == ["7a4b0476599a", "2e36bbdd00d0"]


def test_more_than_exceeds_the_share_of_the_paper() -> None:
    hidden = draw(BlockwiseMasking(count="more_than", aspect="uniform"), 2000).sum(axis=(1, 2))
    assert hidden.min() == 79  # the first integer above 0.4 * 196
    assert hidden.max() < 110


def test_log_uniform_blocks_are_as_often_tall_as_wide() -> None:
    """The uniform aspect ratio of the paper's text prefers tall blocks: its mean is 1.8."""

    def tallness(masking: BlockwiseMasking) -> float:
        masks = draw(masking, 2000)
        return float(masks.any(axis=2).sum() / masks.any(axis=1).sum())

    one_block = {"num_masked": 16, "min_block": 16, "count": "at_most"}
    assert tallness(BlockwiseMasking(**one_block)) == pytest.approx(1, abs=0.05)  # type: ignore[arg-type]
    assert tallness(BlockwiseMasking(aspect="uniform", **one_block)) > 1.2  # type: ignore[arg-type]


@given(grid=grids, count=st.sampled_from(counts), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_any_grid_and_count(grid: tuple[int, int], count: Count, seed: int, data: st.DataObject) -> None:
    num_patches = grid[0] * grid[1]
    num_masked = data.draw(st.none() | st.integers(1, num_patches - 1))
    assume(num_masked is not None or 0.4 * num_patches >= 1)
    masking = BlockwiseMasking(grid, num_masked, count=count)
    mask = masking(np.random.default_rng(seed))

    assert mask.shape == masking.grid == grid
    assert mask.dtype == np.bool_
    assert {
        "exact": mask.sum() == masking.num_masked,
        "at_most": 0 < mask.sum() <= masking.num_masked,
        "more_than": mask.sum() > masking.num_masked,
    }[count]
    assert (masking(np.random.default_rng(seed)) == mask).all()
    assert RandomMasking(grid, masking.num_masked)(np.random.default_rng(seed)).sum() == masking.num_masked


def test_defaults_scale_with_the_grid() -> None:
    for grid, num_masked, min_block in [
        ((14, 14), 75, 16),
        ((8, 8), 24, 5),
        ((24, 24), 220, 47),
        ((1, 2), 1, 1),
    ]:
        masking = BlockwiseMasking(grid)
        assert (masking.num_masked, masking.min_block) == (num_masked, min_block)
        assert RandomMasking(grid).num_masked == num_masked
    assert BlockwiseMasking(count="more_than").num_masked == 78


@pytest.mark.parametrize("num_masked", [-1, 0, 196, 200])
def test_hiding_nothing_or_everything_is_refused(num_masked: int) -> None:
    with pytest.raises(UserError, match=f"--num-masked {num_masked} .* choose 1 to 195"):
        BlockwiseMasking(num_masked=num_masked)
    with pytest.raises(UserError, match="--num-masked"):
        RandomMasking(num_masked=num_masked)


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(UserError, match="grid of 1x1"):
        BlockwiseMasking((1, 1))
    with pytest.raises(UserError, match="grid of 0x14"):
        RandomMasking((0, 14))
    with pytest.raises(UserError, match="--min-block 0"):
        BlockwiseMasking(min_block=0)
    with pytest.raises(UserError, match="min_aspect"):
        BlockwiseMasking(min_aspect=0)
    with pytest.raises(UserError, match="--mask-count"):
        BlockwiseMasking(count="some")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--block-aspect"):
        BlockwiseMasking(aspect="square")  # type: ignore[arg-type]
