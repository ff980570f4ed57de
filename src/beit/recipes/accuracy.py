"""How right a classifier is, as sums over a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the `k` highest scores: bool (B, ...) from scores (B, ..., C), labels (B,)."""
    labels = labels.view(-1, *[1] * (scores.dim() - 1))
    return (scores.topk(min(k, scores.shape[-1]), dim=-1).indices == labels).any(dim=-1)


def classification_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and right answers, summed over a batch of logits (B, ..., C) with labels (B,), and its count."""
    rows = logits.float().flatten(0, -2)
    each = labels.view(-1, *[1] * (logits.dim() - 2)).expand(logits.shape[:-1])
    loss = F.cross_entropy(rows, each.flatten(), reduction="none").view(logits.shape[:-1])
    return {
        "count": labels.new_tensor(len(labels)),
        "loss": loss.sum(dim=0),
        "top1": hits(logits, labels, 1).sum(dim=0),
        "top5": hits(logits, labels, 5).sum(dim=0),
    }
