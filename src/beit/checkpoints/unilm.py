"""Files of the released code (microsoft/unilm, beit/): pre-training and fine-tuning, released or from a run.

They hold {"model": weights}, {"module": weights} or the weights alone ({"state_dict": weights} in a run of timm), and
a run's own optimizer and arguments beside them, which are not read. A file tells neither its normalisation (unless it
has a run's arguments), nor a grid that is not square, nor, without a bias table, its heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.checkpoints.architecture import DEFAULT_GRID, WIDTH_OF_HEAD, Stated, as_statement
from beit.checkpoints.foreign import Foreign
from beit.checkpoints.key_map import KeyMap
from beit.checkpoints.safe_pickle import Inert
from beit.checkpoints.torch_file import TensorFile
from beit.config import PIXEL_STATISTICS, EncoderConfig, UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.position import relative_position_index

NAME = "unilm"
_TABLE = "relative_position_bias_table"
ENCODER = [
    *("cls_token", "pos_embed", "patch_embed.proj.*", f"rel_pos_bias.{_TABLE}"),
    *("blocks.{}.norm1.*", "blocks.{}.norm2.*", "blocks.{}.gamma_1", "blocks.{}.gamma_2"),
    *("blocks.{}.attn.qkv.weight", "blocks.{}.attn.q_bias", "blocks.{}.attn.v_bias", "blocks.{}.attn.proj.*"),
    *(f"blocks.{{}}.attn.{_TABLE}", "blocks.{}.mlp.fc1.*", "blocks.{}.mlp.fc2.*"),
]
"""Our encoder has the released names."""
INDICES = ("rel_pos_bias.relative_position_index", "blocks.{}.attn.relative_position_index")
KEYS = KeyMap(
    [
        *((f"encoder.{name}", name) for name in ENCODER),
        *((name, name) for name in ("mask_token", "norm.*", "fc_norm.*", "head.*")),
        ("token_head.*", "lm_head.*"),
    ],
    ignored=INDICES,
)


def reads(file: TensorFile) -> bool:
    """Whether the file is of this layout, or timm's, which is the same for classifiers."""
    weights = _weights(file.contents)
    return weights is not None and "patch_embed.proj.weight" in weights


def open_file(file: TensorFile) -> Foreign:
    arguments = file.contents.get("args")
    told = arguments.attributes if isinstance(arguments, Inert) else {}
    facts = {}
    if isinstance(imagenet := told.get("imagenet_default_mean_and_std"), bool):
        mean, std = PIXEL_STATISTICS["imagenet" if imagenet else "half"]
        facts = {"pixel_mean": mean, "pixel_std": std}
    averaged = [key for key in ("model_ema", "state_dict_ema") if key in file.contents]
    return Foreign(
        format=NAME,
        notes=[f"{key}: not read, the weights as trained are" for key in averaged],
        file=file,
        tensors=file.tensors(_weights(file.contents)),
        table=KEYS,
        facts=facts,
        provenance={
            name: told[name] for name in ("model", "epochs") if isinstance(told.get(name), str | int)
        },
    )


def _weights(contents: Any) -> dict[str, Any] | None:
    if not isinstance(contents, dict):
        return None
    for key in ("model", "module", "state_dict"):
        if isinstance(contents.get(key), dict):
            return dict(contents[key])
    return contents


def write(model: nn.Module, destination: Path) -> list[str]:
    """Writes {"model": weights} as a file; gives a line for each thing that such a file cannot tell."""
    if not isinstance(model, MaskedImageModel | ImageClassifier):
        raise UserError(f"a unilm file holds a masked image model or a classifier, no {type(model).__name__}")
    weights = KEYS.write(model.state_dict(), NAME)
    encoder: BeitEncoder = model.encoder
    # The released code wants the index of its tables beside them; all blocks share one.
    index = relative_position_index(encoder.grid)
    tables = [key for key in weights if key.endswith(_TABLE)]
    weights |= {key.replace(_TABLE, "relative_position_index"): index for key in tables}
    with destination.open("wb") as file:
        torch.save({"model": weights}, file)
    return untold(encoder.config)


def untold(config: EncoderConfig) -> list[str]:
    """What a state dict alone would not tell of this architecture."""
    rows, columns = config.grid
    square = rows == columns and (config.position != "none" or config.grid == DEFAULT_GRID)
    heads = "bias" in config.position or config.width == WIDTH_OF_HEAD * config.num_heads
    half = (0.5, 0.5, 0.5)
    needed = Stated(
        num_heads=None if heads else config.num_heads,
        grid=None if square else config.grid,
        pixel_mean=None if config.pixel_mean == half else config.pixel_mean,
        pixel_std=None if config.pixel_std == half else config.pixel_std,
    )
    said = as_statement(needed)
    lines = [f"the file cannot tell {', '.join(needed.given())}: load it as PATH{said}"] if said else []
    return lines + fixed_eps(config, NAME)


def fixed_eps(config: EncoderConfig, name: str) -> list[str]:
    """A line where the LayerNorm of another library is not quite this one."""
    if config.layer_norm_eps == 1e-6:
        return []
    return [
        f"{name} computes with a LayerNorm eps of 1e-6, not {config.layer_norm_eps:g}: outputs differ a little"
    ]
