"""`beit evaluate`: how good a model is on images, measured as its kind asks."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import Tensor, nn

from beit.checkpoints.store import kind_of, load_model, load_tokenizer, weights_sha256
from beit.config import EvaluateConfig, PretrainConfig, RunFailed, UserError
from beit.config_file import read_yaml
from beit.data.base import Source, Split
from beit.data.batches import PretrainBatch
from beit.data.combined import Concatenation
from beit.data.sources import open_source
from beit.data.views import EvaluationView, LabeledView
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.recipes.accuracy import classification_sums
from beit.recipes.evaluation_tables import show
from beit.recipes.inference import (
    Machine,
    classifier_view,
    complain,
    described,
    each_batch,
    open_machine,
    run_of,
    totals,
)
from beit.recipes.pretrain import (
    best_mixtures_of_sums,
    masked_token_sums,
    patches_to_predict,
    pixel_loss,
    token_image_size,
    views,
    weighted,
)
from beit.recipes.token_baselines import TokenBaselines
from beit.recipes.tokenizer import reconstruction_figures, reconstruction_sums
from beit.tokenizers.base import VisualTokenizer
from beit.training.checkpoint_files import write_text

HANDFUL = 5
"""Damaged files that never make an evaluation worthless, however few images there are."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the figures of `config.model` on `config.data`, write them to `config.out`, and return them."""
    model = load_model(config.model)
    if config.tokenizer is not None and not isinstance(model, MaskedImageModel):
        raise UserError(f"--tokenizer is for pre-trained models, and {config.model} is none; drop it")
    machine = open_machine(config.precision, config.workers)
    model.to(machine.compute.device)
    if isinstance(model, ImageClassifier | LinearProbe):
        figures = evaluate_classifier(model, config, machine)
    elif isinstance(model, MaskedImageModel):
        figures = evaluate_pretrained(model, config, machine)
    elif isinstance(model, VisualTokenizer):
        figures = evaluate_tokenizer(model, config, machine)
    else:
        raise UserError(
            f"{config.model} is a {kind_of(model)} model, of which there is nothing to evaluate; "
            f"beit probe judges an encoder"
        )
    figures = {"model": config.model, "kind": kind_of(model), "split": config.split, **figures}
    # A file or pipe has no width to keep to.
    show(figures, Console(width=None if sys.stdout.isatty() else 200))
    if config.out is not None:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(config.out), json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {config.out}")
    return figures


# ------------------------------------------------------------------------------------------------------------
# Images


def open_split(config: EvaluateConfig, **options: Any) -> Source:
    """The images of `config.split`; `options` are those of :func:`open_source`."""
    names: dict[str, list[Split]] = {"eval": ["eval"], "train": ["train"], "all": ["train", "eval"]}
    opened: list[Source] = []
    for split in names[config.split]:
        try:
            opened.append(
                open_source(
                    config.sources,
                    split,
                    holdout=config.holdout,
                    limit=config.limit,
                    max_megapixels=config.max_megapixels,
                    seed=config.seed,
                    **options,
                )
            )
        except UserError:
            if config.split != "all" or (split == "eval" and not opened):
                raise
    return opened[0] if len(opened) == 1 else Concatenation(opened, bool(options.get("labeled")))


class Damage:
    """Names the damaged files of a source as they come, and says in the end whether there were too many."""

    def __init__(self, source: Source, max_bad: float) -> None:
        self.images, self.max_bad, self.count = len(source), max_bad, 0

    def __call__(self, name: str, reason: str) -> None:
        complain(name, reason)
        self.count += 1

    def figures(self, source: Source) -> dict[str, Any]:
        """What the figures say about the images. RunFailed or UserError when they were not good enough."""
        if self.count == self.images:
            raise RunFailed(f"none of the {self.images:,} images could be read")
        if self.count >= HANDFUL and self.count > self.max_bad * self.images:
            raise UserError(
                f"--data: {self.count:,} of {self.images:,} images are damaged, more than --max-bad "
                f"{self.max_bad:g} allows; `beit check` lists them"
            )
        return {"data": source.describe(), "images": self.images - self.count, "damaged": self.count}


# ------------------------------------------------------------------------------------------------------------
# Classifiers


def evaluate_classifier(
    model: ImageClassifier | LinearProbe, config: EvaluateConfig, machine: Machine
) -> dict[str, Any]:
    """Accuracy over all images and by class, loss, and which classes are taken for which."""
    description = described(config.model)
    source = open_split(config, labeled=True, classes=description.get("classes"))
    names = source.classes
    assert names is not None
    if len(names) != model.num_classes:
        raise UserError(
            f"--data has {len(names)} classes and {config.model}, which does not name its classes, has "
            f"{model.num_classes}; choose data with the same classes"
        )
    damage = Damage(source, config.max_bad)
    sums: dict[str, Tensor] = {}
    pairs: Counter[tuple[int, int]] = Counter()
    passes = each_batch(
        lambda batch: model(batch.image),
        source,
        LabeledView(classifier_view(model.encoder.config.image_size, description)),
        machine,
        batch_size=config.batch_size,
        labeled=True,
        on_bad=damage,
        title="evaluating",
    )
    for batch, logits in passes:
        part = classification_sums(logits, batch.label)
        sums = {name: sums.get(name, 0) + value.double().cpu() for name, value in part.items()}
        pairs.update(zip(batch.label.tolist(), logits.argmax(dim=1).tolist(), strict=True))
    images = damage.figures(source)
    means = {name: float(value / sums["count"]) for name, value in sums.items() if name != "count"}
    return {**images, **means, **by_class(pairs, names)}


def by_class(pairs: Counter[tuple[int, int]], names: tuple[str, ...]) -> dict[str, Any]:
    """Counts of (class, predicted class) as accuracy by class, its mean, and the confusion matrix by names."""
    counts: Counter[int] = Counter()
    confusion: dict[str, dict[str, int]] = {name: {} for name in names}
    for (label, predicted), count in sorted(pairs.items()):
        counts[label] += count
        confusion[names[label]][names[predicted]] = count
    classes = {
        name: {
            "images": counts[number],
            "top1": pairs[number, number] / counts[number] if counts[number] else None,
        }
        for number, name in enumerate(names)
    }
    present = [entry["top1"] for entry in classes.values() if entry["top1"] is not None]
    return {
        "mean_class_accuracy": sum(present) / len(present),
        "classes": classes,
        "confusion": confusion,
    }


# ------------------------------------------------------------------------------------------------------------
# Tokenizers and pre-trained models


def evaluate_tokenizer(model: VisualTokenizer, config: EvaluateConfig, machine: Machine) -> dict[str, Any]:
    """What is left of images that became tokens, and how much of the codebook is used."""
    source = open_split(config)
    damage = Damage(source, config.max_bad)
    sums = totals(
        each_batch(
            partial(reconstruction_sums, cast(nn.Module, model)),
            source,
            EvaluationView(model.image_size),
            machine,
            batch_size=config.batch_size,
            seed=config.seed,
            on_bad=damage,
            title="evaluating",
        )
    )
    images = damage.figures(source)
    figures = reconstruction_figures(machine.compute.sums(sums))
    return {**images, **figures, "vocab_size": model.vocab_size}


def evaluate_pretrained(model: MaskedImageModel, config: EvaluateConfig, machine: Machine) -> dict[str, Any]:
    """Masked-token loss and accuracy beside the baselines, with masks as in the run that trained the model."""
    recipe = recipe_of(model, config)
    source = open_split(config, pillow=recipe.views == "exact")
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
    run = run_of(config.model)
    values = read_yaml(run / "config.yaml", PretrainConfig) if run else {}
    if not run:
        encoder = model.encoder.config
        (height, width), patch = encoder.image_size, encoder.patch_size
        if height != width:
            raise UserError(
                f"{config.model} is for images of {height}x{width} px; only squares are evaluated"
            )
        values = {"out": "-", "image_size": height, "patch_size": patch}
        if model.vocab_size == 3 * patch**2 and described(config.model).get("tokenizer") is None:
            values["target"] = "pixels"
    if values.get("target") != "pixels":
        values["tokenizer"] = config.tokenizer or values.get("tokenizer")
        if values["tokenizer"] is None:
            raise UserError(
                f"{config.model} predicts the tokens of a tokenizer; name its run or model with --tokenizer"
            )
        if not run:
            stride = load_tokenizer(values["tokenizer"]).stride
            values["token_image_size"] = values["image_size"] // values["patch_size"] * stride
    return PretrainConfig(**{**values, "data": config.data})


def matching_tokenizer(recipe: PretrainConfig, config: EvaluateConfig, machine: Machine) -> VisualTokenizer:
    """The tokenizer whose tokens the model learned to predict, and no other."""
    assert recipe.tokenizer is not None
    tokenizer = load_tokenizer(recipe.tokenizer)
    network = cast(nn.Module, tokenizer)
    wanted, found = described(config.model).get("tokenizer"), weights_sha256(network)
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
