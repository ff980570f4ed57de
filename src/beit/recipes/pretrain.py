"""`beit pretrain`: masked image modelling (paper section 2.3); the loss: :mod:`beit.stages.tasks.masked_modelling`.

image --encoder's view---> patches, about 40 % of them replaced by [MASK] -> encoder -> logits over the codebook
image --tokenizer's view-> visual tokens on the same grid                 -> targets at the hidden patches
"""

import math
from functools import partial

import torch
from torch import nn

import beit.stages.tasks.masked_modelling as task
from beit.checkpoints.store import load_tokenizer, weights_sha256
from beit.config.architecture import sides
from beit.config.errors import given_by
from beit.config.pretrain import PretrainConfig
from beit.data.batches import PretrainBatch
from beit.data.sources.opening import open_splits
from beit.data.views.pretraining import PretrainViews
from beit.metrics.tokens import TokenBaselines, best_mixtures, best_mixtures_of_sums, of_all_ranks
from beit.models.encoder import BeitEncoder, init_weights
from beit.models.heads import MaskedImageModel
from beit.models.layers import draw_paths
from beit.stages.auto.choices import settle
from beit.stages.session import Feed, Images, Outcome, finished, open_images, open_session
from beit.stages.train import set_steps, train
from beit.tokenizers.base import VisualTokenizer
from beit.training.method import Evaluation, Learner, Method, Noise, Notes, Product, StepOutput
from beit.visualize.masked import draw_pixels, draw_tokens


def pretrain(config: PretrainConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Pre-train an encoder on the images of `config.data`, without labels; the run directory is `config.out`."""
    session = open_session("pretrain", config, dry_run=dry_run, overwrite=overwrite)
    if session is None:
        return finished(config)
    config = session.config
    images = open_images(config, partial(open_splits, pillow=config.views == "exact"))
    if config.target == "tokens":
        with given_by("--tokenizer"):
            tokenizer = load_tokenizer(str(config.tokenizer))
        session, config = settle(session, images, tokenizer)
        identity = weights_sha256(tokenizer)
        tokenizer.to(session.compute.device).requires_grad_(False)
        model, about = first_model(config, tokenizer.vocab_size, identity)
        token_size = task.token_image_size(config, tokenizer)
        method = token_method(config, model, tokenizer, identity, len(images.train))
    else:
        session, config = settle(session, images)
        token_size = sides(config.image_size)
        model, about = first_model(config, config.architecture().channels * config.patch_size**2)
        method = pixel_method(config, model)
    if config.init is not None:
        from beit.stages.start.prediction import going_on

        method = going_on(config, model, method, about)
    fed = feed(config, images, token_size)
    session = set_steps(session, lambda _: method, fed)
    from beit.stages.scores.monitor import FeatureMonitor  # watches the method, and is no part of it

    monitor = FeatureMonitor(session, session.config, config.architecture(), images)
    return train(session, monitor.watch(method), fed)


def token_method(
    config: PretrainConfig, model: MaskedImageModel, tokenizer: VisualTokenizer, identity: str, images: int
) -> Method:
    """Predict the tokens of so many `images` by a trained tokenizer, whose weights have the hash `identity`."""
    token_size = task.token_image_size(config, tokenizer)
    baselines = TokenBaselines(model.encoder.config.grid, tokenizer.vocab_size)
    count, companions, cache = task.num_predicted(config), dict[str, nn.Module](baselines=baselines), None
    if config.token_cache is not None:
        views, patches = config.token_cache * images, math.prod(model.encoder.config.grid)
        companions["token_cache"] = cache = task.TokenCache(tokenizer, views, patches)
    encode = cache or task.tokens_by(tokenizer)

    def step(model: nn.Module, batch: PretrainBatch, index: int, noise: Noise) -> StepOutput:
        predict = task.patches_to_predict(config, batch.mask)
        draw_paths(model, noise.uniform)
        tokens, loss, share = task.masked_image_modelling(model, encode, batch, predict, count)
        metrics = {"token_accuracy": share, **baselines.losses(tokens, batch.mask, predict)}
        everyone = of_all_ranks(torch.cat([tokens.flatten(1), batch.number.expand(len(tokens))[:, None]], dim=1))
        baselines.count(everyone[:, :-1])
        if cache is not None:
            cache.keep(everyone[:, :-1], everyone[:, -1])
        return StepOutput(loss, metrics)

    about = (
        f"predicts {tokenizer.vocab_size} tokens of {config.tokenizer}, read from a second view of "
        f"{token_size[0]}x{token_size[1]} px"
    )
    learner = Learner(model=model, step=step, summarise=best_mixtures, companions=companions)
    sums, draw = partial(task.token_sums, config, tokenizer, baselines), partial(draw_tokens, tokenizer)
    judging = Evaluation(evaluate_batch=sums, summarise=best_mixtures_of_sums, draw=draw)
    product = Product(tokenizer_hash=identity)
    return Method(learner=learner, evaluation=judging, product=product, notes=notes(config, model, about))


def pixel_method(config: PretrainConfig, network: MaskedImageModel) -> Method:
    """Predict the normalised pixels of the patches (ablation, paper table 4: without visual tokens)."""

    def step(model: nn.Module, batch: PretrainBatch, index: int, noise: Noise) -> StepOutput:
        predict = task.patches_to_predict(config, batch.mask)
        draw_paths(model, noise.uniform)
        return StepOutput(task.pixel_loss(config, network, model, batch, predict), {})

    about = f"predicts the normalised pixels of {config.patch_size}x{config.patch_size} patches"
    if config.pixel_norm == "patch":
        about += ", each by its own mean and deviation"
    learner = Learner(model=network, step=step)
    sums, draw = partial(task.pixel_sums, config, network), partial(draw_pixels, config.pixel_norm)
    judging = Evaluation(evaluate_batch=sums, draw=draw)
    product = Product(description={"pixel_norm": config.pixel_norm})
    return Method(learner=learner, evaluation=judging, product=product, notes=notes(config, network, about))


def first_model(
    config: PretrainConfig, vocab_size: int, tokenizer: str | None = None
) -> tuple[MaskedImageModel, list[str]]:
    """The model before its first step, and what it keeps of another; `tokenizer` is a hash of its weights."""
    if config.init is not None:
        from beit.stages.start.prediction import starting_masked_model

        return starting_masked_model(config, vocab_size, tokenizer)
    model = task.masked_image_model(config, BeitEncoder(config.architecture()), vocab_size)
    init_weights(model, config.init_scheme)
    return model, []


def feed(config: PretrainConfig, images: Images, token_size: tuple[int, int]) -> Feed:
    """The images in views for the encoder, with its mask, and for the tokenizer, `token_size` (H, W) large."""
    size = sides(config.image_size)
    masking, hidden = task.masking_of(config), task.num_hidden(config)
    changes = {"min_scale": config.min_crop, "flip": config.flip, "color_jitter": config.color_jitter}
    view = PretrainViews(size, token_size, masking, hidden, mode=config.views, **changes)
    shown = task.evaluation_view(config, token_size)
    return Feed(images=images._replace(test=None), view=view, evaluation_view=shown, cycle=config.token_cache)


def notes(config: PretrainConfig, model: MaskedImageModel, about: str) -> Notes:
    """What is said of the run."""
    patches = math.prod(model.encoder.grid)
    lines = [about]
    if model.decoder is not None:
        hidden, depth, width = model.num_masked or 0, model.decoder_depth, model.decoder_width
        seen = f"the encoder sees {patches - hidden} of {patches} patches"
        lines.append(f"{seen}; a decoder {depth} deep and {width} wide predicts the others")
    return Notes(about=lines, next_command=f"beit finetune --data ... --init {config.out} --out ...")
