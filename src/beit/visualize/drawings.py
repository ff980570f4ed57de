"""What models make of held-back images while they are trained: classes, and label maps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from beit.config.segment import IGNORE
from beit.data.batches import LabeledBatch, SegmentationBatch
from beit.data.label_file import Labels
from beit.visualize.label_maps import paint, with_legend
from beit.visualize.pictures import Color, captioned_grid, contact_sheet, save_picture


def draw_predictions(
    labels: Labels, model: nn.Module, batches: Sequence[LabeledBatch], folder: Path, step: int
) -> None:
    """Images with the classes predicted for them and, where these are wrong, the true ones."""
    [batch] = batches
    multilabel = labels.sets is not None
    logits = model(batch.image).float()
    targets = labels.targets(batch.label)
    answers = logits > 0 if multilabel else logits == logits.amax(1, keepdim=True)
    captions = []
    for answer, truth, share in zip(answers, targets, logits.softmax(1).amax(1), strict=True):
        caption = class_names(labels, answer)
        if not multilabel:
            caption += f" {100 * float(share):.0f} %"
        right = torch.equal(answer, truth)
        captions.append((caption if right else f"{caption}, is {class_names(labels, truth)}", right))
    save_picture(captioned_grid(batch.image, captions), folder, step, "predictions")


def draw_mistakes(images: Sequence[tuple[Tensor, str]], folder: Path, step: int) -> None:
    """Images (3, H, W) with what is wrong about their answers."""
    pictures = [image for image, _ in images]
    sheet = captioned_grid(pictures, [(text, False) for _, text in images])
    save_picture(sheet, folder, step, "mistakes")


def class_names(labels: Labels, members: Tensor) -> str:
    """The classes in `members`, bool (C,), in words."""
    return ", ".join(labels.classes[index] for index in members.nonzero().flatten().tolist()) or "none"


def draw_label_maps(
    predict: Callable[[nn.Module, Tensor, Sequence[int]], Tensor],
    names: Sequence[str],
    palette: Sequence[Color],
    model: nn.Module,
    batches: Sequence[SegmentationBatch],
    folder: Path,
    step: int,
) -> None:
    """Images, in batches of one, beside their true classes and those that `predict` gives, (H, W), with a legend."""
    truths = [batch.label_map[0] for batch in batches]
    answers = [predict(model, batch.image, batch.label_map.shape[1:]) for batch in batches]
    columns = {
        "image": [batch.image[0] for batch in batches],
        "truth": [paint(truth, palette) for truth in truths],
        "prediction": [paint(answer, palette) for answer in answers],
    }
    present = {index for maps in (*truths, *answers) for index in maps.unique().tolist()} - {IGNORE}  # type: ignore[no-untyped-call]
    sheet = with_legend(contact_sheet(columns), [(names[i], palette[i]) for i in sorted(present)])
    save_picture(sheet, folder, step, "segmentation")
