"""Views: both show the same box with the same changes, at any size, from the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torchvision.transforms import ColorJitter, RandomResizedCrop

from beit.config.errors import UserError
from beit.data.views.colors import Jitter, apply_jitter, draw_jitter, to_pillow
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.geometry import center_view, draw_box
from beit.data.views.pretraining import PretrainEvaluationView, PretrainViews
from beit.data.views.tokenizer import TokenizerViews
from beit.masking import RandomMasking


def masking(rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.random((4, 6)) < 0.4


def smooth(height: int, width: int) -> torch.Tensor:
    """A picture that no resampling filter changes much, stored channels-last as decoding leaves it."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    planes = [60 + 120 * x, 60 + 120 * y, 120 + 50 * torch.sin(5 * (x + y))]
    return torch.stack(planes, -1).to(torch.uint8).permute(2, 0, 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


ALL_VIEWS = [
    PretrainViews((32, 48), (16, 24), masking),
    PretrainViews((32, 48), (16, 24), masking, mode="exact"),
    PretrainEvaluationView((32, 48), (16, 24), masking),
    EvaluationView((32, 48)),
    TokenizerViews((32, 48)),
    TokenizerViews((32, 48), crop="random_resized"),
]


@settings(max_examples=40, deadline=None)
@given(
    height=st.sampled_from([1, 3, 16, 31, 64, 300]),
    width=st.sampled_from([1, 2, 48, 200, 2000]),
    seed=st.integers(0, 1000),
)
def test_every_view_takes_every_size(height: int, width: int, seed: int) -> None:
    image = torch.from_numpy(rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
    for view in ALL_VIEWS:
        sample, again = view(image, rng(seed)), view(image, rng(seed))
        assert sample.image.shape == (3, 32, 48) and sample.image.dtype == torch.uint8
        assert all(torch.equal(a, b) for a, b in zip(sample, again, strict=True))
        if len(sample) == 3:
            assert sample.token_image.shape == (3, 16, 24)
            assert sample.mask.shape == (4, 6) and sample.mask.dtype == torch.bool


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_both_views_show_the_same(mode: str) -> None:
    views = PretrainViews((64, 64), (32, 32), masking, mode=mode)
    for seed in range(20):
        sample = views(smooth(90, 120), rng(seed))
        halved = functional.avg_pool2d(sample.image.float(), 2)
        assert (halved - sample.token_image.float()).abs().mean() < 1.5


def test_fast_and_exact_draw_the_same_and_nearly_agree() -> None:
    fast = PretrainViews((48, 48), (24, 24), masking, color_jitter=0)
    exact = PretrainViews((48, 48), (24, 24), masking, color_jitter=0, mode="exact", flip=0)
    fast_unflipped = PretrainViews((48, 48), (24, 24), masking, color_jitter=0, flip=0)
    for seed in range(10):
        a, b = fast_unflipped(smooth(90, 120), rng(seed)), exact(smooth(90, 120), rng(seed))
        assert (a.image.float() - b.image.float()).abs().max() <= 2
        assert (a.token_image.float() - b.token_image.float()).abs().max() <= 2
        assert torch.equal(a.mask, b.mask)
        c = fast(smooth(90, 120), rng(seed)).image
        assert torch.equal(c, a.image) or torch.equal(c.flip(-1), a.image)


def test_one_rendering_when_the_sizes_are_equal() -> None:
    sample = PretrainViews((32, 32), (32, 32), masking)(smooth(50, 50), rng())
    assert sample.image.data_ptr() == sample.token_image.data_ptr()


def test_shapes_must_match() -> None:
    with pytest.raises(UserError, match="--image-size 32x48"):
        PretrainViews((32, 48), (16, 16), masking)


def test_masks_are_held_to_the_number_that_their_rule_says() -> None:
    image = smooth(32, 48)
    for view in (PretrainViews, PretrainEvaluationView):
        mask = view((32, 48), (16, 24), RandomMasking((4, 6), 5), 5)(image, rng()).mask
        assert int(mask.sum()) == 5
        with pytest.raises(ValueError, match="a mask hides 5 patches, and its rule says 6"):
            view((32, 48), (16, 24), RandomMasking((4, 6), 5), 6)(image, rng())


def test_exact_mode_is_the_released_pipeline() -> None:
    """Same factors, flip and box -> the same bytes as torchvision's transforms on Pillow images."""
    image = smooth(90, 120)
    generator = rng(3)
    jitter, flip = draw_jitter(0.4, generator), generator.random() < 0.5
    box = draw_box((90, 120), 0.08, generator)
    assert jitter is not None
    picture = to_pillow(image)
    adjust = ("adjust_brightness", "adjust_contrast", "adjust_saturation")
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as official

    for step in jitter.order:
        picture = getattr(official, adjust[step])(picture, jitter[step])
    picture = official.hflip(picture) if flip else picture
    expected = [
        np.array(official.resized_crop(picture, box.top, box.left, box.height, box.width, size, mode))
        for size, mode in (([64, 64], InterpolationMode.BICUBIC), ([32, 32], InterpolationMode.LANCZOS))
    ]
    sample = PretrainViews((64, 64), (32, 32), masking, mode="exact")(image, rng(3))
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), expected[0])
    np.testing.assert_array_equal(sample.token_image.permute(1, 2, 0).numpy(), expected[1])


def test_boxes_follow_the_law_of_random_resized_crop() -> None:
    """Kolmogorov-Smirnov distance to torchvision's boxes, at a 0.1 % level for 3,000 draws each."""
    generator, blank = rng(), Image.new("RGB", (160, 90))
    torch.manual_seed(0)
    mine = np.array([draw_box((90, 160), 0.08, generator) for _ in range(3000)])
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for column in range(4):
        grid = np.arange(161)
        a, b = (np.searchsorted(np.sort(x[:, column]), grid, side="right") / 3000 for x in (mine, theirs))
        assert np.abs(a - b).max() < 1.95 * np.sqrt(2 / 3000)
    assert (mine[:, 0] + mine[:, 2]).max() <= 90 and (mine[:, 1] + mine[:, 3]).max() <= 160


def test_jitter_draws_as_torchvision() -> None:
    jitters = [draw_jitter(0.4, rng(seed)) for seed in range(600)]
    factors = np.array([j[:3] for j in jitters if j])
    low, high = ColorJitter(0.4).brightness
    assert low <= factors.min() < low + 0.01 and high - 0.01 < factors.max() <= high
    orders = [j.order for j in jitters if j]
    assert min(orders.count(order) for order in set(orders)) > 60 and len(set(orders)) == 6


def test_jitter_is_pillows_where_nothing_is_clipped() -> None:
    from PIL import ImageEnhance

    image = smooth(40, 40)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        jitter = Jitter(0.9, 0.8, 1.2, order)
        picture = to_pillow(image)
        for step in order:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
            picture = enhancer(picture).enhance(jitter[step])
        (ours,) = apply_jitter(jitter, image)
        difference = ours.permute(1, 2, 0).numpy().astype(int) - np.array(picture).astype(int)
        assert np.abs(difference).max() <= 3
    (unchanged,) = apply_jitter(Jitter(1, 1, 1, (0, 1, 2)), image)
    assert torch.equal(unchanged, image)
    (white,) = apply_jitter(Jitter(9, 1, 1, (0, 1, 2)), image)
    assert white.min() == 255


def test_center_view_is_resize_and_center_crop() -> None:
    from torchvision.transforms import v2

    official = v2.Compose([v2.Resize(73, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(64)])
    for size in ((90, 120), (130, 81), (50, 50), (40, 159)):
        image = torch.from_numpy(rng().integers(0, 256, (3, *size), dtype=np.uint8))
        difference = center_view(image, (64, 64), 64 / 73).int() - official(image).int()
        assert difference.abs().max() <= 1


def test_extreme_strips_stay_small() -> None:
    strip = torch.zeros((3, 1, 1_000_000), dtype=torch.uint8)
    assert center_view(strip, (224, 224), 0.875).shape == (3, 224, 224)


def test_tokenizer_recipe_of_dalle() -> None:
    """On coordinates as pixels: the zoom and the reach of the crops that appendix A.2 prescribes."""
    side, size = 250, 64
    ramp = torch.arange(side, dtype=torch.float32).expand(side, side)
    image = torch.stack([ramp, ramp.T, ramp]).to(torch.uint8)
    zooms, firsts = [], []
    view = TokenizerViews((size, size), flip=0)
    for seed in range(400):
        crop = view(image, rng(seed)).image.float()
        zooms.append(float(crop[0, 8, -8] - crop[0, 8, 8]) / (size - 16))
        firsts.append(float(crop[0, 8, 8]))
    targets = side / np.array(zooms)  # the side t that the square was resized to
    assert 72 - 2 < targets.min() < 74 and 94 < targets.max() < 96 + 2
    assert np.ptp(firsts) > side * 0.25


def test_small_images_are_enlarged_for_the_tokenizer() -> None:
    image = smooth(20, 20)
    sample = TokenizerViews((64, 64), flip=0)(image, rng())
    assert abs(float(sample.image.float().mean()) - float(image.float().mean())) < 3


def test_labels_pass_through() -> None:
    sample = LabeledView(EvaluationView((8, 8)))(smooth(20, 30), 7, rng())
    assert sample.label.dtype == torch.int64 and int(sample.label) == 7
