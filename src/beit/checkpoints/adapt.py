"""Changes to an encoder between two stages. Each returns a new encoder and logs what it changed."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig, Sides, sides
from beit.config.values import counted
from beit.models.encoder import BeitEncoder
from beit.models.position import resize_bias_table, resize_position_embedding

logger = logging.getLogger(__name__)
PACKAGE = logging.getLogger("beit.checkpoints")
_TABLE = "relative_position_bias_table"


@contextmanager
def changes() -> Iterator[list[str]]:
    """A list that receives one line for everything that loading and the functions below change inside the block."""
    lines: list[str] = []
    handler, level = logging.Handler(), PACKAGE.level
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        PACKAGE.removeHandler(handler)
        PACKAGE.setLevel(level)


@torch.no_grad()
def resize_encoder(encoder: BeitEncoder, image_size: int | Sides) -> BeitEncoder:
    """The encoder with its position information stored for `image_size`, a side or (height, width)."""
    config = dataclasses.replace(encoder.config, image_size=sides(image_size))
    source, target = encoder.grid, config.grid
    if config == encoder.config:
        return encoder
    if config.position == "sincos":  # whose coordinates stay in the range that was trained
        config = dataclasses.replace(config, position_grid=config.position_grid or source)
    weights = encoder.state_dict()
    for key, tensor in weights.items():
        if key.endswith(_TABLE):
            weights[key] = resize_bias_table(tensor, source, target)
        elif key == "pos_embed":
            weights[key] = resize_position_embedding(tensor, source, target)
    logger.info("%s positions resized from %dx%d to %dx%d patches", config.positions, *source, *target)
    return _encoder_with(config, weights, encoder)


@torch.no_grad()
def change_channels(encoder: BeitEncoder, channels: int) -> BeitEncoder:
    """The encoder for images of so many `channels`, which gives the same where all of them are alike: one has the sum
    of the patch projection, several have its channels in turn, scaled (timm's rule), and in equal parts what that sum
    lacks. Pixel constants are taken in turn as well, for one channel their mean."""
    config, key, before = encoder.config, "patch_embed.proj.weight", encoder.config.channels
    if channels == before:
        return encoder
    weights, turn = encoder.state_dict(), torch.arange(channels) % before
    kernel = weights[key][:, turn] * before / channels
    weights[key] = kernel + (weights[key].sum(1, keepdim=True) - kernel.sum(1, keepdim=True)) / channels
    constants = (torch.tensor(x, dtype=torch.float64) for x in (config.pixel_mean, config.pixel_std))
    mean, std = ([float(x.mean())] if channels == 1 else x[turn].tolist() for x in constants)
    logger.info("patches of %s projected as those of %d, summed or in turn", counted(channels, "channel"), before)
    changed = dataclasses.replace(config, pixel_mean=tuple(mean), pixel_std=tuple(std))
    return _encoder_with(changed, weights, encoder)


@torch.no_grad()
def expand_shared_bias(encoder: BeitEncoder) -> BeitEncoder:
    """The encoder with its one shared bias copied into a bias for every block, as official fine-tuning starts."""
    config = dataclasses.replace(encoder.config, bias="block")
    weights = encoder.state_dict()
    table = weights.pop(f"rel_pos_bias.{_TABLE}")
    for layer in range(config.depth):
        weights[f"blocks.{layer}.attn.{_TABLE}"] = table
    logger.info("the shared position bias copied into %s", counted(config.depth, "block"))
    return _encoder_with(config, weights, encoder)


@torch.no_grad()
def replace_rates(encoder: BeitEncoder, *, drop_path_rate: float, dropout: float) -> BeitEncoder:
    """The encoder with other rates of stochastic depth and dropout; its weights stay."""
    config = dataclasses.replace(encoder.config, drop_path_rate=drop_path_rate, dropout=dropout)
    if config == encoder.config:
        return encoder
    for name in ("drop_path_rate", "dropout"):
        before, after = getattr(encoder.config, name), getattr(config, name)
        if before != after:
            logger.info("%s %g instead of %g", name.replace("_", " "), after, before)
    return _encoder_with(config, encoder.state_dict(), encoder)


def drop_norm(encoder: BeitEncoder) -> nn.LayerNorm | None:
    """Take the final norm out of an encoder whose last block is read by another; the norm, if there was one."""
    norm, encoder.norm = encoder.norm, None
    encoder.config = dataclasses.replace(encoder.config, final_norm=False)
    return norm


@torch.no_grad()
def take_over(model: nn.Module, start: nn.Module, parts: tuple[str, ...]) -> None:
    """Give `model` the weights of `start` whose names begin with one of `parts`."""
    kept = {name: tensor for name, tensor in start.state_dict().items() if name.startswith(parts)}
    model.load_state_dict(model.state_dict() | kept)


def _encoder_with(config: EncoderConfig, weights: dict[str, Tensor], like: BeitEncoder) -> BeitEncoder:
    with torch.device("meta"):
        encoder = BeitEncoder(config)
    encoder.load_state_dict({key: tensor.clone() for key, tensor in weights.items()}, assign=True)
    encoder.value_range = like.value_range if config.channels == like.config.channels else None
    return encoder.train(like.training)
