"""Rough counts of the memory that training takes, for the announcement of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
from beit.models.patch_decoder import HEAD_WIDTH

if TYPE_CHECKING:
    from beit.models.heads import MaskedImageModel
    from beit.models.segmentation import SemanticSegmenter


def activations_of_tokenizer(config: DiscreteVAEConfig) -> float:
    """Bytes of float32 activations that a discrete VAE keeps for the gradient of one image.

    Encoder and decoder keep about three maps of its width for each block; each group has twice the channels on a
    quarter of the pixels. Around the tokens there are three maps of the vocabulary's size.
    """
    pixels = config.image_size[0] * config.image_size[1]
    groups = config.stride.bit_length()
    blocks = 3 * config.blocks_per_group * sum(config.width * pixels / 2.0**group for group in range(groups))
    return 4 * (2 * blocks + 3 * config.vocab_size * pixels / config.stride**2)


def activations_of_encoder(config: EncoderConfig, patches: int | None = None, frozen_blocks: int = 0) -> float:
    """Bytes of float32 activations that an encoder keeps for the gradient of one image, of which it sees so many
    `patches`, by default all. Frozen blocks keep nothing, but one at a time has its maps."""
    tokens = 1 + (math.prod(config.grid) if patches is None else patches)
    depth = max(config.depth - frozen_blocks, 1)
    return _activations_of_blocks(depth, tokens, config.width, config.num_heads, config.mlp_ratio)


def activations_of_masked_model(model: MaskedImageModel) -> float:
    """The same of a masked image model, without its predictions."""
    config, decoder = model.encoder.config, model.decoder
    if decoder is None:
        return activations_of_encoder(config)
    patches = math.prod(config.grid)
    seen = activations_of_encoder(config, patches - (model.num_masked or 0))
    heads = decoder.width // HEAD_WIDTH
    return seen + _activations_of_blocks(len(decoder.blocks), 1 + patches, decoder.width, heads, 4.0)


def _activations_of_blocks(depth: int, tokens: int, width: int, num_heads: int, mlp_ratio: float) -> float:
    """A block keeps about ten maps of the tokens, two of the MLP's width, and three maps of attention."""
    return 4 * depth * (tokens * width * (10 + 2 * mlp_ratio) + 3 * num_heads * tokens**2)


def attention_memory(config: EncoderConfig, size: tuple[int, int]) -> int:
    """Bytes, at least, of the position bias of one block for an image of `size` (height, width): for every pair of
    tokens the row of the table, int64, and each head's value, float32. 0 without a bias, for then attention keeps no
    pairs."""
    if config.bias == "none":
        return 0
    rows, columns = (-(-side // config.patch_size) for side in size)
    return int((1 + rows * columns) ** 2 * (8 + 4 * config.num_heads))


def activations_of_segmenter(model: SemanticSegmenter) -> float:
    """Bytes of float32 activations that a segmenter keeps for the gradient of one image.

    A convolution with its norm keeps three maps. UPerNet: about 17 maps of its channels and two of the encoder's
    width for every 4x4 pixels, and a third more for the coarser levels. SETR-PUP: three maps at each stage and
    the enlarged one, which has four times the cells, as all three have where the convolution enlarges. Each head's
    logits are kept three times at the image's size.
    """
    config, channels = model.encoder.config, model.channels
    pixels = config.image_size[0] * config.image_size[1]
    cells = pixels / config.patch_size**2
    frozen = model.encoder.frozen_blocks
    encoder = activations_of_encoder(config, frozen_blocks=frozen)
    if model.encoder.gradient_checkpointing and config.depth > frozen:
        encoder *= 2 / (config.depth - frozen)  # the input of every block, and one block at a time
    if model.decoder == "upernet":
        decoder, heads = pixels / 16 * (4 / 3 * 17 * channels + 2 * config.width), 2
    else:
        stages = config.patch_size.bit_length() - 1
        maps = 3 * 4 if model.transposed else 3 + 4
        decoder, heads = sum(maps * channels * cells * 4**stage for stage in range(stages)), len(model.layers)
    logits = 3 * (heads if model.auxiliary else 1) * model.num_classes * pixels
    return encoder + 4 * (decoder + logits)
