"""How tokenizers, classifiers and segmenters are evaluated."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from beit.checkpoints.store import describe
from beit.config.errors import UserError
from beit.config.segment import IGNORE
from beit.config.use import EvaluateConfig
from beit.data.base import Source
from beit.data.batches import LabeledBatch
from beit.data.label_file import LabelFile, Labels
from beit.data.label_maps.pairs import open_pairs
from beit.data.sources.opening import open_source
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.segmentation import SegmentationEvaluationView
from beit.metrics.classification import (
    accuracy_by_class,
    classification_sums,
    precision_by_class,
    with_f1,
)
from beit.metrics.segmentation import by_class, confusion_by_name, segmentation_figures
from beit.models.heads import ImageClassifier, LinearProbe
from beit.models.segmentation import SemanticSegmenter
from beit.models.windows import Inference
from beit.recipes.evaluate.evaluation import Evaluation, open_splits
from beit.stages.batches import Machine
from beit.stages.inference import classifier_view
from beit.stages.segmentation import evaluate_batch
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.objective import reconstruction_figures, reconstruction_sums
from beit.training.metrics import over_count


def tokenizer(model: VisualTokenizer, config: EvaluateConfig, machine: Machine) -> Evaluation:
    """What is left of images that became tokens, and how much of the codebook is used."""
    return Evaluation(
        open_splits(config),
        EvaluationView(model.image_size),
        lambda batch: reconstruction_sums(model, batch.image),
        lambda sums: {**reconstruction_figures(sums), "vocab_size": model.vocab_size},
    )


def classifier(model: ImageClassifier | LinearProbe, config: EvaluateConfig, machine: Machine) -> Evaluation:
    """Accuracy and loss over all images, and how the classes fare: matched with the data's by their names."""
    description = describe(config.model)
    multilabel = bool(description.get("multilabel", False))
    source, labels = _open_labeled(config, description.get("classes"), multilabel)
    names = labels.classes
    _require_number(names, model.num_classes, config)
    labels = labels.to(machine.compute.device)
    answers: list[tuple[Tensor, Tensor]] = []
    """Of each batch: the classes, true and predicted; or where images have several the logits and targets."""

    def evaluate_batch(batch: LabeledBatch) -> dict[str, Tensor]:
        logits, targets = model(batch.image), labels.targets(batch.label)
        pair = (logits.float(), targets) if multilabel else (batch.label, logits.argmax(dim=1))
        answers.append((pair[0].cpu(), pair[1].cpu()))
        sums = classification_sums(logits, targets, multilabel=multilabel)
        return {name: value.cpu().double() for name, value in sums.items()}

    def summarise(sums: dict[str, Tensor]) -> dict[str, Any]:
        first, second = map(torch.cat, zip(*answers, strict=True))
        if multilabel:
            return with_f1(sums) | precision_by_class(first, second, names)
        return over_count(sums) | accuracy_by_class(first, second, names)

    view = LabeledView(classifier_view(model.encoder.config.image_size, description))
    return Evaluation(source, view, evaluate_batch, summarise, labeled=True)


def segmenter(model: SemanticSegmenter, config: EvaluateConfig, machine: Machine) -> Evaluation:
    """mIoU, accuracies and loss over all images at the size of their label maps, and how the classes fare."""
    description = describe(config.model)
    classes = description.get("classes")
    reduce_zero = bool(description.get("reduce_zero_label", False))
    source = open_splits(
        config, partial(open_pairs, reduce_zero_label=reduce_zero, classes=classes), labeled=True
    )
    names = source.classes or ()
    _require_number(names, model.num_classes, config)
    inference = Inference.from_description(description).with_window(config.window)
    inference = inference._replace(multi_scale=config.multi_scale)

    def summarise(sums: dict[str, Tensor]) -> dict[str, Any]:
        if not sums["count"]:
            raise UserError(
                f"--data: no pixel of the {len(source):,} label maps has a class ({IGNORE}{' and 0' * reduce_zero} "
                f"stand for none); choose --data or --split with labelled pixels"
            )
        return {
            "inference": inference.words(),
            **segmentation_figures(sums),
            "classes": by_class(sums["confusion"], names),
            "confusion": confusion_by_name(sums["confusion"], names),
        }

    return Evaluation(
        source,
        SegmentationEvaluationView(inference.input_side),
        partial(evaluate_batch, inference, model),
        summarise,
        labeled=True,
        batch_size=1,
    )


def _open_labeled(
    config: EvaluateConfig, classes: list[str] | None, multilabel: bool
) -> tuple[Source, Labels]:
    """The images, and what their labels mean among the model's `classes` (None: those of the data)."""
    if config.labels is not None:
        file = LabelFile(config.labels, multilabel=multilabel, classes=classes)
        labeled = file.apply(open_splits(config))
        labeled.notes += file.unused()
        return labeled, file.labels
    if multilabel:
        raise UserError(
            f"{config.model} gives an image several classes; name a file that has them with --labels"
        )
    source = open_splits(config, partial(open_source, labeled=True, classes=classes), labeled=True)
    assert source.classes is not None  # open_source refuses data without labels
    return source, Labels(source.classes)


def _require_number(names: tuple[str, ...], number: int, config: EvaluateConfig) -> None:
    """UserError unless there are as many classes as the model has."""
    if len(names) != number:
        raise UserError(
            f"--data has {len(names)} classes and {config.model}, which does not name its classes, has {number}; "
            f"choose data with the same classes"
        )
