"""How often a classifier is right: tensors in, figures out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_sums(
    logits: Tensor, targets: Tensor, *, multilabel: bool = False, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Loss and right answers on a batch, as sums over its images, and their `count`; and `each`, (B, 5) or (B, 3):
    of each image, whether its likeliest class is right, 1, the true class, the likeliest, and the millionths of its
    probability; or the classes named and true, named, and true.

    logits: (B, C), or (B, layers, C) for several classifiers, whose sums are then of shape (layers,).
    targets: bool (B, C).
    weights: (C,), of the classes in the loss, where an image has one; None for all alike.
    """
    logits = logits.float()
    targets = targets.view(len(targets), *[1] * (logits.dim() - 2), -1).expand_as(logits)
    if multilabel:
        losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(-1)
    else:
        losses = -(logits.log_softmax(-1) * (targets if weights is None else targets * weights)).sum(-1)
    count = torch.tensor(len(logits), device=logits.device)
    sums = {"count": count, "loss": losses.sum(0), **hits(logits, targets)}
    if multilabel:
        answers = logits > 0  # probability above one half
        each = torch.stack([marks.sum(-1) for marks in (answers & targets, answers, targets)], dim=1)
        counts = (*each.sum(0), targets.any(-1).sum())
        sums |= dict(zip(("both", "named", "true", "labeled"), counts, strict=True))
    else:
        (surest, answer), truth = logits.softmax(-1).max(-1), targets.byte().argmax(-1)
        each = torch.stack([answer == truth, torch.ones_like(truth), truth, answer, 1e6 * surest], dim=-1)
    return sums if logits.dim() > 2 else sums | {"each": each}


def hits(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How many of the images with logits (B, ..., C) have a true class of targets, bool alike, among the likeliest 1,
    and 5 where there are more classes."""
    likeliest = logits.topk(min(5, logits.shape[-1])).indices
    right = targets.gather(-1, likeliest)
    first = {"top1": right[..., 0].sum(0)}
    return first | {"top5": right.any(-1).sum(0)} if logits.shape[-1] > 5 else first


def share_of_right(logits: Tensor, targets: Tensor) -> Tensor:
    """In how many of a batch's images the likeliest class of logits (B, C) is one of the strongest of soft targets
    (B, C), as a share of those that have stronger and weaker ones: not of images without any class."""
    strongest = targets.amax(1)
    clear = strongest > targets.amin(1)
    right = targets.gather(1, logits.argmax(1, keepdim=True)).squeeze(1) == strongest
    return (right & clear).sum() / clear.sum().clamp(min=1)


def with_f1(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The summary of an evaluation, with F1 = 2 both / (named + true) over all classes in place of the counts. The
    likeliest classes are judged on images that have a class."""
    named, true, both, labeled = (float(totals[name]) for name in ("named", "true", "both", "labeled"))
    figures = {"loss": float(totals["loss"] / float(totals["count"]))}
    shares = {name: float(totals[name]) / max(1.0, labeled) for name in ("top1", "top5") if name in totals}
    return figures | shares | {"f1": 2 * both / max(1.0, named + true)}


# ------------------------------------------------------------------------------------------------------------
# Class by class


def accuracy_by_class(labels: Tensor, answers: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy by class, its mean over the classes that occur, and the confusion matrix, all by `names`; of true and
    predicted classes, int64 (N,)."""
    pairs = Counter(zip(labels.tolist(), answers.tolist(), strict=True))
    confusion: dict[str, dict[str, int]] = {name: {} for name in names}
    for (label, answer), count in sorted(pairs.items()):
        confusion[names[label]][names[answer]] = count
    images = {name: sum(row.values()) for name, row in confusion.items()}
    classes = {
        name: {"images": images[name], "top1": row.get(name, 0) / images[name] if images[name] else None}
        for name, row in confusion.items()
    }
    mean = mean_of_present([entry["top1"] for entry in classes.values()])
    return {"mean_class_accuracy": mean, "classes": classes, "confusion": confusion}


def precision_by_class(logits: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Average precision, precision and recall by class where an image may have several, of logits and targets, bool,
    both (N, C); and the mean of the former."""
    answers = logits > 0
    counts = torch.stack([x.sum(0) for x in (answers, targets, answers & targets)])
    precisions = [*map(average_precision, logits.unbind(1), targets.unbind(1))]  # one by one, to sort one at a time
    classes = {
        name: {
            "images": true,
            "average_precision": average,
            "precision": both / predicted if predicted else None,
            "recall": both / true if true else None,
        }
        for name, average, (predicted, true, both) in zip(names, precisions, counts.T.tolist(), strict=True)
    }
    mean = mean_of_present(precisions)
    return {**({} if mean is None else {"mean_average_precision": mean}), "classes": classes}


def average_precision(scores: Tensor, truth: Tensor) -> float | None:
    """How well the images of a class stand before the others, at every threshold at once: the sum, over the
    thresholds, of the recall gained there times the precision there.

    scores: (N,), higher for surer. Images with equal scores are above or below a threshold together.
    truth: bool (N,). A class without images has no average precision: None.
    """
    images = int(truth.sum())
    if not images:
        return None
    ordered, order = scores.sort(descending=True)
    right = truth[order].cumsum(0)
    # The last of the images with equal scores stands for all of them.
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(truth[:1])]).nonzero().squeeze(1)
    precision = right[last].double() / (last + 1)
    gain = right[last].diff(prepend=right.new_zeros(1)).double() / images
    return float(precision @ gain)


def mean_of_present(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
