"""Average precision: how well the images of a class stand before the others, at every threshold at once."""

from __future__ import annotations

import torch
from torch import Tensor


def average_precisions(scores: Tensor, targets: Tensor) -> list[float | None]:
    """For each class the sum, over the thresholds, of the recall gained there times the precision there.

    scores: (N, C), higher for surer. Images with equal scores are above or below a threshold together.
    targets: bool (N, C). A class without images has no average precision: None.
    """
    columns = zip(scores.unbind(1), targets.unbind(1), strict=True)  # one by one, to sort one at a time
    return [_average_precision(column, truth) for column, truth in columns]


def _average_precision(scores: Tensor, truth: Tensor) -> float | None:
    images = int(truth.sum())
    if not images:
        return None
    ordered, order = scores.sort(descending=True)
    found = truth[order].cumsum(0)
    # The last of the images with equal scores stands for all of them.
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(truth[:1])]).nonzero().squeeze(1)
    precision = found[last].double() / (last + 1)
    gained = found[last].diff(prepend=found.new_zeros(1)).double() / images
    return float(precision @ gained)


def mean_of_known(values: list[float | None]) -> float | None:
    """The mean of the values that there are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
