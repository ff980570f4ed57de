"""Masked image modelling as pre-training and its evaluation share it: what is hidden, what is predicted, the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import sides
from beit.config.errors import UserError
from beit.config.pretrain import PretrainConfig
from beit.data.batches import PretrainBatch
from beit.data.views.images import Masking
from beit.masking import BlockwiseMasking, NoMasking, RandomMasking
from beit.metrics.tokens import TokenBaselines
from beit.models.heads import MaskedImageModel
from beit.tokenizers.base import VisualTokenizer


def masked_image_modelling(
    model: nn.Module, tokenizer: VisualTokenizer, batch: PretrainBatch, predict: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The method: the visual tokens (B, h, w) of the images, and the logits (M, V) and loss of the predicted ones.

    Paper equation 1: maximise the log-likelihood of the tokens of the hidden patches given the image without
    them. `predict` (B, h, w) says which M patches to predict: those hidden by `batch.mask`, or all.
    """
    with torch.no_grad():
        tokens = tokenizer.encode(batch.token_image)
    logits = model(batch.image, batch.mask, predict)
    return tokens, logits, F.cross_entropy(logits.float(), tokens[predict])


def pixel_loss(model: nn.Module, network: MaskedImageModel, batch: PretrainBatch, predict: Tensor) -> Tensor:
    """Mean squared error of the predicted pixels; `model` is `network`, wrapped when there are several ranks."""
    predicted = model(batch.image, batch.mask, predict)
    return F.mse_loss(predicted.float(), network.pixel_targets(batch.image, predict).float())


def token_image_size(config: PretrainConfig, tokenizer: VisualTokenizer) -> tuple[int, int]:
    """The tokenizer's view (H, W); UserError unless it has one token for each patch."""
    size = sides(config.token_image_size) or tokenizer.image_size
    grid = config.architecture().grid
    fitting = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
    if size != fitting:
        raise UserError(
            f"the tokenizer {config.tokenizer} makes {size[0] / tokenizer.stride:g}x{size[1] / tokenizer.stride:g} "
            f"tokens of {size[0]}x{size[1]} px, but the encoder has {grid[0]}x{grid[1]} patches; make it as "
            f"many with --token-image-size {fitting[0]} {fitting[1]}, or change --image-size or --patch-size"
        )
    return size


def masking_of(config: PretrainConfig) -> Masking:
    """The rule that hides patches."""
    grid = config.architecture().grid
    if config.masking == "none":
        return NoMasking(grid)
    if config.masking == "random":
        return RandomMasking(grid, config.num_masked)
    return BlockwiseMasking(
        grid, config.num_masked, config.min_block, count=config.mask_count, aspect=config.block_aspect
    )


def patches_to_predict(config: PretrainConfig, mask: Tensor) -> Tensor:
    """The hidden patches, or all of them (ablation, paper table 4)."""
    return mask if config.predict == "masked" else torch.ones_like(mask)


def accuracy(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Share of the targets (M,) that are the most likely in logits (M, V)."""
    return {"token_accuracy": (logits.argmax(dim=1) == targets).float().mean()}


def masked_token_sums(
    model: nn.Module,
    tokenizer: VisualTokenizer,
    baselines: TokenBaselines | None,
    batch: PretrainBatch,
    predict: Tensor,
) -> dict[str, Tensor]:
    """Loss and accuracy on a batch, and what `baselines` score on it, as sums over the predicted patches."""
    tokens, logits, loss = masked_image_modelling(model, tokenizer, batch, predict)
    metrics = {"loss": loss, **accuracy(logits, tokens[predict])}
    if baselines is not None:
        metrics |= baselines.losses(tokens, batch.mask, predict)
    return weighted(metrics, predict)


def weighted(means: Mapping[str, Tensor], predict: Tensor) -> dict[str, Tensor]:
    """Means over the predicted patches of a batch as sums over them, with their `count`."""
    count = predict.sum()
    return {"count": count, **{name: mean * count for name, mean in means.items()}}


def best_mixtures(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Named figures; of a baseline's losses over its mixing weights, the least."""
    return {name: float(value.min()) for name, value in means.items()}


def best_mixtures_of_sums(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The same from sums over `count` patches."""
    return best_mixtures({name: total / totals["count"] for name, total in totals.items() if name != "count"})
