"""How segmenters are judged: figures against torchmetrics and closed forms, and images of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from beit.config.architecture import EncoderConfig
from beit.data.label_maps.table import IGNORE
from beit.data.views.geometry import Box, render
from beit.data.views.segmentation import SegmentationEvaluationView
from beit.metrics.segmentation import (
    Inference,
    by_class,
    confusion,
    likeliest,
    pixel_loss,
    segmentation_figures,
    segmentation_sums,
)
from beit.models.encoder import BeitEncoder
from beit.models.memory import activations_of_segmenter
from beit.models.segmentation import SemanticSegmenter
from beit.training.metrics import json_ready

SMALL = EncoderConfig(image_size=(16, 16), patch_size=8, width=16, depth=2, num_heads=2)


def segmenter(num_classes: int = 3) -> SemanticSegmenter:
    torch.manual_seed(0)
    model = SemanticSegmenter(
        BeitEncoder(SMALL), num_classes, decoder="upernet", layers=(0, 0, 1, 1), channels=8
    )
    return model.eval()


def test_figures_are_those_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = 5
    truth = torch.randint(0, classes, (3, 20, 30), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    scores = torch.randn(3, classes, 20, 30, generator=generator) + 2 * F.one_hot(
        truth.where(truth != IGNORE, 0), classes
    ).movedim(-1, 1)
    sums = [segmentation_sums(scores[i : i + 1], truth[i : i + 1]) for i in range(3)]
    figures = segmentation_figures({name: sum(part[name] for part in sums) for name in sums[0]})
    answer = scores.argmax(1)
    options = {"num_classes": classes, "ignore_index": IGNORE}
    assert figures["miou"] == pytest.approx(float(MulticlassJaccardIndex(**options)(answer, truth)))
    assert figures["macc"] == pytest.approx(
        float(MulticlassAccuracy(average="macro", **options)(answer, truth))
    )
    assert figures["aacc"] == pytest.approx(
        float(MulticlassAccuracy(average="micro", **options)(answer, truth))
    )
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(scores, truth, ignore_index=IGNORE)))


def test_classes_that_never_occur_count_for_nothing() -> None:
    truth, answer = torch.tensor([[0, 0, 0, 1, IGNORE]]), torch.tensor([[0, 0, 2, 1, 3]])
    table = confusion(answer, truth, 4)
    assert table.tolist() == [[2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    figures = segmentation_figures({"confusion": table})
    # Class 2 is only predicted: its overlap is 0. Class 3 is neither there nor predicted where it counts.
    assert figures["miou"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["macc"] == pytest.approx((2 / 3 + 1) / 2) and figures["aacc"] == pytest.approx(3 / 4)
    found = by_class(table, ["a", "b", "c", "d"])
    assert found["c"] == {"iou": 0.0, "accuracy": None, "share": 0.0}
    assert found["d"]["iou"] is None and found["a"]["share"] == pytest.approx(3 / 4)


def test_nothing_is_known_without_a_labelled_pixel() -> None:
    sums = segmentation_sums(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), IGNORE))
    assert set(json_ready(segmentation_figures(sums)).values()) == {None}  # as files have it


def test_a_crop_without_labels_teaches_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()


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
    shown: list[torch.Tensor] = []

    def record(model: SemanticSegmenter, images: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        return images

    monkeypatch.setattr("beit.metrics.segmentation.whole_image", record)
    pixels = torch.randint(256, (3, 96, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    inference = Inference(48, (16, 16), None, multi_scale=True)
    batch = SegmentationEvaluationView(inference.reduced)(pixels, pixels[0], np.random.default_rng(0))
    inference.scores(segmenter(), batch.image[None], (96, 120))
    for index, scale in enumerate((0.5, 0.75, 1.0, 1.25, 1.5, 1.75)):
        wanted = render(pixels, Box(0, 0, 96, 120), (round(48 * scale), round(60 * scale)), mode="bilinear")
        plain, mirrored = shown[2 * index : 2 * index + 2]
        torch.testing.assert_close(plain[0], wanted / 255, atol=1.5 / 255, rtol=0)
        assert torch.equal(mirrored, plain.flip(-1))


@torch.no_grad()
def test_one_window_over_the_whole_image_is_one_pass() -> None:
    model, images = segmenter(), torch.rand(1, 3, 16, 16)
    whole, windows = (
        Inference(None, (16, 16), stride).scores(model, images, (16, 16)) for stride in (None, (8, 8))
    )
    torch.testing.assert_close(whole, model(images))
    torch.testing.assert_close(windows, whole)


def test_the_inference_of_a_model_is_read_back() -> None:
    said = {"resize": 512, "crop": [512, 512], "stride": [341, 341], "image_size": [512, 512]}
    assert Inference.described(said) == Inference(512, (512, 512), (341, 341))
    foreign = {"image_size": (640, 640), "resize": None}
    assert Inference.described(foreign) == Inference(None, (640, 640), None)


@pytest.mark.parametrize(
    ("decoder", "transposed", "within"), [("upernet", False, 1), ("pup", False, 1), ("pup", True, 0.25)]
)
def test_memory_is_told_within_a_factor_of_two(decoder: str, transposed: bool, within: float) -> None:
    """Against what autograd keeps for one more image, encoder and decoder together."""
    config = EncoderConfig(
        image_size=(64, 64), patch_size=8, width=32, depth=4, num_heads=2, position="block_bias"
    )
    layers, channels = (0, 1, 2, 3), 64
    model = SemanticSegmenter(
        BeitEncoder(config), 7, decoder=decoder, layers=layers, channels=channels, transposed=transposed
    )

    def kept(images: int) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(torch.rand(images, 3, 64, 64), auxiliary=True)
            sum(pixel_loss(x, torch.zeros(images, 64, 64, dtype=torch.int64)) for x in outputs)
        return sum(storages.values())

    measured = (kept(6) - kept(2)) / 4
    assert math.log2(activations_of_segmenter(model) / measured) == pytest.approx(0, abs=within)
