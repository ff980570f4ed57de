"""What features and tokens are worth without any training: how often the nearest neighbours name the class, and how
many dimensions the features fill."""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""How many vote, and how fast a vote loses weight with distance (Wu et al. 2018, their temperature)."""


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, num_classes: int) -> float:
    """The share of queries (Q, F) whose class, of query_labels (Q,), their neighbours in the bank (M, F) name."""
    answers = knn_votes(queries, bank, bank_labels, num_classes).argmax(dim=1)
    return float((answers == query_labels).double().mean())


def knn_votes(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Weighted k-NN by cosine similarity (Wu et al. 2018): votes (Q, num_classes) for queries (Q, F).

    Each of the `neighbours` nearest rows of the bank (M, F) votes for its class, of bank_labels int64 (M,), with the
    weight exp(similarity / temperature), as a share of the nearest row's, so that no temperature is too low for
    float32. The mean of the bank is taken off first: features with a large common part would all be alike. No more
    neighbours vote than the smallest class has in the bank, or it could never win.
    """
    mean, sizes = bank.mean(dim=0), bank_labels.bincount()
    similarity = F.normalize(queries - mean, dim=1) @ F.normalize(bank - mean, dim=1).T
    nearest, rows = similarity.topk(min(neighbours, int(sizes[sizes > 0].min())), dim=1)
    votes = torch.zeros(len(queries), num_classes, device=queries.device, dtype=queries.dtype)
    return votes.scatter_add_(1, bank_labels[rows], ((nearest - nearest[:, :1]) / temperature).exp())


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
    near, asked = (token_frequencies(part, vocab_size).sqrt() for part in (bank, tokens))
    accuracy = knn_accuracy(near, bank_labels, asked, labels, classes)
    chance = float(labels.bincount().max()) / len(labels)
    return {"class_agreement": accuracy, "class_agreement_chance": chance}


def token_frequencies(tokens: Tensor, vocab_size: int) -> Tensor:
    """The share of each token in each image: tokens (B, h, w) -> float32 (B, V)."""
    tokens = tokens.flatten(1)
    ones = torch.ones(tokens.shape) / tokens.shape[1]
    return torch.zeros(len(tokens), vocab_size).scatter_add_(1, tokens, ones)


def effective_rank(features: Tensor) -> float:
    """How many dimensions features (M, F) fill (Roy and Vetterli 2007): the exponential of the entropy of the
    singular values of the centred features, as shares of their sum.

    From 1, all on one line, to min(M - 1, F), evenly in all directions; 0 where all rows are equal, as after a
    collapse.
    """
    centred = features.double() - features.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    # Equal rows leave the rounding of their mean, which has directions of its own.
    if values[0] <= 1e-12 * features.double().norm():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())
