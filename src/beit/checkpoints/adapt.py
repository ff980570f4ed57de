"""Changes to an encoder between two stages. Each returns a new encoder and logs what it changed."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor

from beit.config import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.position import resize_bias_table, resize_position_embedding

logger = logging.getLogger(__name__)
_TABLE = "relative_position_bias_table"


@torch.no_grad()
def resize_encoder(encoder: BeitEncoder, image_size: tuple[int, int]) -> BeitEncoder:
    """The encoder with its position information stored for `image_size` (height, width)."""
    config = dataclasses.replace(encoder.config, image_size=image_size)
    source, target = encoder.grid, config.grid
    if config == encoder.config:
        return encoder
    weights = encoder.state_dict()
    for key, tensor in weights.items():
        if key.endswith(_TABLE):
            weights[key] = resize_bias_table(tensor, source, target)
        elif key == "pos_embed":
            weights[key] = resize_position_embedding(tensor, source, target)
    logger.info("%s positions resized from %dx%d to %dx%d patches", config.position, *source, *target)
    return _encoder_with(config, weights, encoder)


@torch.no_grad()
def share_bias_out(encoder: BeitEncoder) -> BeitEncoder:
    """The encoder with its one shared bias copied into a bias for every block, as official fine-tuning starts."""
    config = dataclasses.replace(encoder.config, position="block_bias")
    weights = encoder.state_dict()
    table = weights.pop(f"rel_pos_bias.{_TABLE}")
    for layer in range(config.depth):
        weights[f"blocks.{layer}.attn.{_TABLE}"] = table
    logger.info("the shared position bias copied into %d blocks", config.depth)
    return _encoder_with(config, weights, encoder)


def _encoder_with(config: EncoderConfig, weights: dict[str, Tensor], like: BeitEncoder) -> BeitEncoder:
    with torch.device("meta"):
        encoder = BeitEncoder(config)
    encoder.load_state_dict({key: tensor.clone() for key, tensor in weights.items()}, assign=True)
    encoder.gradient_checkpointing = like.gradient_checkpointing
    return encoder.train(like.training)
