"""Images of any size before a segmenter: windows, scales and padding against mmsegmentation's rules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.data.views.geometry import Box, render
from beit.data.views.segmentation import SegmentationEvaluationView
from beit.models.encoder import BeitEncoder
from beit.models.segmentation import SemanticSegmenter
from beit.models.windows import Inference, likeliest, multi_scale_flip, sliding_window, whole_image

Tiny = Callable[..., EncoderConfig]
Shaken = Callable[[nn.Module], nn.Module]
SMALL = EncoderConfig(image_size=(16, 16), patch_size=8, width=16, depth=2, num_heads=2)


def segmenter(config: EncoderConfig = SMALL) -> SemanticSegmenter:
    torch.manual_seed(0)
    encoder = BeitEncoder(config)
    return SemanticSegmenter(encoder, 3, decoder="upernet", layers=(0, 0, 1, 1), channels=8).eval()


def by_place(images: Tensor) -> Tensor:
    """Two "classes": the first pixel's row and column within what the predictor is shown."""
    height, width = images.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).double().expand(len(images), -1, -1, -1)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((7, 11), (4, 4), (3, 2)),
        ((5, 5), (5, 5), (1, 1)),
        ((3, 20), (8, 6), (5, 6)),
        ((2, 3), (8, 8), (5, 5)),
    ],
)
def test_windows_are_averaged_as_by_mmsegmentation(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> None:
    height, width = size
    images = torch.rand(3, 3, height, width)
    total, count = torch.zeros(3, 5, height, width, dtype=torch.float64), torch.zeros(height, width)
    # mmsegmentation's loop: as many windows as cover the image, each pushed back inside it.
    for row in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom = min(row * stride[0] + window[0], height)
            right = min(column * stride[1] + window[1], width)
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            part = (slice(None), slice(None), slice(top, bottom), slice(left, right))
            total[part] += torch.cat([by_place(images[part]), images[part].double()], dim=1)
            count[part[2:]] += 1
    sizes = []

    def predict(crops: Tensor) -> Tensor:
        sizes.append(len(crops))
        return torch.cat([by_place(crops), crops.double()], dim=1)

    result = sliding_window(predict, images, window, stride, max_batch=2)
    torch.testing.assert_close(result, total / count, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result[:, 2:], images.double())  # pixels see themselves, wherever windows lie
    assert max(sizes) <= 2
    constant = sliding_window(lambda x: torch.full((len(x), 2, *x.shape[-2:]), 0.3), images, window, stride)
    assert torch.allclose(constant, torch.tensor(0.3))


def test_windows_with_gaps_are_refused() -> None:
    with pytest.raises(UserError, match="gaps"):
        sliding_window(by_place, torch.rand(1, 3, 32, 32), (8, 8), (8, 9))


def test_an_image_of_any_size_is_padded_with_the_mean_pixel_and_cut_back(tiny: Tiny, shaken: Shaken) -> None:
    model = shaken(segmenter(tiny(pixel_mean=(0.1, 0.2, 0.3))))
    assert isinstance(model, SemanticSegmenter)
    images = torch.randint(256, (2, 3, 13, 24), dtype=torch.uint8)
    padded = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).repeat(2, 1, 16, 24)
    padded[:, :, :13] = images / 255
    torch.testing.assert_close(whole_image(model, images), model(padded)[:, :, :13])
    fitting = torch.rand(1, 3, 16, 24)
    assert torch.equal(whole_image(model, fitting), model(fitting))


def test_probabilities_are_averaged_over_scales_and_mirror_images() -> None:
    images = torch.rand(2, 3, 6, 10, dtype=torch.float64)
    sizes: list[tuple[int, ...]] = []

    def predict(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape[-2:]))
        return 3 * by_place(images)

    shares = multi_scale_flip(predict, images, [(3, 5), (6, 10)], (12, 20))
    assert sizes == [(3, 5), (3, 5), (6, 10), (6, 10)]
    expected = torch.zeros(2, 2, 12, 20, dtype=torch.float64)
    for height, width in ((3, 5), (6, 10)):
        for mirrored in (False, True):
            logits = 3 * by_place(torch.empty(2, 3, height, width))
            logits = logits.flip(-1) if mirrored else logits
            expected += F.interpolate(logits, size=(12, 20), mode="bilinear").softmax(dim=1) / 4
    torch.testing.assert_close(shares, expected)
    # A predictor of pixels alone, shown one scale, is untouched.
    plain = multi_scale_flip(lambda x: x, images, [(6, 10)], (6, 10))
    torch.testing.assert_close(plain, images.softmax(dim=1))


def test_the_likeliest_class_is_found_a_few_classes_at_a_time() -> None:
    logits = torch.randn(1, 37, 6, 9, generator=torch.Generator().manual_seed(1))
    whole = F.interpolate(logits, (15, 20), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(likeliest(logits, (15, 20)), whole)


@pytest.mark.parametrize("stride", [None, (10, 10)])
@pytest.mark.parametrize("multi_scale", [False, True])
@torch.no_grad()
def test_scores_have_the_size_of_the_label_map(stride: tuple[int, int] | None, multi_scale: bool) -> None:
    model, images = segmenter(), torch.rand(1, 3, 21, 37)
    scores = Inference(None, (16, 16), stride, multi_scale).scores(model, images, (42, 74))
    assert scores.shape == (1, 3, 42, 74)
    if multi_scale:  # logarithms of probabilities
        assert torch.allclose(scores.exp().sum(1), torch.ones(1, 42, 74), atol=1e-5)


def test_every_scale_is_made_from_the_original_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmsegmentation's rule: enlarging a reduced image again would show nothing that it had lost."""
    inputs: list[torch.Tensor] = []

    def record(model: SemanticSegmenter, images: torch.Tensor) -> torch.Tensor:
        inputs.append(images)
        return images

    monkeypatch.setattr("beit.models.windows.whole_image", record)
    pixels = torch.randint(256, (3, 96, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    inference = Inference(48, (16, 16), None, multi_scale=True)
    batch = SegmentationEvaluationView(inference.input_side)(pixels, pixels[0], np.random.default_rng(0))
    inference.scores(segmenter(), batch.image[None], (96, 120))
    for index, scale in enumerate((0.5, 0.75, 1.0, 1.25, 1.5, 1.75)):
        expected = render(pixels, Box(0, 0, 96, 120), (round(48 * scale), round(60 * scale)), mode="bilinear")
        plain, mirrored = inputs[2 * index : 2 * index + 2]
        torch.testing.assert_close(plain[0], expected / 255, atol=1.5 / 255, rtol=0)
        assert torch.equal(mirrored, plain.flip(-1))


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("stride", [None, (9, 12)])
def test_windows_are_counted_as_they_are_seen(
    stride: tuple[int, int] | None, multi_scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()

    def record(model: SemanticSegmenter, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images

    monkeypatch.setattr("beit.models.windows.whole_image", record)
    inference = Inference(None if not multi_scale else 48, (16, 16), stride, multi_scale)
    inference.scores(segmenter(), torch.rand(1, 3, 40, 61), (40, 61))
    assert inference.windows((40, 61)) == sum(seen)


@torch.no_grad()
def test_one_window_over_the_whole_image_is_one_pass() -> None:
    model, images = segmenter(), torch.rand(1, 3, 16, 16)
    whole, windows = (Inference(None, (16, 16), stride).scores(model, images, (16, 16)) for stride in (None, (8, 8)))
    torch.testing.assert_close(whole, model(images))
    torch.testing.assert_close(windows, whole)


def test_no_scale_is_smaller_than_a_window() -> None:
    """Released code, at 512 px: the two small scales become 512 px, and the others are as they are."""
    sizes = Inference(512, (512, 512), (341, 341), multi_scale=True).sizes((600, 900))
    assert [min(size) for size in sizes] == [512, 512, 512, 640, 768, 896]
    assert sizes[0] == (512, 768)


def test_the_inference_of_a_model_is_read_back() -> None:
    description = {"resize": 512, "crop": [512, 512], "stride": [341, 341], "image_size": [512, 512]}
    assert Inference.from_description(description) == Inference(512, (512, 512), (341, 341))
    foreign = {"image_size": (640, 640), "resize": None}
    assert Inference.from_description(foreign) == Inference(None, (640, 640), None)
