"""Evaluation of a pre-trained model: can it tell what is hidden?"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from beit.checkpoints.store import describe, load_tokenizer, weights_sha256
from beit.config.errors import UserError, given_by
from beit.config.files import read_record
from beit.config.pretrain import PretrainConfig
from beit.config.use import EvaluateConfig
from beit.data.batches import PretrainBatch
from beit.data.sources.opening import open_source
from beit.data.views.images import EvaluationView
from beit.metrics.tokens import TokenBaselines
from beit.models.heads import MaskedImageModel
from beit.recipes.evaluate.images import Damage, open_split
from beit.recipes.pretrain import (
    best_mixtures_of_sums,
    masked_token_sums,
    patches_to_predict,
    pixel_loss,
    token_image_size,
    views,
    weighted,
)
from beit.stages.batches import Machine, each_batch, run_of, tell, totals
from beit.tokenizers.base import VisualTokenizer


def evaluate_pretrained(model: MaskedImageModel, config: EvaluateConfig, machine: Machine) -> dict[str, Any]:
    """Masked-token loss and accuracy beside the baselines, with masks as in the run that trained the model."""
    recipe = recipe_of(model, config)
    source = open_split(config, partial(open_source, pillow=recipe.views == "exact"))
    tell(source.notes)
    damage = Damage(source, config.max_bad)
    if recipe.target == "pixels":
        size, more = model.encoder.config.image_size, {}

        def judge(batch: PretrainBatch) -> dict[str, Tensor]:
            predict = patches_to_predict(recipe, batch.mask)
            return weighted({"loss": pixel_loss(model, model, batch, predict)}, predict)
    else:
        tokenizer = matching_tokenizer(recipe, config, machine)
        size = token_image_size(recipe, tokenizer)
        baselines = count_tokens(tokenizer, size, model, config, machine)
        more = {"vocab_size": model.vocab_size, "chance_loss": math.log(model.vocab_size)}

        def judge(batch: PretrainBatch) -> dict[str, Tensor]:
            predict = patches_to_predict(recipe, batch.mask)
            return masked_token_sums(model, tokenizer, baselines, batch, predict)

    passes = each_batch(
        judge,
        source,
        views(recipe, size)["evaluation_view"],
        machine,
        batch_size=config.batch_size,
        seed=config.seed,
        on_bad=damage,
        title="evaluating",
    )
    sums = totals(passes)
    images = damage.figures(source)
    facts = {"target": recipe.target, "masking": recipe.masking, "predict": recipe.predict}
    return {**images, **facts, **best_mixtures_of_sums(machine.compute.sums(sums)), **more}


def recipe_of(model: MaskedImageModel, config: EvaluateConfig) -> PretrainConfig:
    """How the model was trained, from the run it lies in; elsewhere the defaults at the model's size."""
    run, encoder = run_of(config.model), model.encoder.config
    if run is not None:
        values = recorded(run)
    else:
        values = {"out": "-", "image_size": encoder.image_size, "patch_size": encoder.patch_size}
        if model.vocab_size == 3 * encoder.patch_size**2 and describe(config.model).get("tokenizer") is None:
            values["target"] = "pixels"
    if values.get("target") != "pixels":
        values["tokenizer"] = config.tokenizer or values.get("tokenizer")
        if values["tokenizer"] is None:
            raise UserError(
                f"{config.model} predicts the tokens of a tokenizer; name its run or model with --tokenizer"
            )
        if run is None:
            with given_by("--tokenizer"):
                stride = load_tokenizer(values["tokenizer"]).stride
            values["token_image_size"] = tuple(length * stride for length in encoder.grid)
    return PretrainConfig(**{**values, "data": config.data})


def recorded(run: Path) -> dict[str, Any]:
    """The configuration of a run, which may be that of an older or a newer version."""
    file = run / "config.yaml"
    values, unknown = read_record(file, PretrainConfig)
    if unknown:
        tell([f"{file}: {', '.join(unknown)} unknown to this version of beit, and left out"])
    return values


def matching_tokenizer(recipe: PretrainConfig, config: EvaluateConfig, machine: Machine) -> VisualTokenizer:
    """The tokenizer whose tokens the model learned to predict, and no other."""
    assert recipe.tokenizer is not None
    with given_by("--tokenizer"):
        tokenizer = load_tokenizer(recipe.tokenizer)
    network = cast(nn.Module, tokenizer)
    wanted, found = describe(config.model).get("tokenizer"), weights_sha256(network)
    if wanted is not None and wanted != found:
        raise UserError(
            f"--tokenizer {recipe.tokenizer} is not the one that {config.model} was trained with (its weights "
            f"are {found[:12]}, the model wants {wanted[:12]}); name that one"
        )
    network.to(machine.compute.device)
    return tokenizer


def count_tokens(
    tokenizer: VisualTokenizer,
    size: tuple[int, int],
    model: MaskedImageModel,
    config: EvaluateConfig,
    machine: Machine,
) -> TokenBaselines | None:
    """Baselines that know the tokens of training images; None where the data has none."""
    try:
        source = open_source(
            config.sources,
            "train",
            holdout=config.holdout,
            limit=config.baseline_images,
            max_megapixels=config.max_megapixels,
            seed=config.seed,
        )
    except UserError:
        print("no baselines: --data holds no training images to count tokens on")
        return None
    baselines = TokenBaselines(model.encoder.config.grid, tokenizer.vocab_size).to(machine.compute.device)
    passes = each_batch(
        lambda batch: tokenizer.encode(batch.image),
        source,
        EvaluationView(size),
        machine,
        batch_size=config.batch_size,
        title="counting tokens",
    )
    for _, tokens in passes:
        baselines.observe(tokens)
    return baselines
