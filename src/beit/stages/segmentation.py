"""Held-back images through a segmenter, judged and drawn, in training and in evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from beit.data.batches import SegmentationBatch
from beit.data.label_maps.table import IGNORE
from beit.metrics.segmentation import Inference, Size, segmentation_sums
from beit.models.segmentation import SemanticSegmenter
from beit.stages.large_images import within_memory
from beit.visualize.label_maps import Color, paint, with_legend
from beit.visualize.pictures import contact_sheet, save_picture


def judge(inference: Inference, model: nn.Module, batch: SegmentationBatch) -> dict[str, Tensor]:
    """Sums over a batch of one image, at the size of its label map. TooLarge where the memory does not suffice."""
    segmenter, size = cast(SemanticSegmenter, model), _size(batch)
    with within_memory(segmenter, inference, size, batch.image.device):
        return segmentation_sums(inference.scores(segmenter, batch.image, size), batch.label_map)


def draw_label_maps(
    inference: Inference,
    names: Sequence[str],
    palette: Sequence[Color],
    model: nn.Module,
    batches: Sequence[SegmentationBatch],
    folder: Path,
    step: int,
) -> None:
    """Images beside their true classes and those predicted, with a legend."""
    segmenter = cast(SemanticSegmenter, model)
    truths = [batch.label_map[0] for batch in batches]
    predicted = [_predicted(inference, segmenter, batch) for batch in batches]
    columns = {
        "image": [batch.image[0] for batch in batches],
        "truth": [paint(truth, palette) for truth in truths],
        "prediction": [paint(answer, palette) for answer in predicted],
    }
    present = {index for maps in (*truths, *predicted) for index in maps.unique().tolist()} - {IGNORE}  # type: ignore[no-untyped-call]
    sheet = with_legend(contact_sheet(columns), [(names[i], palette[i]) for i in sorted(present)])
    save_picture(sheet, folder / f"step-{step:06d}-segmentation.png")


def _predicted(inference: Inference, model: SemanticSegmenter, batch: SegmentationBatch) -> Tensor:
    """The class of every pixel, (H, W)."""
    size = _size(batch)
    with within_memory(model, inference, size, batch.image.device):
        return inference.scores(model, batch.image, size)[0].argmax(0)


def _size(batch: SegmentationBatch) -> Size:
    return batch.label_map.shape[1], batch.label_map.shape[2]
