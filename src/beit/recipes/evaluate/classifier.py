"""Evaluation of a classifier: how often it is right, class by class."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor

from beit.checkpoints.store import describe
from beit.config.errors import UserError
from beit.config.use import EvaluateConfig
from beit.data.base import Source
from beit.data.label_file import LabelFile, Labels
from beit.data.sources.opening import open_source
from beit.data.views.images import LabeledView
from beit.metrics.average_precision import average_precisions, mean_of_known
from beit.metrics.classification import classification_sums, with_f1
from beit.models.heads import ImageClassifier, LinearProbe
from beit.recipes.evaluate.images import Damage, open_split
from beit.stages.batches import Machine, classifier_view, each_batch, tell
from beit.training.metrics import over_count


def evaluate_classifier(
    model: ImageClassifier | LinearProbe, config: EvaluateConfig, machine: Machine
) -> dict[str, Any]:
    """Accuracy and loss over all images, and how the classes fare: matched with the data's by their names."""
    description = describe(config.model)
    multilabel = bool(description.get("multilabel", False))
    source, labels = open_labeled(config, description.get("classes"), multilabel)
    tell(source.notes)
    names, damage = labels.classes, Damage(source, config.max_bad)
    if len(names) != model.num_classes:
        raise UserError(
            f"--data has {len(names)} classes and {config.model}, which does not name its classes, has "
            f"{model.num_classes}; choose data with the same classes"
        )
    labels = labels.to(machine.compute.device)
    sums: dict[str, Tensor] = {}
    pairs: Counter[tuple[int, int]] = Counter()
    answered: list[tuple[Tensor, Tensor]] = []
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
        targets = labels.targets(batch.label)
        part = classification_sums(logits, targets, multilabel=multilabel)
        sums = {name: sums.get(name, 0) + value.cpu().double() for name, value in part.items()}
        if multilabel:
            answered.append((logits.float().cpu(), batch.label.cpu()))
        else:
            pairs.update(zip(batch.label.tolist(), logits.argmax(dim=1).tolist(), strict=True))
    images = damage.figures(source)
    if multilabel:
        scores, numbers = map(torch.cat, zip(*answered, strict=True))
        return {
            **images,
            **with_f1(sums),
            **found_classes(scores, labels.to(scores.device).targets(numbers), names),
        }
    return {**images, **over_count(sums), **by_class(pairs, names)}


def open_labeled(
    config: EvaluateConfig, classes: list[str] | None, multilabel: bool
) -> tuple[Source, Labels]:
    """The images, and what their labels mean among the model's `classes` (None: those of the data)."""
    if config.labels is not None:
        file = LabelFile(config.labels, multilabel=multilabel, classes=classes)
        labeled = file.apply(open_split(config))
        labeled.notes += file.unused()
        return labeled, file.labels
    if multilabel:
        raise UserError(
            f"{config.model} gives an image several classes; name a file that has them with --labels"
        )
    source = open_split(config, partial(open_source, labeled=True, classes=classes), labeled=True)
    assert source.classes is not None  # open_source refuses data without labels
    return source, Labels(source.classes)


def found_classes(logits: Tensor, targets: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """How well each class is found where an image may have several, of logits and targets, bool, both (N, C)."""
    answers = logits > 0
    counts = torch.stack([x.sum(0) for x in (answers, targets, answers & targets)])
    precisions = average_precisions(logits, targets)
    classes = {
        name: {
            "images": true,
            "average_precision": average,
            "precision": both / said if said else None,
            "recall": both / true if true else None,
        }
        for name, average, (said, true, both) in zip(names, precisions, counts.T.tolist(), strict=True)
    }
    mean = mean_of_known(precisions)
    return {**({} if mean is None else {"mean_average_precision": mean}), "classes": classes}


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
