"""`beit tokenizer`: train the visual tokenizer, a discrete VAE (paper section 2.1; DALL-E, appendix A)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from beit.config.tokenizer import TokenizerConfig
from beit.data.batches import ImageBatch
from beit.data.views.evaluation import EvaluationView
from beit.data.views.tokenizer import TokenizerViews
from beit.models.memory import activations_of_tokenizer
from beit.stages.choices import settle
from beit.stages.session import Feed, open_images, open_session
from beit.stages.train import set_steps, train
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.objective import (
    Anneal,
    cell_mean_mae,
    count_codes,
    elbo_loss,
    reconstruction_figures,
    reconstruction_mae,
    reconstruction_sums,
    with_codebook_usage,
)
from beit.training.console import Console
from beit.training.method import Evaluation, Learner, Method, Notes, Step, StepOutput
from beit.visualize.pictures import contact_sheet, save_picture, token_picture

COLLAPSED = 0.01
"""A codebook of which a smaller share carries all the images has collapsed."""


def tokenizer(config: TokenizerConfig, *, dry_run: bool = False, overwrite: bool = False) -> None:
    """Train a discrete VAE on the images of `config.data`; the run directory is `config.out`."""
    session = open_session("tokenizer", config, dry_run=dry_run, overwrite=overwrite)
    if session is None:
        return
    images = open_images(session.config)
    session, config = settle(session, images)
    size = (config.image_size, config.image_size)
    views = TokenizerViews(size, crop=config.crop, min_scale=config.min_crop)
    feed = Feed(
        train=images.train, held_back=images.held_back, view=views, evaluation_view=EvaluationView(size)
    )
    method = partial(reconstruction_method, config, console=session.console)
    session = set_steps(session, partial(method, steps=10**6), feed)  # whose schedules hang on the steps
    train(session, method(steps=images.plan(session.config).steps), feed)


def reconstruction_method(config: TokenizerConfig, steps: int, console: Console) -> Method:
    """Learn to reconstruct images from tokens, in a run of so many steps; a collapse is said on the console."""

    def summarise(means: Mapping[str, Tensor]) -> dict[str, float]:
        figures = with_codebook_usage(means)
        # Few codes win the argmax while the KL divergence gains its weight and the temperature is high.
        is_cool = figures["temperature"] <= (config.temperature + config.final_temperature) / 2
        if is_cool and figures["perplexity"] < COLLAPSED * config.vocab_size:
            console.say(collapse_warning(figures, config.vocab_size))
        return figures

    tokens = config.image_size // config.stride
    about = (
        f"{config.vocab_size} codes, one for each {config.stride}x{config.stride} pixels: "
        f"{config.image_size} px become {tokens}x{tokens} tokens"
    )
    model = DiscreteVAE(config.architecture())
    return Method(
        learner=Learner(model=model, step=reconstruction_step(config, steps), summarise=summarise),
        evaluation=Evaluation(
            evaluate_batch=evaluate,
            summarise=reconstruction_figures,
            monitor="reconstruction_mae",
            draw=draw,
        ),
        notes=Notes(
            about=[about],
            activations=activations_of_tokenizer(model.config),
            next_command=next_command(config),
        ),
    )


def reconstruction_step(config: TokenizerConfig, steps: int) -> Step:
    """The evidence lower bound of a batch, with the temperature and the weight of the KL divergence of the step."""
    cooling = config.in_steps(config.temperature_steps, steps)
    temperature = Anneal(config.temperature, config.final_temperature, cooling)
    kl_weight = Anneal(0.0, config.kl_weight, config.in_steps(config.kl_steps, steps))

    def step(model: nn.Module, batch: ImageBatch, index: int) -> StepOutput:
        logits, statistics = model(batch.image, temperature(index))
        loss, nll, kl = elbo_loss(batch.image, logits, statistics, kl_weight(index))
        metrics = {
            "nll": nll / batch.image[0].numel(),
            "kl": kl / logits[0, 0].numel(),
            "reconstruction_mae": reconstruction_mae(batch.image, DiscreteVAE.to_images(statistics.detach())),
            "cell_mean_mae": cell_mean_mae(batch.image, config.stride),
            "codes": count_codes(logits.argmax(dim=1), config.vocab_size).float(),
            "temperature": torch.tensor(temperature(index)),
            "kl_weight": torch.tensor(kl_weight(index)),
        }
        return StepOutput(loss, metrics)

    return step


def evaluate(model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
    """What the tokenizer keeps of a batch, as sums over it."""
    return reconstruction_sums(cast(DiscreteVAE, model), batch.image)


def collapse_warning(figures: Mapping[str, float], vocab_size: int) -> str:
    """What is wrong with a codebook of which so few codes are in use, and what to try."""
    return (
        f"WARNING: the codebook is collapsing: {figures['codes_used']:.0f} of {vocab_size} codes in use, as many as "
        f"{figures['perplexity']:.1f} used equally. Tokens like these teach an encoder nothing; try a higher "
        f"--kl-weight, a lower --lr, or a smaller --vocab-size"
    )


def next_command(config: TokenizerConfig) -> str:
    """Pre-training on the same images with an encoder whose grid fits; 14x14 is that of 224 px."""
    grid = config.image_size // config.stride
    image_size, patch_size = (224, 16) if grid == 14 else (config.image_size, config.stride)
    return (
        f"beit pretrain --preset tiny --image-size {image_size} --patch-size {patch_size} "
        f"--data {' '.join(config.sources)} --tokenizer {config.out} --out {Path(config.out).parent / 'pretrain'}"
    )


def draw(model: nn.Module, batches: Sequence[ImageBatch], folder: Path, step: int) -> None:
    """Images, their tokens as colours, and what the decoder makes of the tokens."""
    [batch] = batches
    assert isinstance(model, DiscreteVAE)
    tokens = model.encode(batch.image)
    cell = batch.image.shape[-1] // tokens.shape[-1]
    sheet = contact_sheet(
        {
            "image": batch.image,
            "visual tokens": [token_picture(grid, model.vocab_size, cell) for grid in tokens],
            "decoded tokens": model.decode(tokens).float(),
        }
    )
    save_picture(sheet, folder / f"step-{step:06d}-reconstructions.png")
