"""What each kind of model is evaluated on, and how."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from beit.checkpoints.store import describe, load_tokenizer, weights_sha256
from beit.config.errors import UserError, given_by, require
from beit.config.files import read_record
from beit.config.pretrain import PretrainConfig
from beit.config.segment import IGNORE
from beit.config.use import EvaluateConfig
from beit.config.values import counted
from beit.data.base import Source
from beit.data.batches import LabeledBatch
from beit.data.label_file import LabelFile, Labels
from beit.data.label_maps.pairs import open_pairs
from beit.data.loaders import View
from beit.data.sources.files import full_name
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import Subset
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.segmentation import SegmentationEvaluationView
from beit.metrics.classification import accuracy_by_class, classification_sums, precision_by_class, with_f1
from beit.metrics.segmentation import by_class, segmentation_figures
from beit.metrics.tokens import TokenBaselines, best_mixtures_of_sums
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.models.windows import Inference, Size
from beit.recipes.evaluate.bound import Bound
from beit.recipes.evaluate.images import Judged, holdout_to_judge, judged_images
from beit.stages.batches import Machine, each_batch
from beit.stages.inference import classifier_view, print_notes
from beit.stages.scores.tokens import Scoring
from beit.stages.session import open_data
from beit.stages.tasks.masked_modelling import evaluation_view, pixel_sums, token_image_size, token_sums
from beit.stages.tasks.segmentation import evaluate_batch
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.objective import reconstruction_figures, reconstruction_sums
from beit.training.method import Evaluation
from beit.training.metrics import over_count
from beit.training.run.directory import run_of
from beit.training.signals import StopSignals


class TestSet(NamedTuple):
    """Images, and how a model is shown them."""

    split: str
    source: Source
    view: View
    labeled: bool = False
    """Whether the view takes labels."""
    windows: Callable[[Size], int] | None = None
    """How many times an image of (H, W) pixels is seen, where the view leaves images in their sizes."""


Kind = tuple[TestSet, Evaluation]
"""What a model is evaluated on, and how."""


def tokenizer(model: VisualTokenizer, config: EvaluateConfig, machine: Machine) -> Kind:
    """What is left of images that became tokens, how much of the codebook is used, and what the tokens say."""
    split, source = judged_images(config)
    train = open_data(config, open_splits, holdout_to_judge(config)).get("train")
    # Not those that are judged: an image is its own nearest neighbour.
    judged = {full_name(source, index) for index in range(len(source))}
    others = [] if train is None else [i for i in range(len(train)) if full_name(train, i) not in judged]

    def summarise(sums: Mapping[str, Tensor]) -> dict[str, Any]:
        figures = reconstruction_figures(sums) | {"vocab_size": model.vocab_size}
        if train is None or not others:
            remedy = "" if train is None else " but those that are judged; add --split val"
            print(f"no scores of tokens: --data holds no training images to count tokens on{remedy}")
            return figures
        scoring = Scoring(config, Subset(train, others), source, config.batch_size)
        return figures | scoring.scores(model, machine, StopSignals())

    judging = Evaluation(evaluate_batch=lambda _, batch: reconstruction_sums(model, batch.image), summarise=summarise)
    return TestSet(split, source, EvaluationView(model.image_size)), judging


def classifier(model: ImageClassifier | LinearProbe, config: EvaluateConfig, machine: Machine) -> Kind:
    """Accuracy and loss over all images, and how the classes fare: matched with the data's by their names."""
    description = describe(config.model)
    multilabel = bool(description.get("multilabel", False))
    (split, source), labels = _open_labeled(config, description.get("classes"), multilabel)
    names = labels.classes
    _require_number(names, model.num_classes, config)
    labels = labels.to(machine.compute.device)
    answers: list[tuple[Tensor, Tensor]] = []
    """Of each batch: the classes, true and predicted; or where images have several the logits and targets."""

    def evaluate_batch(model: nn.Module, batch: LabeledBatch) -> dict[str, Tensor]:
        logits, targets = model(batch.image), labels.targets(batch.label)
        pair = (logits.float(), targets) if multilabel else (batch.label, logits.argmax(dim=1))
        answers.append((pair[0].cpu(), pair[1].cpu()))
        sums = classification_sums(logits, targets, multilabel=multilabel)
        return {name: value.cpu().double() for name, value in sums.items()}

    def summarise(sums: Mapping[str, Tensor]) -> dict[str, Any]:
        first, second = map(torch.cat, zip(*itertools.chain(*machine.compute.exchange(answers)), strict=True))
        if multilabel:
            return with_f1(sums) | precision_by_class(first, second, names)
        return over_count(sums) | accuracy_by_class(first, second, names)

    view = LabeledView(classifier_view(model.encoder.config.image_size, description))
    return TestSet(split, source, view, labeled=True), Evaluation(evaluate_batch=evaluate_batch, summarise=summarise)


def segmenter(model: SemanticSegmenter, config: EvaluateConfig, machine: Machine) -> Kind:
    """mIoU, accuracies and loss over all images at the size of their label maps, and how the classes fare."""
    description = describe(config.model)
    classes = description.get("classes")
    reduce_zero = bool(description.get("reduce_zero_label", False))
    opener = partial(open_pairs, label_maps=config.label_maps, reduce_zero_label=reduce_zero, classes=classes)
    split, source = judged_images(config, opener, labeled=True)
    names = source.classes or ()
    _require_number(names, model.num_classes, config)
    inference = Inference.from_description(description).with_window(config.window)
    inference = inference._replace(multi_scale=config.multi_scale)

    def summarise(sums: Mapping[str, Tensor]) -> dict[str, Any]:
        if not sums["count"]:
            none = f"no pixel of the {counted(len(source), 'label map')} has a class"
            why = f"{IGNORE}{' and 0' * reduce_zero} stand for none"
            raise UserError(f"--data: {none} ({why}); choose --data or --split with labelled pixels")
        return {"inference": inference.words(), **segmentation_figures(sums), **by_class(sums["confusion"], names)}

    test_set = TestSet(split, source, SegmentationEvaluationView(inference.input_side), True, inference.windows)
    evaluation = Evaluation(evaluate_batch=partial(evaluate_batch, inference), summarise=summarise, batch_size=1)
    return test_set, evaluation


def _open_labeled(config: EvaluateConfig, classes: list[str] | None, multilabel: bool) -> tuple[Judged, Labels]:
    """The images, and what their labels mean among the model's `classes` (None: those of the data)."""
    if config.labels is not None:
        file = LabelFile(config.labels, multilabel=multilabel, classes=classes)
        split, source = judged_images(config)
        labeled = file.apply(source)
        assert labeled is not None  # only a test beside training images may have no labels
        labeled.notes += file.unused()
        return Judged(split, labeled), file.labels
    require(not multilabel, f"{config.model} gives an image several classes; name a file that has them with --labels")
    judged = judged_images(config, partial(open_splits, labeled=True, classes=classes), labeled=True)
    assert judged.source.classes is not None  # open_splits refuses data without labels
    return judged, Labels(judged.source.classes)


def _require_number(names: tuple[str, ...], number: int, config: EvaluateConfig) -> None:
    """UserError unless there are as many classes as the model has."""
    both = f"--data has {len(names)} classes and {config.model}, which does not name its classes, has {number}"
    require(len(names) == number, f"{both}; choose data with the same classes")


# ------------------------------------------------------------------------------------------------------------
# Pre-trained models: can they tell what is hidden?


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
    alone: dict[str, Any] = {"machine": machine.alone(), "batch_size": config.batch_size, "title": "counting tokens"}
    for *_, tokens in each_batch(lambda batch: tokenizer.encode(batch.image), source, EvaluationView(size), **alone):
        baselines.count(tokens)
    return baselines
