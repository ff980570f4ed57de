"""How well hidden tokens are predicted, and what predictors that use no context would score on the same targets.

Without these baselines a falling loss says little: the frequencies of the tokens alone, or their frequencies at each
place, already beat ln V by a wide margin.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

LEAST_SURPRISE = 0.1
"""Nats of a unigram loss below which tokens are all but one: nothing is left to foretell."""


def of_all_ranks(rows: Tensor) -> Tensor:
    """`rows` (B, ...) of every rank, one after the other, where there are several."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    shares = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, rows.contiguous())
    return torch.cat(shares)


class TokenBaselines(nn.Module):
    """Counts of the tokens seen in training, and the cross-entropies of three predictors made from them.

    * `unigram_loss`: every token with its frequency.
    * `position_unigram_loss`: its frequency at that place of the grid, mixed with the overall frequency.
    * `copy_neighbour_loss`: the token of the nearest visible patch, mixed with the overall frequency.

    Each is a vector over mixing weights; the least of its mean over many batches is the best mixture. A batch is
    scored before it is counted, so no predictor has seen its own targets.
    """

    place_counts: Tensor
    distance: Tensor
    weights: Tensor

    def __init__(self, grid: tuple[int, int], vocab_size: int) -> None:
        super().__init__()
        rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
        self.register_buffer("place_counts", torch.zeros(len(places), vocab_size, dtype=torch.int64))
        self.register_buffer("distance", torch.cdist(places, places), persistent=False)
        # Dense near 1, where the best mixture lies when copying is nearly always right.
        weights = 1 - torch.logspace(0, -3, 31)
        self.register_buffer("weights", weights, persistent=False)

    @torch.no_grad()
    def count(self, tokens: Tensor) -> None:
        """Count `tokens` (B, h, w), those of every rank."""
        tokens = tokens.flatten(1)
        self.place_counts.scatter_add_(1, tokens.T, torch.ones_like(tokens.T, dtype=torch.int64))

    @torch.no_grad()
    def losses(self, tokens: Tensor, mask: Tensor, predict: Tensor) -> dict[str, Tensor]:
        """Cross-entropies in nats, each over the mixing weights, of `tokens` (B, h, w) where `predict`.

        `mask` is (B, h, w), True where a patch is hidden.
        """
        tokens, mask, predict = tokens.flatten(1), mask.flatten(1), predict.flatten(1)
        counts = self.place_counts.sum(0)
        frequency = (counts + 0.1) / (counts.sum() + 0.1 * len(counts))
        images_seen = self.place_counts[0].sum().clamp(min=1)
        targets = tokens[predict]
        places = predict.nonzero()[:, 1]
        at_place = self.place_counts[places, targets] / images_seen
        copied = tokens.gather(1, self._nearest_visible(mask))[predict] == targets
        overall = frequency[targets].float()
        return {
            "unigram_loss": -overall.log().mean()[None],
            "position_unigram_loss": self._mixture(at_place.float(), overall),
            "copy_neighbour_loss": self._mixture(copied.float(), overall),
        }

    def _mixture(self, likely: Tensor, overall: Tensor) -> Tensor:
        mixed = self.weights[:, None] * likely + (1 - self.weights[:, None]) * overall
        return -mixed.log().mean(dim=1)

    def _nearest_visible(self, mask: Tensor) -> Tensor:
        """The place of the nearest visible patch, for each patch: (B, N)."""
        hidden = mask[:, None, :].to(self.distance.dtype) * 1e6
        return (self.distance[None] + hidden).argmin(dim=2)


def patch_sums(means: Mapping[str, Tensor], predict: Tensor) -> dict[str, Tensor]:
    """Means over the predicted patches of a batch as sums over them, with their `count`."""
    count = predict.sum()
    return {"count": count, **{name: mean * count for name, mean in means.items()}}


def best_mixtures(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Named figures; of a baseline's losses over its mixing weights, the least."""
    return {name: float(value.min()) for name, value in means.items()}


def best_mixtures_of_sums(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The same from sums over `count` patches."""
    return best_mixtures({name: total / totals["count"] for name, total in totals.items() if name != "count"})


def predictability(losses: Mapping[str, float]) -> dict[str, float]:
    """The losses of baselines, and the share of the unigram's that copying a neighbour saves: high where copying
    suffices, not where tokens are good. It is left out where there is nothing to save."""
    unigram, copied = losses["unigram_loss"], losses["copy_neighbour_loss"]
    return {**losses, **({"predictability": 1 - copied / unigram} if unigram >= LEAST_SURPRISE else {})}
