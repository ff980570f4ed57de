"""Whether images of one class have like tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from beit.metrics.neighbours import knn_accuracy


def class_agreement(
    bank: Tensor, bank_labels: Tensor, tokens: Tensor, labels: Tensor, vocab_size: int
) -> dict[str, float]:
    """How often images with like tokens are of one class: k-NN of the tokens (B, h, w) of labelled images among those
    (M, h, w) of a bank, on square roots of token frequencies, and what naming the commonest class would score.

    Labels are int64, -1 for none; nothing where there are fewer than two classes.
    """
    bank, bank_labels = bank[bank_labels >= 0], bank_labels[bank_labels >= 0]
    tokens, labels = tokens[labels >= 0], labels[labels >= 0]
    if not len(labels) or len(torch.unique(bank_labels)) < 2:
        return {}
    classes = 1 + int(max(bank_labels.max(), labels.max()))
    accuracy = knn_accuracy(
        token_frequencies(bank, vocab_size).sqrt(),
        bank_labels,
        token_frequencies(tokens, vocab_size).sqrt(),
        labels,
        classes,
    )
    chance = float(labels.bincount().max()) / len(labels)
    return {"class_agreement": accuracy, "class_agreement_chance": chance}


def token_frequencies(tokens: Tensor, vocab_size: int) -> Tensor:
    """The share of each token in each image: tokens (B, h, w) -> float32 (B, V)."""
    tokens = tokens.flatten(1)
    ones = torch.ones(tokens.shape) / tokens.shape[1]
    return torch.zeros(len(tokens), vocab_size).scatter_add_(1, tokens, ones)
