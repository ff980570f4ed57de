"""How a classifier is judged and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.data.batches import LabeledBatch
from beit.data.label_file import Labels
from beit.training.metrics import over_count
from beit.visualize.pictures import captioned_grid, save_picture


def classification_sums(logits: Tensor, targets: Tensor, *, multilabel: bool = False) -> dict[str, Tensor]:
    """Loss and right answers on a batch, as sums over its images, and their `count`.

    logits: (B, C), or (B, layers, C) for several classifiers, whose sums are then of shape (layers,).
    targets: bool (B, C).
    """
    logits, targets = logits.float(), _for_each(targets, logits)
    if multilabel:
        losses = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(-1)
    else:
        losses = -(logits.log_softmax(-1) * targets).sum(-1)
    count = torch.tensor(len(logits), device=logits.device)
    sums = {"count": count, "loss": losses.sum(0), **hits(logits, targets)}
    return sums | agreement(logits, targets) if multilabel else sums


def hits(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How many of the images with logits (B, ..., C) have a true class of targets, bool (B, C), among the likeliest
    1, and 5 where there are more classes."""
    likeliest = logits.topk(min(5, logits.shape[-1])).indices
    found = _for_each(targets, logits).gather(-1, likeliest)
    first = {"top1": found[..., 0].sum(0)}
    return first | {"top5": found.any(-1).sum(0)} if logits.shape[-1] > 5 else first


def share_of_right(logits: Tensor, targets: Tensor) -> Tensor:
    """In how many of a batch's images the likeliest class of logits (B, C) is one of the strongest of soft targets
    (B, C), as a share of those that have stronger and weaker ones: not of images without any class."""
    strongest = targets.amax(1)
    clear = strongest > targets.amin(1)
    right = targets.gather(1, logits.argmax(1, keepdim=True)).squeeze(1) == strongest
    return (right & clear).sum() / clear.sum().clamp(min=1)


def _for_each(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets (B, C) for every classifier of logits (B, ..., C)."""
    if targets.dim() < logits.dim():
        targets = targets.view(len(targets), *[1] * (logits.dim() - 2), -1)
    return targets.expand_as(logits)


def agreement(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How many classes were named (probability above one half), how many are true, and how many are both; and how
    many images have a class at all."""
    named = logits > 0
    both = (named & targets).sum()
    return {"named": named.sum(), "true": targets.sum(), "both": both, "labeled": targets.any(-1).sum()}


def with_f1(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The summary of an evaluation, with F1 = 2 both / (named + true) over all classes in place of the counts. The
    likeliest classes are judged on images that have a class."""
    counts = ("named", "true", "both", "labeled")
    named, true, both, labeled = (float(totals[name]) for name in counts)
    figures = over_count({name: total for name, total in totals.items() if name not in counts})
    shares = {name: float(totals[name]) / max(1.0, labeled) for name in ("top1", "top5") if name in totals}
    return figures | shares | {"f1": 2 * both / max(1.0, named + true)}


def draw_predictions(
    labels: Labels,
    multilabel: bool,
    model: nn.Module,
    batches: Sequence[LabeledBatch],
    folder: Path,
    step: int,
) -> None:
    """Images with the classes predicted for them and, where these are wrong, the true ones."""
    [batch] = batches
    logits = model(batch.image).float()
    targets = labels.targets(batch.label)
    chosen = logits > 0 if multilabel else logits == logits.amax(1, keepdim=True)
    captions = []
    for row, truth, share in zip(chosen, targets, logits.softmax(1).amax(1), strict=True):
        predicted = _names(labels, row) if multilabel else f"{_names(labels, row)} {100 * float(share):.0f} %"
        right = torch.equal(row, truth)
        captions.append((predicted if right else f"{predicted}, is {_names(labels, truth)}", right))
    save_picture(captioned_grid(batch.image, captions), folder / f"step-{step:06d}-predictions.png")


def _names(labels: Labels, members: Tensor) -> str:
    """The classes in `members`, bool (C,), in words."""
    return ", ".join(labels.classes[index] for index in members.nonzero().flatten().tolist()) or "none"
