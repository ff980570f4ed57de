"""What masked image modelling looks like: hidden patches beside what the model expects behind them."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.pretrain import PixelNorm
from beit.data.batches import PretrainBatch
from beit.models.heads import MaskedImageModel
from beit.models.layers import patch_statistics
from beit.tokenizers.base import VisualTokenizer
from beit.visualize.pictures import contact_sheet, save_picture, shade_hidden


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
    save_picture(contact_sheet({**seen(batch), **decoded}), folder, step, "masked")


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
    save_picture(contact_sheet({**seen(batch), "hidden pixels predicted": predicted}), folder, step, "masked")


def seen(batch: PretrainBatch) -> dict[str, Sequence[Tensor] | Tensor]:
    """Every image, and with its hidden patches shaded."""
    shaded = [shade_hidden(image, mask) for image, mask in zip(batch.image, batch.mask, strict=True)]
    return {"image": batch.image, "what the encoder sees": shaded}
