"""Evaluation of a segmenter: how well predicted and true regions overlap, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from beit.checkpoints.describe import describe
from beit.config import EvaluateConfig, UserError
from beit.data.batches import SegmentationBatch
from beit.data.class_table import IGNORE
from beit.data.pairs import open_pairs
from beit.data.segmentation_views import SegmentationEvaluationView
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.evaluation_data import Damage, open_split
from beit.recipes.inference import Machine, each_batch, tell, totals
from beit.recipes.large_images import within_memory
from beit.recipes.segmentation import Inference, by_class, segmentation_figures, segmentation_sums


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

    def judge(batch: SegmentationBatch) -> dict[str, Tensor]:
        height, width = batch.label_map.shape[1:]
        with within_memory(model, inference, batch.image, (height, width)):
            scores = inference.scores(model, batch.image, (height, width))
            return segmentation_sums(scores, batch.label_map)

    damage = Damage(source, config.max_bad)
    passes = each_batch(
        judge,
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
