"""What is peculiar to segmentation in Hugging Face's BEiT (seen in transformers 4.46, 4.57 and 5.23).

Its `out_indices` are not the blocks that the released code reads. `hidden_states` begins with the embeddings, before
any block, and index i reads hidden_states[i - 1]: the state after i - 1 blocks, which is our layer i - 2. So the
(3, 5, 7, 11) of the released code, copied into a configuration, reads after 2, 4, 6 and 10 blocks instead of 4, 6, 8
and 12; and the state after the last block cannot be asked for at all, because i = depth + 1 is refused. What this
costs the ADE20K models on the hub, whose weights are converted from the released ones, is not known; their
preprocessor has 0.5 for mean and deviation besides, where those weights were trained with ImageNet's. By their
names (`beit presets`) they are loaded with what they were trained with.

Hence: layers are read as transformers computes, i - 2, unless they are stated; and a model that reads its last block
is written with a block of zeros above it, which is never read, so that transformers computes what we do. The key
`unused_blocks` of the configuration tells it, and it is left out again when the file is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.config.errors import UserError, require
from beit.models.decoders import POOL_SCALES
from beit.models.segmentation import SemanticSegmenter, released_layers
from beit.untrusted import Facts

_UNUSED = "unused_blocks"
_EARLIER = 2
"""Their index less our layer."""

# ------------------------------------------------------------------------------------------------------------
# Reading


def unused_blocks(config: Facts) -> int:
    """How many blocks above the last one that is read: none, or one."""
    return int(config.get(_UNUSED) == 1)


def layers_of(config: Facts, path: Path) -> tuple[int, ...] | None:
    """The layers that transformers reads with this configuration; None where it tells none."""
    where = path.parent / "config.json"
    if list(config.get("pool_scales", POOL_SCALES)) != list(POOL_SCALES):
        raise UserError(f"{where}: pool_scales is {config['pool_scales']!r}, and here it is {list(POOL_SCALES)}")
    indices = config.get("out_indices")
    if indices is None:
        return None
    known = isinstance(indices, list) and all(type(i) is int and i >= _EARLIER for i in indices)
    readable = f"only states after a block can be read, {_EARLIER} and up"
    require(known, f"{where}: out_indices is {str(indices)[:80]}; {readable}")
    return tuple(index - _EARLIER for index in indices)


def doubts(config: Facts) -> list[str]:
    """A line where a configuration seems to mean other layers than transformers reads with it."""
    depth, indices = config.get("num_hidden_layers", 12), config.get("out_indices")
    if type(depth) is not int or indices != [*released_layers("upernet", depth)]:
        return []
    return [
        f"out_indices {indices}: transformers reads layers {[i - _EARLIER for i in indices]} with these; weights "
        f"converted from the released code want layers {indices} and ImageNet's pixel statistics: "
        f"PATH@layers={':'.join(map(str, indices))},pixel_mean=imagenet,pixel_std=imagenet"
    ]


# ------------------------------------------------------------------------------------------------------------
# Writing


def require_held(model: SemanticSegmenter) -> None:
    """UserError naming what Hugging Face's one decoder has no place for."""
    config = model.encoder.config
    width, patch, layers = config.width, config.patch_size, [*model.layers]
    faults = {
        f"{model.channels} over {width} channels: its decoder is as wide as its encoder": model.channels != width,
        f"layers {layers}: it reads every block once at most": len({*layers}) < len(layers),
        f"one for patches of {patch}: its pyramid is for 16": "pyramid.fpn1.3.weight" not in model.state_dict(),
    }
    if reasons := [reason for reason, is_so in faults.items() if is_so]:
        raise UserError(f"Hugging Face's BEiT cannot hold {'; '.join(reasons)}")


def with_unused_block(model: SemanticSegmenter, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights, with a block of zeros above the last where that is read; and a line that says so."""
    if not _unused_blocks(model):
        return dict(weights), []
    depth = model.encoder.config.depth
    first = "encoder.blocks.0."
    above = {
        key.replace(first, f"encoder.blocks.{depth}."): torch.zeros_like(x)
        for key, x in weights.items()
        if key.startswith(first)
    }
    note = f"block {depth} is zeros, never read: without it transformers could not read what block {depth - 1} gives"
    return {**weights, **above}, [note]


def config_of(model: SemanticSegmenter) -> dict[str, Any]:
    """The keys of config.json that a segmenter adds or changes; for the rest of its decoder stand defaults."""
    unused = _unused_blocks(model)
    return {
        "num_hidden_layers": model.encoder.config.depth + unused,
        **({_UNUSED: unused} if unused else {}),
        "use_mean_pooling": True,  # no norm of the last state, which no decoder reads
        "out_indices": [layer + _EARLIER for layer in model.layers],
        "use_auxiliary_head": model.auxiliary,
    }


def _unused_blocks(model: SemanticSegmenter) -> int:
    return int(model.layers[-1] + _EARLIER > model.encoder.config.depth)
