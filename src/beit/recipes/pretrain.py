"""`beit pretrain`: masked image modelling (paper section 2.3); its loss is in :mod:`beit.stages.masked_modelling`.

image --encoder's view---> patches, about 40 % of them replaced by [MASK] -> encoder -> logits over the codebook
image --tokenizer's view-> visual tokens on the same grid                 -> targets at the hidden patches
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import nn

from beit.checkpoints.store import load_tokenizer, weights_sha256
from beit.config.architecture import EncoderConfig, sides
from beit.config.errors import given_by
from beit.config.pretrain import PretrainConfig
from beit.data.batches import PretrainBatch
from beit.data.sources.opening import open_source
from beit.data.views.images import PretrainViews
from beit.metrics.tokens import TokenBaselines, best_mixtures, best_mixtures_of_sums, token_accuracy
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
from beit.models.memory import activations_of_encoder, activations_of_predictions
from beit.stages.masked_modelling import (
    evaluation_view,
    masked_image_modelling,
    masking_of,
    patches_to_predict,
    pixel_loss,
    pixel_sums,
    token_image_size,
    token_sums,
)
from beit.stages.method import Method
from beit.stages.stage import Stage, is_done
from beit.training.plan import StepOutput
from beit.visualize.drawings import draw_pixels, draw_tokens


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
        metrics = {"token_accuracy": token_accuracy(logits, tokens[predict])}
        metrics |= baselines.losses(tokens, batch.mask, predict)
        baselines.observe(tokens)
        return StepOutput(loss, metrics)

    token_size = token_image_size(config, tokenizer)
    return Method(
        model=model,
        step=step,
        evaluate=partial(token_sums, config, tokenizer, baselines),
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


def pixel_method(config: PretrainConfig, stage: Stage) -> Method:
    """Predict the normalised pixels of the patches (ablation, paper table 4: without visual tokens)."""
    encoder = BeitEncoder(config.architecture())
    network = MaskedImageModel(encoder, 3 * config.patch_size**2)

    def step(model: nn.Module, batch: PretrainBatch, index: int) -> StepOutput:
        return StepOutput(pixel_loss(model, network, batch, patches_to_predict(config, batch.mask)), {})

    return Method(
        model=network,
        step=step,
        evaluate=partial(pixel_sums, config, network),
        draw=draw_pixels,
        activations=activations(encoder.config, network.vocab_size),
        about=[f"predicts the normalised pixels of {config.patch_size}x{config.patch_size} patches"],
        **views(config, encoder.config.image_size),
    )


def views(config: PretrainConfig, token_size: tuple[int, int]) -> dict[str, Any]:
    """The training and evaluation views and what follows the run, as arguments of :class:`Method`."""
    size = sides(config.image_size)
    return {
        "view": PretrainViews(
            size,
            token_size,
            masking_of(config),
            min_scale=config.min_crop,
            flip=config.flip,
            color_jitter=config.color_jitter,
            mode=config.views,
        ),
        "evaluation_view": evaluation_view(config, token_size),
        "next_command": f"beit finetune --data ... --init {config.out} --out ...",
    }


def activations(encoder: EncoderConfig, vocab_size: int) -> float:
    """Bytes of activations for one image, roughly, were all patches predicted."""
    patches = encoder.grid[0] * encoder.grid[1]
    return activations_of_encoder(encoder) + activations_of_predictions(patches, vocab_size)
