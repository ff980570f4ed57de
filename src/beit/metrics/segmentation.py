"""How well predicted and true regions overlap: tensors in, figures out.

A label map holds class indices, and `IGNORE` where there is none to learn or to judge by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config.segment import IGNORE


def pixel_loss(logits: Tensor, label_map: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the labelled pixels of logits (B, C, H, W) and class indices (B, H, W), each times the
    weight of its class (C,); 0 without any.

    mmsegmentation divides by all pixels, so that there an image that is mostly padding counts for less.
    """
    total = F.cross_entropy(logits, label_map, weights, ignore_index=IGNORE, reduction="sum")
    return total / (label_map != IGNORE).sum().clamp(min=1)


def confusion(predicted: Tensor, label_map: Tensor, num_classes: int) -> Tensor:
    """Labelled pixels by class (row) and predicted class (column), int64 (C, C), of class indices of one shape."""
    place = torch.where(label_map == IGNORE, num_classes**2, label_map * num_classes + predicted).flatten()
    # Added up without asking how many there are of each: a GPU's host need not wait.
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=place.device)
    counts.scatter_add_(0, place, torch.ones_like(place))
    return counts[:-1].view(num_classes, num_classes)


def segmentation_sums(scores: Tensor, label_map: Tensor) -> dict[str, Tensor]:
    """Loss and confusion of scores (B, C, H, W) as sums over the labelled pixels, and their `count`."""
    return {
        "loss": F.cross_entropy(scores, label_map, ignore_index=IGNORE, reduction="sum"),
        "count": (label_map != IGNORE).sum(),
        "confusion": confusion(scores.argmax(1), label_map, scores.shape[1]),
    }


def overlaps(table: Tensor) -> dict[str, Tensor]:
    """Of every class of a confusion table (C, C), float64 (C,): intersection over union, the share of its pixels that
    are named right, and its share of all pixels. The first is not a number for a class that is neither there nor
    predicted, the second for one that is not there."""
    table = table.double()
    both, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
    return {"iou": both / (true + predicted - both), "accuracy": both / true, "share": true / true.sum()}


def segmentation_figures(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """mIoU and mean accuracy over the classes that occur, accuracy over all pixels; the loss where it was summed.

    Not numbers, which files have as null, where no pixel is labelled.
    """
    table = totals["confusion"].double()
    classes = overlaps(table)
    loss = {"loss": float(totals["loss"] / totals["count"])} if "loss" in totals else {}
    return {
        **loss,
        "miou": float(classes["iou"].nanmean()),
        "macc": float(classes["accuracy"].nanmean()),
        "aacc": float(table.diagonal().sum() / table.sum(1).sum()),
    }


def by_class(table: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """For each class of a confusion table: intersection over union, accuracy, and its share of the pixels; and the
    table itself, pixels of each class by the class they were given, without those of 0 pixels. All by `names`."""
    columns = overlaps(table)
    classes = {
        name: {key: None if value[i].isnan() else float(value[i]) for key, value in columns.items()}
        for i, name in enumerate(names)
    }
    counts = {
        name: {answer: count for answer, count in zip(names, row, strict=True) if count}
        for name, row in zip(names, table.long().tolist(), strict=True)
    }
    return {"classes": classes, "confusion": counts}
