"""What models make of held-back images while they are trained: classes, label maps, hidden patches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.pretrain import PixelNorm
from beit.config.segment import IGNORE
from beit.data.batches import LabeledBatch, PretrainBatch, SegmentationBatch
from beit.data.label_file import Labels
from beit.models.heads import MaskedImageModel
from beit.models.layers import patch_statistics
from beit.tokenizers.base import VisualTokenizer
from beit.visualize.pictures import (
    Color,
    captioned_grid,
    contact_sheet,
    paint,
    save_columns,
    save_picture,
    shade_hidden,
    with_legend,
)


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
    save_picture(captioned_grid(batch.image, captions), folder / f"step-{step:06d}-predictions.webp")


def draw_mistakes(images: Sequence[tuple[Tensor, str]], folder: Path, step: int) -> None:
    """Images (3, H, W) with what is wrong about their answers."""
    pictures = [image for image, _ in images]
    sheet = captioned_grid(pictures, [(text, False) for _, text in images])
    save_picture(sheet, folder / f"step-{step:06d}-mistakes.webp")


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
    save_picture(sheet, folder / f"step-{step:06d}-segmentation.webp")


# ------------------------------------------------------------------------------------------------------------
# Masked image modelling: hidden patches beside what the model expects behind them


def draw_tokens(
    tokenizer: VisualTokenizer, model: nn.Module, batches: Sequence[PretrainBatch], folder: Path, step: int
) -> None:
    """Images, their hidden patches, their tokens decoded, and decoded again with the hidden tokens predicted."""
    [batch] = batches
    tokens = tokenizer.encode(batch.token_image)
    predicted = tokens.clone()
    predicted[batch.mask] = model(batch.image, batch.mask).argmax(dim=1)
    decoded = {
        "all tokens decoded": tokenizer.decode(tokens).float(),
        "hidden tokens predicted, then decoded": tokenizer.decode(predicted).float(),
    }
    save_columns({**seen(batch), **decoded}, folder, step, "masked")


def draw_pixels(norm: PixelNorm, model: nn.Module, batches: Sequence[PretrainBatch], folder: Path, step: int) -> None:
    """Images, their hidden patches, and the predicted pixels in their place.

    With norm "patch" a prediction has the true patch's mean and deviation, which the model is not asked for.
    """
    [batch] = batches
    network = cast(MaskedImageModel, model)
    config = network.encoder.config
    patches = network.pixel_targets(batch.image, torch.ones_like(batch.mask)).float()
    predicted = model(batch.image, batch.mask).float()
    if norm == "patch":
        mean, deviation = patch_statistics(patches[batch.mask.flatten()])
        predicted = predicted * deviation + mean
    patches[batch.mask.flatten()] = predicted
    columns = patches.view(len(batch.image), -1, patches.shape[1]).transpose(1, 2)
    rebuilt = F.fold(columns, config.image_size, config.patch_size, stride=config.patch_size)
    mean, std = (rebuilt.new_tensor(value).view(-1, 1, 1) for value in (config.pixel_mean, config.pixel_std))
    predicted = (rebuilt * std + mean).clamp(0, 1)
    save_columns({**seen(batch), "hidden pixels predicted": predicted}, folder, step, "masked")


def seen(batch: PretrainBatch) -> dict[str, Sequence[Tensor] | Tensor]:
    """Every image, and with its hidden patches shaded."""
    shaded = [shade_hidden(image, mask) for image, mask in zip(batch.image, batch.mask, strict=True)]
    return {"image": batch.image, "what the encoder sees": shaded}
