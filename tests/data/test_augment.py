"""Augmentation for classification against timm, and against closed forms where only statistics can agree."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp
from torch import Tensor

from beit.data.views.classification import ClassificationView, draw_erased_box, erase
from beit.data.views.colors import from_pillow, to_pillow
from beit.data.views.geometry import Box
from beit.data.views.randaugment import OPERATIONS, RandAugment

pytestmark = pytest.mark.slow

TIMM = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def picture(height: int = 40, width: int = 56) -> Tensor:
    coarse = np.random.default_rng(0).integers(30, 220, (5, 7, 3), dtype=np.uint8)
    return from_pillow(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.31, 0.9, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_operation_is_timms(name: str, level: float, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = AugmentOp(TIMM[name], prob=1.0, magnitude=10 * level, hparams=hparams)
    if name == "posterize" and level == 1:
        theirs.magnitude = 9.9  # timm asks Pillow for 0 bits here, an error
    monkeypatch.setattr(random, "random", lambda: 0.9 if sign < 0 else 0.1)
    mine = OPERATIONS[name](to_pillow(picture()), sign * (10 * level / 10), (124, 116, 104))
    assert np.array_equal(np.array(mine), np.array(theirs(to_pillow(picture()))))


def test_randaugment_draws_as_rand_m9_mstd05_inc1() -> None:
    rng, augment, rounds = np.random.default_rng(0), RandAugment(9.0, 0.5), 20_000
    drawn = [step for _ in range(rounds) for step in augment.draw(rng)]
    # Two layers, each applied with probability one half, all operations alike.
    assert len(drawn) == pytest.approx(rounds, rel=0.02)
    counts = np.bincount([list(OPERATIONS).index(name) for name, _ in drawn], minlength=len(OPERATIONS))
    assert np.abs(counts / len(drawn) * len(OPERATIONS) - 1).max() < 0.15
    levels = np.array([level for _, level in drawn])
    assert (levels > 0).mean() == pytest.approx(0.5, abs=0.02)
    # A normal distribution around 0.9 of deviation 0.05, cut at 1, two deviations above.
    assert np.abs(levels).max() == 1 and (np.abs(levels) == 1).mean() == pytest.approx(0.0228, abs=0.005)
    assert np.median(np.abs(levels)) == pytest.approx(0.9, abs=0.003)
    assert set(RandAugment(5.0, 0.0).draw(rng)) <= {(name, s * 0.5) for name in OPERATIONS for s in (1, -1)}


def test_erased_boxes_and_their_noise() -> None:
    rng = np.random.default_rng(0)
    boxes = [box for _ in range(4000) if (box := draw_erased_box((224, 224), rng))]
    areas = np.array([box.height * box.width for box in boxes]) / 224**2
    shapes = np.log([box.height / box.width for box in boxes])
    assert (
        areas.min() > 0.018 and areas.max() < 0.34 and areas.mean() == pytest.approx((1 / 50 + 1 / 3) / 2, rel=0.03)
    )
    assert abs(shapes.mean()) < 0.03 and np.abs(shapes).max() < 1.05 * -math.log(0.3)
    box = Box(10, 20, 150, 100)
    image = torch.full((3, 224, 224), 7, dtype=torch.uint8)
    erased = erase(image, box, (0.5, 0.4, 0.6), (0.1, 0.1, 0.1), rng)
    assert (image == 7).all()
    inside = erased[:, 10:160, 20:120].float() / 255
    assert inside.mean(dim=(1, 2)).tolist() == pytest.approx([0.5, 0.4, 0.6], abs=0.003)
    assert inside.std(dim=(1, 2)).tolist() == pytest.approx([0.1] * 3, abs=0.003)
    changed = (erased != image).any(0)
    assert int(changed.sum()) > 0.99 * 150 * 100 and not changed[:10].any() and not changed[:, 120:].any()


def test_the_view_is_a_function_of_its_generator_and_plain_when_all_is_off() -> None:
    view = ClassificationView((32, 32), erasing=1.0, color_jitter=0.4)
    first, again, other = (view(picture(), 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert first.image.shape == (3, 32, 32) and first.image.dtype == torch.uint8 and first.label == 3
    plain = ClassificationView((40, 40), min_scale=1.0, flip=0.0, magnitude=0.0, erasing=0.0)
    square = picture(40, 40)
    shown = [plain(square, 0, np.random.default_rng(seed)).image for seed in range(20)]
    assert any(torch.equal(image, square) for image in shown)
    always = ClassificationView((40, 40), min_scale=1.0, flip=1.0, magnitude=0.0, erasing=0.0)
    assert any(torch.equal(always(square, 0, np.random.default_rng(s)).image, square.flip(-1)) for s in range(20))


def test_the_share_of_erased_images() -> None:
    gray = torch.full((3, 16, 16), 128, dtype=torch.uint8)
    view = ClassificationView((16, 16), magnitude=0.0, erasing=0.25)
    erased = [bool((view(gray, 0, np.random.default_rng(seed)).image != 128).any()) for seed in range(2000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.03)
