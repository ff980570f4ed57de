"""Soft targets against timm's Mixup and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target, rand_bbox

from beit.data.views.mixing import BatchMixing, cut_box, cutmix, distance, mixup, partners, smoothed

pytestmark = pytest.mark.slow

LABELS = torch.tensor([0, 2, 1, 2])
TARGETS = F.one_hot(LABELS, 3).bool()
PAIRS = [0, 3, 1, 2]
"""timm mixes each image with the one as far from the end."""


def images() -> torch.Tensor:
    return torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_smoothing_is_its_closed_form_and_timms() -> None:
    targets = smoothed(TARGETS, 0.1)
    assert targets[0].tolist() == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    assert torch.allclose(targets.sum(1), torch.ones(4))
    several = torch.tensor([[True, True, False]])
    assert smoothed(several, 0.1, multilabel=True)[0].tolist() == pytest.approx([0.95, 0.95, 0.05])
    theirs = mixup_target(several, 3, smoothing=0.1, multi_label=True)
    torch.testing.assert_close(smoothed(several, 0.1, multilabel=True), theirs)


def test_mixup_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.3)
    theirs = Mixup(0.8, 0.0, label_smoothing=0.1, num_classes=3)(images(), LABELS)
    mine = mixup(images()[PAIRS], smoothed(TARGETS, 0.1)[PAIRS], 0.3)
    torch.testing.assert_close(mine, tuple(part[PAIRS] for part in theirs))
    whole = (255 * images()).byte()
    torch.testing.assert_close(mixup(whole, TARGETS.float(), 0.3)[0], mixup(whole / 255, TARGETS.float(), 0.3)[0])


def test_cutmix_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in range(12):
        monkeypatch.setattr(np.random, "beta", lambda a, b: 0.6)
        monkeypatch.setattr(np.random, "randint", lambda low, high, size, place=place: place)
        theirs = Mixup(0.0, 1.0, label_smoothing=0.1, num_classes=3)(images(), LABELS)
        box = cut_box((12, 16), 0.6, (place, place))
        top, bottom, left, right = rand_bbox((4, 3, 12, 16), 0.6)
        assert (box.top, box.top + box.height, box.left, box.left + box.width) == (top, bottom, left, right)
        mine = cutmix(images()[PAIRS], smoothed(TARGETS, 0.1)[PAIRS], box)
        torch.testing.assert_close(mine, tuple(part[PAIRS] for part in theirs))


def test_which_way_a_batch_is_mixed() -> None:
    rng = np.random.default_rng(0)
    black_and_white = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    targets = torch.eye(2)
    cut, shares = [], []
    for _ in range(2000):
        mixed, mixed_targets = BatchMixing(0.8, 1.0, 0.5)(black_and_white, targets, rng)
        share = float(mixed_targets[0, 0])
        assert mixed[0].mean() == pytest.approx(1 - share, abs=1e-5)
        cut.append(mixed[0].unique().numel() == 2 or share in (0.0, 1.0))
        shares.append(share)
    assert np.mean(cut) == pytest.approx(0.5, abs=0.05)
    # Boxes are cut off at the border, so that more than half of an image stays on average.
    assert 0.5 < np.mean(shares) < 0.62
    assert BatchMixing(0, 0)(black_and_white, targets, rng) == (black_and_white, targets)
    only_cut = [BatchMixing(0, 1.0)(black_and_white, targets, rng)[0] for _ in range(20)]
    assert all(set(mixed.unique().tolist()) <= {0.0, 1.0} for mixed in only_cut)


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("way", [{"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}])
def test_parts_of_a_batch_are_mixed_as_the_whole(way: dict[str, float], repeats: int) -> None:
    batch, targets, mixing = torch.rand(8, 3, 12, 16), torch.rand(8, 3), BatchMixing(**way, repeats=repeats)
    whole = mixing(batch, targets, np.random.default_rng(5))
    assert not torch.equal(whole[0], batch)
    for part in torch.arange(8).split(2 * distance(repeats)):
        mixed = mixing(batch[part], targets[part], np.random.default_rng(5))
        torch.testing.assert_close(mixed, (whole[0][part], whole[1][part]), rtol=0, atol=0)


def test_an_image_is_mixed_with_no_view_of_itself() -> None:
    views = torch.arange(4.0).repeat_interleave(2)[:, None]
    assert partners(views, 2).flatten().tolist() == [1, 1, 0, 0, 3, 3, 2, 2]
    for repeats in (1, 2, 3, 5):
        views = torch.arange(1024)[:, None] // repeats
        assert (partners(views, repeats) != views).all()
