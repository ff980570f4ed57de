"""How classifiers are judged: sums, F1 and average precision against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as oracle

from beit.data.views.mixing import smoothed
from beit.metrics.classification import (
    average_precision,
    classification_sums,
    mean_of_present,
    share_of_right,
    with_f1,
)


def test_sums_are_torchmetrics_and_hold_for_every_layer() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 3, 7), torch.randint(7, (40,))
    sums = classification_sums(logits, torch.nn.functional.one_hot(labels, 7).bool())
    for layer in range(3):
        for k, name in ((1, "top1"), (5, "top5")):
            theirs = oracle.multiclass_accuracy(logits[:, layer], labels, 7, top_k=k, average="micro")
            assert float(sums[name][layer] / sums["count"]) == pytest.approx(float(theirs))
        loss = torch.nn.functional.cross_entropy(logits[:, layer], labels, reduction="sum")
        assert float(sums["loss"][layer]) == pytest.approx(float(loss), rel=1e-5)


def test_images_without_a_class_are_neither_right_nor_wrong() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, -1.0]])
    targets = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    figures = with_f1(classification_sums(logits, targets, multilabel=True))
    assert figures["top1"] == pytest.approx(0.5) and "top5" not in figures  # five of three classes say nothing
    assert float(share_of_right(logits, smoothed(targets, 0.1, multilabel=True))) == pytest.approx(0.5)
    assert figures["f1"] == pytest.approx(2 * 2 / (5 + 3))
    assert float(share_of_right(logits[2:], smoothed(targets[2:], 0.1, multilabel=True))) == 0
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert float(share_of_right(logits, mixed)) == pytest.approx(2 / 3)


def test_average_precision_is_torchmetrics() -> None:
    """Also among equal scores, which come in whole groups; a class without images counts nowhere."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.random((300, 6)))
    scores[:, 1] = scores[:, 1].round(decimals=1)
    scores[:, 2] = 0.5
    targets = torch.from_numpy(rng.random((300, 6)) < 0.2)
    targets[:, 3], targets[:, 4] = False, True
    ours = [*map(average_precision, scores.unbind(1), targets.unbind(1))]
    assert ours[3] is None and ours[4] == pytest.approx(1)
    assert ours[2] == pytest.approx(float(targets[:, 2].double().mean()))
    for column in (0, 1, 2, 4, 5):
        theirs = oracle.binary_average_precision(scores[:, column], targets[:, column].long())
        assert ours[column] == pytest.approx(float(theirs), abs=1e-6)
    present = [0, 1, 2, 4, 5]
    theirs = oracle.multilabel_average_precision(scores[:, present], targets[:, present].long(), 5)
    assert mean_of_present(ours) == pytest.approx(float(theirs), abs=1e-6)
