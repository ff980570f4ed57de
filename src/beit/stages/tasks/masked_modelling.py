"""Masked image modelling as pre-training and its evaluation share it: what is hidden, what is predicted, the loss."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import sides
from beit.config.errors import UserError
from beit.config.pretrain import PretrainConfig
from beit.data.batches import PretrainBatch
from beit.data.views.pretraining import PretrainEvaluationView
from beit.masking import BlockwiseMasking, NoMasking, RandomMasking
from beit.metrics.tokens import TokenBaselines, patch_sums
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
from beit.tokenizers.base import VisualTokenizer

Encode = Callable[[PretrainBatch], Tensor]
"""A batch -> its tokens (B, h, w), by a frozen tokenizer."""


class TokenCache(nn.Module):
    """Tokens of the views that come again, on a grid of h w patches; alike on all ranks, part of a run's state."""

    tokens: Tensor

    def __init__(self, tokenizer: VisualTokenizer, views: int, patches: int) -> None:
        super().__init__()
        self.encode = tokenizer.encode
        dtype = torch.int16 if tokenizer.vocab_size < 2**15 else torch.int32
        self.register_buffer("tokens", torch.full((views, patches), -1, dtype=dtype))

    def forward(self, batch: PretrainBatch) -> Tensor:
        """The tokens (B, h, w) of a batch; the tokenizer is asked for those alone that are not there."""
        number = batch.number.expand(len(batch.image))
        tokens = self.tokens[number.clamp(min=0)].long()
        missing = (number < 0) | (tokens[:, 0] < 0)
        if missing.any():
            tokens[missing] = self.encode(batch.token_image[missing]).flatten(1)
        return tokens.view(batch.mask.shape)

    def keep(self, tokens: Tensor, number: Tensor) -> None:
        """Keep `tokens` (B, h w) of the views of these numbers (B,), those of all ranks; -1 of one that is not."""
        again = number >= 0
        self.tokens[number[again]] = tokens[again].to(self.tokens.dtype)


def masked_image_modelling(
    model: nn.Module, encode: Encode, batch: PretrainBatch, predict: Tensor, count: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The method: the visual tokens (B, h, w) of the images, which `encode` has of the frozen tokenizer, and of the
    predicted ones the loss and the share right.

    Paper equation 1: maximise the log-likelihood of the tokens of the hidden patches given the image without
    them. `predict` (B, h, w) says which patches to predict, those hidden by `batch.mask`, or all; `count` how many of
    each image, where that is fixed.
    """
    with torch.no_grad():
        tokens = encode(batch)
    loss, share = model(batch.image, batch.mask, predict, tokens, count)
    return tokens, loss, share


def tokens_by(tokenizer: VisualTokenizer) -> Encode:
    """What gives the tokens of a batch."""
    return lambda batch: tokenizer.encode(batch.token_image)


def evaluation_view(config: PretrainConfig, token_size: tuple[int, int]) -> PretrainEvaluationView:
    """Images without augmentation, their masks, and the tokenizer's view of them at `token_size`."""
    return PretrainEvaluationView(sides(config.image_size), token_size, masking_of(config), num_hidden(config))


def token_image_size(config: PretrainConfig, tokenizer: VisualTokenizer) -> tuple[int, int]:
    """The tokenizer's view (H, W); UserError unless it has one token for each patch."""
    size = sides(config.token_image_size) or tokenizer.image_size
    grid = config.architecture().grid
    fitting = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
    if size != fitting:
        tokens = f"{size[0] / tokenizer.stride:g}x{size[1] / tokenizer.stride:g} tokens of {size[0]}x{size[1]} px"
        wrong = f"makes {tokens}, but the encoder has {grid[0]}x{grid[1]} patches"
        mend = f"make it as many with --token-image-size {fitting[0]} {fitting[1]}, or change --image-size or"
        raise UserError(f"the tokenizer {config.tokenizer} {wrong}; {mend}, without --init, --patch-size")
    return size


def masked_image_model(config: PretrainConfig, encoder: BeitEncoder, vocab_size: int) -> MaskedImageModel:
    """The model around `encoder` that the configuration describes."""
    if config.encoder_sees == "all":
        return MaskedImageModel(encoder, vocab_size)
    num_masked, decoder = masking_of(config).num_masked, (config.decoder_depth, config.decoder_width)
    return MaskedImageModel(encoder, vocab_size, config.encoder_sees, num_masked, *decoder)


def masking_of(config: PretrainConfig) -> BlockwiseMasking | RandomMasking | NoMasking:
    """The rule that hides patches."""
    grid = config.architecture().grid
    if config.masking == "none":
        return NoMasking(grid)
    num_masked = config.hidden_patches()
    if config.masking == "random":
        return RandomMasking(grid, num_masked)
    return BlockwiseMasking(grid, num_masked, config.min_block, count=config.mask_count, aspect=config.block_aspect)


def num_hidden(config: PretrainConfig) -> int | None:
    """How many patches are hidden in every image; None where that varies."""
    return masking_of(config).num_masked if config.mask_count == "exact" else None


def patches_to_predict(config: PretrainConfig, mask: Tensor) -> Tensor:
    """The hidden patches, or all of them (ablation, paper table 4)."""
    return mask if config.predict == "masked" else torch.ones_like(mask)


def num_predicted(config: PretrainConfig) -> int | None:
    """How many they are in every image; None where that varies."""
    if config.predict == "all":
        return math.prod(config.architecture().grid)
    return num_hidden(config)


def pixel_loss(
    config: PretrainConfig, network: MaskedImageModel, model: nn.Module, batch: PretrainBatch, predict: Tensor
) -> Tensor:
    """Mean squared error of the predicted pixels; `model` is `network`, wrapped when there are several ranks."""
    predicted = model(batch.image, batch.mask, predict)
    targets = network.pixel_targets(batch.image, predict, config.pixel_norm)
    return F.mse_loss(predicted.float(), targets.float())


def token_sums(
    config: PretrainConfig,
    tokenizer: VisualTokenizer,
    baselines: TokenBaselines | None,
    model: nn.Module,
    batch: PretrainBatch,
    besides: Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Loss and accuracy of a batch's tokens, and what `baselines` score, as sums over the predicted patches; and what
    `besides` makes of the tokenizer's images, their tokens, the logits and the patches predicted."""
    predict, further = patches_to_predict(config, batch.mask), dict[str, Tensor]()
    if besides is None:
        encode, count = tokens_by(tokenizer), num_predicted(config)
        tokens, loss, share = masked_image_modelling(model, encode, batch, predict, count)
    else:
        tokens, logits = tokenizer.encode(batch.token_image), model(batch.image, batch.mask, predict)
        targets, further = tokens[predict], besides(batch.token_image, tokens, logits, predict)
        loss, share = F.cross_entropy(logits.float(), targets), (logits.argmax(1) == targets).float().mean()
    means = {"loss": loss, "token_accuracy": share}
    if baselines is not None:
        means |= baselines.losses(tokens, batch.mask, predict)
    return patch_sums(means, predict) | further


def pixel_sums(
    config: PretrainConfig, network: MaskedImageModel, model: nn.Module, batch: PretrainBatch
) -> dict[str, Tensor]:
    """The error of a batch's pixels as a sum over the predicted patches; `model` is `network`, as in pixel_loss."""
    predict = patches_to_predict(config, batch.mask)
    return patch_sums({"loss": pixel_loss(config, network, model, batch, predict)}, predict)
