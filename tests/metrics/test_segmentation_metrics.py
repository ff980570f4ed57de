"""How segmenters are judged: figures against torchmetrics and closed forms, and images of any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from beit.config.segment import IGNORE
from beit.metrics.segmentation import by_class, confusion, pixel_loss, segmentation_figures, segmentation_sums
from beit.training.metrics import json_ready


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
    assert figures["macc"] == pytest.approx(float(MulticlassAccuracy(average="macro", **options)(answer, truth)))
    assert figures["aacc"] == pytest.approx(float(MulticlassAccuracy(average="micro", **options)(answer, truth)))
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
    classes = found["classes"]
    assert found["confusion"] == {"a": {"a": 2, "c": 1}, "b": {"b": 1}, "c": {}, "d": {}}
    assert classes["c"] == {"iou": 0.0, "accuracy": None, "share": 0.0}
    assert classes["d"]["iou"] is None and classes["a"]["share"] == pytest.approx(3 / 4)


def test_nothing_is_known_without_a_labelled_pixel() -> None:
    sums = segmentation_sums(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), IGNORE))
    assert set(json_ready(segmentation_figures(sums)).values()) == {None}  # as files have it


def test_a_crop_without_labels_teaches_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), IGNORE))
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()
