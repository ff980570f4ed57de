"""`beit tokenizer`: train the visual tokenizer, a discrete VAE (paper section 2.1; DALL-E, appendix A)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from beit.config.tokenizer import TokenizerConfig
from beit.data.batches import ImageBatch
from beit.data.views.evaluation import EvaluationView
from beit.data.views.tokenizer import TokenizerViews
from beit.models.memory import activations_of_tokenizer
from beit.stages.method import Method
from beit.stages.stage import Stage, is_done
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.objective import (
    Anneal,
    cell_mean_mae,
    codes_used,
    count_codes,
    elbo_loss,
    kl_to_uniform,
    perplexity,
    reconstruction_mae,
)
from beit.training.plan import StepOutput
from beit.visualize.pictures import contact_sheet, save_picture, token_picture

COLLAPSED = 0.01
"""A codebook of which a smaller share carries all the images has collapsed."""


def tokenizer(config: TokenizerConfig, *, dry_run: bool = False, overwrite: bool = False) -> None:
    """Train a discrete VAE on the images of `config.data`; the run directory is `config.out`."""
    if is_done("tokenizer", config, overwrite):
        return
    stage = Stage("tokenizer", config)
    model = DiscreteVAE(config.architecture())
    size = (config.image_size, config.image_size)
    steps_of_run = stage.steps()
    temperature = Anneal(
        config.temperature, config.final_temperature, config.in_steps(config.temperature_steps, steps_of_run)
    )
    kl_weight = Anneal(0.0, config.kl_weight, config.in_steps(config.kl_steps, steps_of_run))

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

    def summarise(means: Mapping[str, Tensor]) -> dict[str, float]:
        figures = with_codebook_usage(means)
        # Few codes win the argmax while the KL divergence gains its weight and the temperature is high.
        settled = figures["temperature"] <= (config.temperature + config.final_temperature) / 2
        if settled and figures["perplexity"] < COLLAPSED * config.vocab_size:
            stage.console.say(
                f"WARNING: the codebook is collapsing: {figures['codes_used']:.0f} of {config.vocab_size} codes "
                f"in use, as many as {figures['perplexity']:.1f} used equally. Tokens like these teach an encoder "
                f"nothing; try a higher --kl-weight, a lower --lr, or a smaller --vocab-size"
            )
        return figures

    stage.train(
        Method(
            model=model,
            step=step,
            view=TokenizerViews(size, crop=config.crop, min_scale=config.min_crop),
            evaluation_view=EvaluationView(size),
            evaluate=reconstruction_sums,
            draw=draw,
            summarise=summarise,
            summarise_evaluation=reconstruction_figures,
            monitor="reconstruction_mae",
            about=[
                f"{config.vocab_size} codes, one for each {config.stride}x{config.stride} pixels: "
                f"{config.image_size} px become {config.image_size // config.stride}x"
                f"{config.image_size // config.stride} tokens"
            ],
            activations=activations_of_tokenizer(config.architecture()),
            next_command=next_command(config),
        ),
        dry_run=dry_run,
        overwrite=overwrite,
    )


def reconstruction_sums(model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
    """What a tokenizer keeps of the images of a batch, as sums over them."""
    assert isinstance(model, VisualTokenizer)
    logits = model.logits(batch.image)
    tokens = logits.argmax(dim=1)
    count = torch.tensor(float(len(tokens)), device=tokens.device)
    return {
        "count": count,
        "reconstruction_mae": count * reconstruction_mae(batch.image, model.decode(tokens)),
        "cell_mean_mae": count * cell_mean_mae(batch.image, model.stride),
        "kl": count * kl_to_uniform(logits).mean(),
        "codes": count_codes(tokens, model.vocab_size).float(),
    }


def reconstruction_figures(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The sums over many batches as means over images, and as the use of the codebook."""
    return with_codebook_usage(
        {name: value / totals["count"] for name, value in totals.items() if name != "count"}
    )


def with_codebook_usage(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Named figures, with what the (mean) counts of `codes` say about the codebook in their place."""
    figures = {name: float(value) for name, value in means.items() if name != "codes"}
    codes = means["codes"]
    return figures | {"perplexity": perplexity(codes), "codes_used": codes_used(codes)}


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
