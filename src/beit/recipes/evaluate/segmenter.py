"""Evaluation of a segmenter: how well predicted and true regions overlap, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from beit.checkpoints.store import describe
from beit.config.errors import UserError
from beit.config.use import EvaluateConfig
from beit.data.label_maps.pairs import open_pairs
from beit.data.label_maps.table import IGNORE
from beit.data.views.segmentation import SegmentationEvaluationView
from beit.metrics.segmentation import Inference, by_class, segmentation_figures
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.evaluate.images import Damage, open_split
from beit.stages.batches import Machine, each_batch, tell, totals
from beit.stages.segmentation import judge


def evaluate_segmenter(model: SemanticSegmenter, config: EvaluateConfig, machine: Machine) -> dict[str, Any]:
    """mIoU, accuracies and loss over all images at the size of their label maps, and how the classes fare."""
    description = describe(config.model)
    classes = description.get("classes")
    reduced = bool(description.get("reduce_zero_label", False))
    source = open_split(config, partial(open_pairs, reduce_zero_label=reduced, classes=classes), labeled=True)
    assert source.classes is not None
    tell(source.notes)
    if len(source.classes) != model.num_classes:
        raise UserError(
            f"--data has {len(source.classes)} classes and {config.model}, which does not name its classes, has "
            f"{model.num_classes}; choose data with the same classes"
        )
    inference = inference_of(config, description)
    damage = Damage(source, config.max_bad)
    passes = each_batch(
        partial(judge, inference, model),
        source,
        SegmentationEvaluationView(inference.reduced),
        machine,
        batch_size=1,
        labeled=True,
        on_bad=damage,
        title="evaluating",
    )
    sums = totals(passes)
    images = damage.figures(source)
    if not sums["count"]:
        raise UserError(
            f"--data: no pixel of the {images['images']:,} label maps has a class ({IGNORE}{' and 0' * reduced} "
            f"stand for none); choose --data or --split with labelled pixels"
        )
    return {
        **images,
        "inference": inference.words(),
        **segmentation_figures(sums),
        "classes": by_class(sums["confusion"], source.classes),
        "confusion": by_names(sums["confusion"], source.classes),
    }


def inference_of(config: EvaluateConfig, description: dict[str, Any]) -> Inference:
    """How images are shown: as in training, unless `config` says otherwise."""
    inference = Inference.described(description).in_window(config.window)
    return inference._replace(multi_scale=config.multi_scale)


def by_names(confusion: Tensor, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Pixels of each class by the class they were given, both by name; those without any left out."""
    return {
        name: {answer: count for answer, count in zip(names, row, strict=True) if count}
        for name, row in zip(names, confusion.long().tolist(), strict=True)
    }
