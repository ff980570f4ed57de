"""Evaluation of a pre-trained model: can it tell what is hidden?"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from beit.checkpoints.store import describe, load_tokenizer, weights_sha256
from beit.config.errors import UserError, given_by
from beit.config.files import read_record
from beit.config.pretrain import PretrainConfig
from beit.config.use import EvaluateConfig
from beit.data.sources.opening import open_splits
from beit.data.views.evaluation import EvaluationView
from beit.metrics.tokens import TokenBaselines, best_mixtures_of_sums
from beit.models.heads import MaskedImageModel
from beit.recipes.evaluate.bound import Bound
from beit.recipes.evaluate.images import judged_images
from beit.recipes.evaluate.kinds import Kind, TestSet
from beit.stages.batches import Machine, each_batch
from beit.stages.inference import print_notes
from beit.stages.tasks.masked_modelling import evaluation_view, pixel_sums, token_image_size, token_sums
from beit.tokenizers.base import VisualTokenizer
from beit.training.method import Evaluation
from beit.training.run.directory import run_of


def pretrained(model: MaskedImageModel, config: EvaluateConfig, machine: Machine) -> Kind:
    """Masked-token loss and accuracy beside the baselines, with masks as in the run that trained the model, and both
    terms of the bound."""
    recipe = recipe_of(model, config)
    split, source = judged_images(config, partial(open_splits, pillow=recipe.views == "exact"))
    facts: dict[str, Any] = {"target": recipe.target, "masking": recipe.masking, "predict": recipe.predict}
    if recipe.target == "pixels":
        return TestSet(split, source, evaluation_view(recipe, model.encoder.config.image_size)), Evaluation(
            evaluate_batch=partial(pixel_sums, recipe, model),
            summarise=lambda sums: {**facts, **best_mixtures_of_sums(sums)},
        )
    tokenizer = matching_tokenizer(recipe, config, machine)
    size = token_image_size(recipe, tokenizer)
    baselines = count_tokens(tokenizer, size, config, machine)
    chance = {"vocab_size": model.vocab_size, "chance_loss": math.log(model.vocab_size)}
    bound = Bound(tokenizer, recipe.predict, config.seed)

    def summarise(sums: Mapping[str, Tensor]) -> dict[str, Any]:
        of_patches = {name: total for name, total in sums.items() if not name.startswith("elbo_")}
        terms = bound.figures(sums, model.vocab_size)
        return {**facts, **best_mixtures_of_sums(of_patches), **chance, "bound": bound.words(), **terms}

    return TestSet(split, source, evaluation_view(recipe, size)), Evaluation(
        evaluate_batch=partial(token_sums, recipe, tokenizer, baselines, besides=bound.sums), summarise=summarise
    )


def recipe_of(model: MaskedImageModel, config: EvaluateConfig) -> PretrainConfig:
    """How the model was trained, from the run it lies in; elsewhere the defaults at the model's size."""
    run, encoder = run_of(config.model), model.encoder.config
    if run is not None:
        file = run / "config.yaml"
        values, unknown = read_record(file, PretrainConfig)
        if unknown:  # a run of an older or a newer version
            print_notes([f"{file}: {', '.join(unknown)} unknown to this version of beit, and left out"])
    else:
        values = {"out": "-", "image_size": encoder.image_size, "patch_size": encoder.patch_size}
        if model.num_masked is not None:  # the one number that it can be asked about
            values |= {"encoder_sees": "visible", "masking": "random", "num_masked": model.num_masked}
        pixels, about = encoder.channels * encoder.patch_size**2, describe(config.model)
        if model.vocab_size == pixels and about.get("tokenizer") is None:
            values |= {"target": "pixels", "pixel_norm": about.get("pixel_norm", "none")}
    if values.get("target") != "pixels":
        values["tokenizer"] = config.tokenizer or values.get("tokenizer")
        if values["tokenizer"] is None:
            mend = "name its run or model with --tokenizer"
            raise UserError(f"{config.model} predicts the tokens of a tokenizer; {mend}")
        if run is None:
            with given_by("--tokenizer"):
                stride = load_tokenizer(values["tokenizer"]).stride
            values["token_image_size"] = tuple(length * stride for length in encoder.grid)
    return PretrainConfig(**{**values, "data": config.data})


def matching_tokenizer(recipe: PretrainConfig, config: EvaluateConfig, machine: Machine) -> VisualTokenizer:
    """The tokenizer whose tokens the model learned to predict, and no other."""
    assert recipe.tokenizer is not None
    with given_by("--tokenizer"):
        tokenizer = load_tokenizer(recipe.tokenizer)
    expected, actual = describe(config.model).get("tokenizer"), weights_sha256(tokenizer)
    if expected is not None and expected != actual:
        weights = f"its weights are {actual[:12]}, the model wants {expected[:12]}"
        wrong = f"--tokenizer {recipe.tokenizer} is not the one that {config.model} was trained with"
        raise UserError(f"{wrong} ({weights}); name that one")
    return tokenizer.to(machine.compute.device)


def count_tokens(
    tokenizer: VisualTokenizer, size: tuple[int, int], config: EvaluateConfig, machine: Machine
) -> TokenBaselines | None:
    """Baselines that know the tokens of training images; None where the data has none."""
    try:
        source = judged_images(replace(config, split="train", limit=config.baseline_images)).source
    except UserError:
        print("no baselines: --data holds no training images to count tokens on")
        return None
    grid = size[0] // tokenizer.stride, size[1] // tokenizer.stride
    baselines = TokenBaselines(grid, tokenizer.vocab_size).to(machine.compute.device)
    passes = each_batch(
        lambda batch: tokenizer.encode(batch.image),
        source,
        EvaluationView(size),
        machine,
        batch_size=config.batch_size,
        title="counting tokens",
    )
    for *_, tokens in passes:
        baselines.count(tokens)
    return baselines
