"""`beit pretrain`: masked image modelling (paper section 2.3). The method is :func:`masked_image_modelling`.

image --encoder's view---> patches, about 40 % of them replaced by [MASK] -> encoder -> logits over the codebook
image --tokenizer's view-> visual tokens on the same grid                 -> targets at the hidden patches
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.checkpoints.store import load_tokenizer, weights_sha256
from beit.config.architecture import EncoderConfig, sides
from beit.config.errors import UserError, given_by
from beit.config.pretrain import PretrainConfig
from beit.data.batches import PretrainBatch
from beit.data.sources.opening import open_source
from beit.data.views.pretraining import Masking, PretrainEvaluationView, PretrainViews
from beit.masking import BlockwiseMasking, NoMasking, RandomMasking
from beit.metrics.tokens import TokenBaselines
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
from beit.models.memory import activations_of_encoder, activations_of_predictions
from beit.stages.method import Method
from beit.stages.stage import Stage, is_done
from beit.tokenizers.base import VisualTokenizer
from beit.training.plan import StepOutput
from beit.visualize.drawings import draw_pixels, draw_tokens


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


def pretrain(config: PretrainConfig, *, dry_run: bool = False, overwrite: bool = False) -> None:
    """Pre-train an encoder on the images of `config.data`, ignoring labels; the run directory is `config.out`."""
    if is_done("pretrain", config, overwrite):
        return
    stage = Stage("pretrain", config, partial(open_source, pillow=config.views == "exact"))
    method = token_method(config, stage) if config.target == "tokens" else pixel_method(config, stage)
    stage.train(method, dry_run=dry_run, overwrite=overwrite)


def token_method(config: PretrainConfig, stage: Stage) -> Method:
    """Predict the visual tokens of a trained tokenizer."""
    assert config.tokenizer is not None
    with given_by("--tokenizer"):
        tokenizer = load_tokenizer(config.tokenizer)
    identity = weights_sha256(cast(nn.Module, tokenizer))
    stage.freeze(cast(nn.Module, tokenizer))
    encoder = BeitEncoder(config.architecture())
    model = MaskedImageModel(encoder, tokenizer.vocab_size)
    baselines = TokenBaselines(encoder.config.grid, tokenizer.vocab_size)

    def step(model: nn.Module, batch: PretrainBatch, index: int) -> StepOutput:
        predict = patches_to_predict(config, batch.mask)
        tokens, logits, loss = masked_image_modelling(model, tokenizer, batch, predict)
        metrics = accuracy(logits, tokens[predict]) | baselines.losses(tokens, batch.mask, predict)
        baselines.observe(tokens)
        return StepOutput(loss, metrics)

    def evaluate(model: nn.Module, batch: PretrainBatch) -> dict[str, Tensor]:
        predict = patches_to_predict(config, batch.mask)
        return masked_token_sums(model, tokenizer, baselines, batch, predict)

    token_size = token_image_size(config, tokenizer)
    return Method(
        model=model,
        step=step,
        evaluate=evaluate,
        draw=partial(draw_tokens, tokenizer),
        summarise=best_mixtures,
        summarise_evaluation=best_mixtures_of_sums,
        companions={"baselines": baselines},
        activations=activations(encoder.config, tokenizer.vocab_size),
        tokenizer_hash=identity,
        about=[
            f"predicts {tokenizer.vocab_size} tokens of {config.tokenizer}, "
            f"read from a second view of {token_size[0]}x{token_size[1]} px"
        ],
        **views(config, token_size),
    )


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


def pixel_method(config: PretrainConfig, stage: Stage) -> Method:
    """Predict the normalised pixels of the patches (ablation, paper table 4: without visual tokens)."""
    encoder = BeitEncoder(config.architecture())
    network = MaskedImageModel(encoder, 3 * config.patch_size**2)

    def step(model: nn.Module, batch: PretrainBatch, index: int) -> StepOutput:
        return StepOutput(pixel_loss(model, network, batch, patches_to_predict(config, batch.mask)), {})

    def evaluate(model: nn.Module, batch: PretrainBatch) -> dict[str, Tensor]:
        predict = patches_to_predict(config, batch.mask)
        return weighted({"loss": pixel_loss(model, network, batch, predict)}, predict)

    return Method(
        model=network,
        step=step,
        evaluate=evaluate,
        draw=draw_pixels,
        activations=activations(encoder.config, network.vocab_size),
        about=[f"predicts the normalised pixels of {config.patch_size}x{config.patch_size} patches"],
        **views(config, encoder.config.image_size),
    )


def pixel_loss(model: nn.Module, network: MaskedImageModel, batch: PretrainBatch, predict: Tensor) -> Tensor:
    """Mean squared error of the predicted pixels; `model` is `network`, wrapped when there are several ranks."""
    predicted = model(batch.image, batch.mask, predict)
    return F.mse_loss(predicted.float(), network.pixel_targets(batch.image, predict).float())


def views(config: PretrainConfig, token_size: tuple[int, int]) -> dict[str, Any]:
    """The training and evaluation views and what follows the run, as arguments of :class:`Method`."""
    size = sides(config.image_size)
    masking = masking_of(config)
    return {
        "view": PretrainViews(
            size,
            token_size,
            masking,
            min_scale=config.min_crop,
            flip=config.flip,
            color_jitter=config.color_jitter,
            mode=config.views,
        ),
        "evaluation_view": PretrainEvaluationView(size, token_size, masking),
        "next_command": f"beit finetune --data ... --init {config.out} --out ...",
    }


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


def activations(encoder: EncoderConfig, vocab_size: int) -> float:
    """Bytes of activations for one image, roughly, were all patches predicted."""
    patches = encoder.grid[0] * encoder.grid[1]
    return activations_of_encoder(encoder) + activations_of_predictions(patches, vocab_size)


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
