"""Crops of images and label maps: the two stay aligned, and every random choice follows its rule."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from beit.data.views.geometry import Box
from beit.data.views.segmentation import (
    Distortion,
    SegmentationEvaluationView,
    SegmentationView,
    distort,
    draw_distortion,
    largest_share,
)
from beit.pixels import scale_size

pytestmark = pytest.mark.slow

IGNORED = 255


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rulers(height: int, width: int) -> Tensor:
    """An image that holds each pixel's row in the first channel and its column in the second."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8).expand(height, width)
    return torch.stack([rows, columns, torch.full((height, width), 200, dtype=torch.uint8)])


# ------------------------------------------------------------------------------------------------------------
# Geometry


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("base", [None, 90])
@pytest.mark.parametrize("ratio", [0.5, 0.83, 1.0, 1.3, 2.0])
def test_image_and_map_stay_aligned(ratio: float, base: int | None, axis: int) -> None:
    image = rulers(180, 240)
    view = SegmentationView((64, 80), base=base, scale=(ratio, ratio), photometric=False)
    scale = ratio * (1 if base is None else 0.5)
    flips = set()
    for seed in range(6):
        sample = view(image, image[axis], rng(seed))
        assert sample.image.shape == (3, 64, 80) and sample.label_map.shape == (64, 80)
        assert sample.image.dtype == torch.uint8 and sample.label_map.dtype == torch.int64
        inside = sample.label_map != IGNORED  # half of 180 rows at half of their size fill 45
        assert inside.any(0).sum() == min(80, round(240 * scale)) and inside.any(1).sum() == min(
            64, round(180 * scale)
        )
        difference = (sample.image[axis].long() - sample.label_map)[inside].float()
        # The map takes the nearest row, the image a mean around the same place: less than a pixel of either apart.
        assert difference.abs().max() <= max(1, round(0.5 / scale)) and difference.mean().abs() < 0.1
        shown = sample.label_map[inside].max() - sample.label_map[inside].min() + 1
        whole, part = ((180, 64), (240, 80))[axis]
        assert abs(int(shown) - min(whole, part / scale)) <= 1 / scale + 1
        if axis == 1:
            row = sample.label_map[0][inside[0]]
            flips.add(bool(row[0] > row[-1]))
    assert axis == 0 or flips == {True, False}


def test_what_the_image_does_not_fill_is_the_mean_and_no_class() -> None:
    image, label_map = torch.full((3, 20, 30), 9, dtype=torch.uint8), torch.ones(20, 30, dtype=torch.uint8)
    view = SegmentationView((32, 48), scale=(1, 1), flip=1.0, photometric=False, mean=(0.0, 0.5, 1.0))
    sample = view(image, label_map, rng())
    assert bool((sample.label_map[:20, :30] == 1).all()) and bool((sample.image[:, :20, :30] == 9).all())
    assert int((sample.label_map == IGNORED).sum()) == 32 * 48 - 20 * 30
    assert torch.equal(sample.image[:, 31, 0], torch.tensor([0, 128, 255], dtype=torch.uint8))
    assert torch.equal(sample.image[:, 0, 47], sample.image[:, 31, 0])


def test_extreme_shapes_give_crops() -> None:
    view = SegmentationView((32, 32), base=32)
    for height, width in ((1, 1), (1, 5000), (3000, 2), (33, 31)):
        label_map = torch.zeros(height, width, dtype=torch.uint8)
        for seed in range(5):
            sample = view(torch.zeros(3, height, width, dtype=torch.uint8), label_map, rng(seed))
            assert sample.image.shape == (3, 32, 32) and sample.label_map.unique().tolist() in ([0], [0, 255])


@pytest.mark.parametrize(
    ("size", "base", "ratio", "expected"),
    [
        # What mmcv's rescale_size gives for a scale of (2048, 512) times the ratio.
        ((512, 683), 512, 1.0, (512, 683)),
        ((512, 683), 512, 0.5, (256, 342)),
        ((683, 512), 512, 2.0, (1366, 1024)),
        ((300, 3000), 512, 1.0, (205, 2048)),
        ((300, 3000), 512, 0.5, (102, 1024)),
        ((360, 480), None, 1.5, (540, 720)),
    ],
)
def test_sizes_follow_the_shorter_side_up_to_a_limit(
    size: tuple[int, int], base: int | None, ratio: float, expected: tuple[int, int]
) -> None:
    assert scale_size(size, base, ratio) == expected


def test_randomness_comes_from_the_generator_alone() -> None:
    noise = torch.from_numpy(rng(1).integers(0, 256, (3, 50, 70), dtype=np.uint8))
    label_map = torch.from_numpy(rng(2).integers(0, 5, (50, 70), dtype=np.uint8))
    before = noise.clone(), label_map.clone()
    view = SegmentationView((32, 48))
    first, again, other = (view(noise, label_map, rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.image, again.image) and torch.equal(first.label_map, again.label_map)
    assert not torch.equal(first.image, other.image)
    assert torch.equal(noise, before[0]) and torch.equal(label_map, before[1])


def test_evaluation_resizes_the_image_and_never_the_map() -> None:
    image = rulers(90, 120)
    sample = SegmentationEvaluationView(45)(image, image[0], rng())
    assert sample.image.shape == (3, 45, 60) and torch.equal(sample.label_map, image[0].long())
    assert (sample.image[1, 20].float() - (2 * torch.arange(60) + 0.5))[1:-1].abs().max() <= 0.5
    assert torch.equal(SegmentationEvaluationView()(image, image[0], rng()).image, image)


# ------------------------------------------------------------------------------------------------------------
# The share of the most common class


def test_share_is_of_the_pixels_that_have_a_class() -> None:
    label_map = torch.full((40, 40), IGNORED, dtype=torch.uint8)
    label_map[:10], label_map[10:14] = 3, 7
    whole = Box(0, 0, 40, 40)
    assert largest_share(label_map, whole, (40, 40)) == pytest.approx(10 / 14)
    assert largest_share(label_map, Box(0, 0, 10, 40), (10, 40)) == 1
    assert largest_share(label_map, Box(20, 0, 20, 40), (20, 40)) == 1
    large = label_map.repeat_interleave(20, 0).repeat_interleave(20, 1)
    assert largest_share(large, Box(0, 0, 800, 800), (512, 512)) == pytest.approx(10 / 14, abs=0.01)


@pytest.mark.parametrize("tries", [1, 11])
def test_crops_with_one_class_are_drawn_again_ten_times(tries: int) -> None:
    """Of 100 columns the last 30 are of class 1; a crop of 40 shows k of them, and is liked where 10 < k <= 30."""
    label_map = torch.zeros(8, 100, dtype=torch.uint8)
    label_map[:, 70:] = 1
    image = torch.zeros(3, 8, 100, dtype=torch.uint8)
    share = 0.75 if tries > 1 else 1.0
    view = SegmentationView((8, 40), scale=(1, 1), category_share=share, photometric=False)
    draws = 1500
    shown = [int(view(image, label_map, rng(seed)).label_map[0].sum()) for seed in range(draws)]
    liked = sum(10 < k <= 30 for k in shown) / draws
    one = sum(10 < max(0, left + 40 - 70) <= 30 for left in range(61)) / 61
    expected = 1 - (1 - one) ** tries
    assert abs(liked - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5
    assert one < 0.4 and 0 in shown


# ------------------------------------------------------------------------------------------------------------
# Colours


def reference(pixel: list[float], change: Distortion) -> list[float]:
    """One pixel of 0..255 by the definitions, with the standard library's HSV."""

    def contrast(values: list[float]) -> list[float]:
        return [min(255.0, max(0.0, value * change.contrast)) for value in values]

    values = [min(255.0, max(0.0, value + change.brightness)) for value in pixel]
    if not change.contrast_last:
        values = contrast(values)
    hue, saturation, value = colorsys.rgb_to_hsv(*(v / 255 for v in values))
    turned = colorsys.hsv_to_rgb((hue + change.hue / 6) % 1, min(1.0, saturation * change.saturation), value)
    values = [255 * v for v in turned]
    return contrast(values) if change.contrast_last else values


def test_colours_change_as_hsv_says() -> None:
    generator = rng(5)
    colors = generator.integers(0, 256, (3, 6, 40), dtype=np.uint8)
    colors[:, 0, :8] = np.array([[int(bit) * 255 for bit in f"{i:03b}"] for i in range(8)]).T  # corners of the cube
    colors[:, 1, :20] = colors[:1, 1, :20]  # grays
    changes = [draw_distortion(generator) for _ in range(40)]
    changes += [
        Distortion(0, 1, 1.5, 0, True),
        Distortion(0, 1, 1, -0.6, False),
        Distortion(32, 1.5, 0.5, 0.6, True),
    ]
    for change in changes:
        changed = distort(torch.from_numpy(colors), change)
        for i in range(6):
            for j in range(40):
                expected = reference(colors[:, i, j].tolist(), change)
                assert changed[:, i, j].tolist() == pytest.approx(expected, abs=0.51)
    unchanged = distort(torch.from_numpy(colors), Distortion(0, 1, 1, 0, True))
    assert torch.equal(unchanged, torch.from_numpy(colors))


def test_strips_of_a_large_view_are_alike() -> None:
    row = torch.from_numpy(rng(6).integers(0, 256, (3, 1, 600), dtype=np.uint8))
    changed = distort(row.expand(3, 300, 600).contiguous(), Distortion(10, 1.2, 0.8, 0.3, False))
    assert changed.shape == (3, 300, 600) and torch.equal(changed, changed[:, :1].expand(3, 300, 600))


def test_a_view_changes_the_colours_last_and_alone() -> None:
    image = rulers(40, 40)
    plain, coloured = (
        SegmentationView((40, 40), scale=(1, 1), flip=0.0, photometric=photometric) for photometric in (False, True)
    )
    changed = 0  # one draw in sixteen leaves all as it is
    for seed in range(6):
        generator = rng(seed)
        shown = plain(image, image[0], generator)
        wanted = distort(shown.image, draw_distortion(generator))
        found = coloured(image, image[0], rng(seed))
        assert torch.equal(found.image, wanted) and torch.equal(found.label_map, shown.label_map)
        changed += not torch.equal(wanted, shown.image)
    assert changed > 2


def test_each_change_is_made_in_half_of_the_images() -> None:
    drawn = [draw_distortion(rng(seed)) for seed in range(2000)]
    bounds = {
        "brightness": (-32, 32, 0),
        "contrast": (0.5, 1.5, 1),
        "saturation": (0.5, 1.5, 1),
        "hue": (-0.6, 0.6, 0),
    }
    for name, (low, high, none) in bounds.items():
        values = np.array([getattr(change, name) for change in drawn])
        made = values[values != none]
        assert abs(len(made) / len(drawn) - 0.5) < 4 * 0.5 / len(drawn) ** 0.5
        assert low <= made.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < made.max() <= high
    assert abs(np.mean([change.contrast_last for change in drawn]) - 0.5) < 0.05
