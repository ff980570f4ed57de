"""Files of the released code (microsoft/unilm, beit/): pre-training, fine-tuning, segmentation; released or of a run.

They hold {"model": weights}, {"module": weights} or the weights alone, and a run's own optimizer and arguments beside
them, which are not read. So do those of other trainers (timm, Lightning, DistributedDataParallel) under other keys,
or with a wrapper's name before all names. A file tells neither its normalisation (unless it has a run's arguments),
nor a grid that is not square, nor, without a bias table, its heads. Segmentation is mmsegmentation's:
{"state_dict": weights, "meta": ...}, where the latter names classes and colours; it does not tell which blocks the
decoder reads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.checkpoints.foreign import upernet
from beit.checkpoints.foreign.key_map import KeyMap
from beit.checkpoints.foreign.shapes import EMBEDDED, TABLE, pixels_of, renamed, with_table
from beit.checkpoints.foreign.survey import Foreign
from beit.checkpoints.reading.safe_pickle import Inert
from beit.checkpoints.reading.torch_file import TensorFile
from beit.config.errors import require
from beit.config.values import as_type
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.position import relative_position_index
from beit.models.segmentation import SemanticSegmenter
from beit.untrusted import Facts, listed

NAME = "unilm"
ENCODER = [
    *("cls_token", "pos_embed", "patch_embed.proj.*", f"rel_pos_bias.{TABLE}"),
    *("blocks.{}.norm1.*", "blocks.{}.norm2.*", "blocks.{}.gamma_1", "blocks.{}.gamma_2"),
    *("blocks.{}.attn.qkv.weight", "blocks.{}.attn.q_bias", "blocks.{}.attn.v_bias", "blocks.{}.attn.proj.*"),
    *(f"blocks.{{}}.attn.{TABLE}", "blocks.{}.mlp.fc1.*", "blocks.{}.mlp.fc2.*"),
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
_OF_PLAIN = [
    *("register_tokens", EMBEDDED, "blocks.{}.attn.qkv.bias", "norm.*"),
    *(name for name in ENCODER if not name.endswith(("q_bias", "v_bias"))),
]
PLAIN_KEYS = KeyMap(
    [
        *((f"encoder.{name}", name) for name in _OF_PLAIN),
        *((name, name) for name in ("mask_token", "fc_norm.*", "head.*")),
    ]
)
"""Other vision transformers, under these names by :func:`renamed`: read alone."""
_CONTAINERS = ("model", "module", "state_dict", "model_state_dict", "net", "network")
"""Keys that trainers keep the weights under."""
AVERAGES = ("model_ema", "state_dict_ema")
"""Those of averaged weights."""
_WRAPPERS = ("module.", "model.", "net.", "network.", "_orig_mod.")
"""What stands before all names where a wrapper's weights were saved."""
_BACKBONE = "backbone."
SEGMENTER_KEYS = KeyMap(
    [*((f"encoder.{name}", _BACKBONE + name) for name in ENCODER), *upernet.rows(_BACKBONE, "conv_seg")],
    ignored=[_BACKBONE + name for name in INDICES],
)


def reads(file: TensorFile) -> bool:
    """Whether the file is of this layout, or timm's, which is the same for classifiers."""
    weights = _weights(file.contents)
    return weights is not None and ("patch_embed.proj.weight" in weights or _is_segmenter(weights))


def open_file(file: TensorFile, averaged: bool) -> Foreign:
    """A model of the released code, of mmsegmentation, or of another trainer; its weights, or those `averaged`."""
    contents, weights = file.contents, _weights(file.contents, averaged) or {}
    plain = "blocks.0.attn.qkv.bias" in weights
    second = sorted(name for name in weights if name.startswith("cls_pt_"))
    weights = {name: x for name, x in weights.items() if name not in second}
    weights, notes = renamed(weights) if plain else (weights, [])
    notes += [f"{listed(second)}: left out, BEiT v2 trains its class token by them alone"] if second else []
    segments = _is_segmenter(weights)
    arguments, meta = contents.get("args"), contents.get("meta") if segments else None
    run = arguments.attributes if isinstance(arguments, Inert) else {}
    meta = meta if isinstance(meta, dict) else {}
    # All segmentation of the released code has ImageNet's, although its encoders were trained with 0.5.
    imagenet = segments or bool(second) or (plain and "head.weight" not in weights)
    pixels, doubts = pixels_of(bool(run.get("imagenet_default_mean_and_std", imagenet)))
    palette = _as(Sequence[tuple[int, int, int]], meta.get("PALETTE"))
    in_bytes = all(0 <= x < 256 for color in palette for x in color)
    extra: dict[str, Any] = {"palette": [list(color) for color in palette]} if palette and in_bytes else {}
    origin = {name: run.get(name) for name in ("model", "epochs")}
    words = {True: "the averaged weights are read", False: "not read, the weights as trained are"}
    notes += [f"{x}: {words[x == _place(contents, averaged)]}" for x in AVERAGES if x in contents]
    notes += doubts if plain else []
    # In place of the hash of the tokenizer that made the tokens which its head predicts.
    extra |= {"tokenizer": "VQ-KD, of BEiT v2"} if second else {}
    classes = [*_as(Sequence[str], meta.get("CLASSES"))] or None
    provenance = {name: value for name, value in origin.items() if isinstance(value, str | int)}
    name, table = ("vit" if plain else NAME), SEGMENTER_KEYS if segments else PLAIN_KEYS if plain else KEYS
    return Foreign(name, file, file.tensors(weights), table, pixels, classes, provenance, extra, notes)


def _place(contents: Facts, averaged: bool) -> str | None:
    """The key that the weights lie under, if they lie under one."""
    names = (*AVERAGES, *_CONTAINERS) if averaged else (*_CONTAINERS, *AVERAGES)
    return next((key for key in names if isinstance(contents.get(key), dict)), None)


def _weights(contents: Any, averaged: bool = False) -> dict[str, Any] | None:
    """The state dict among what a trainer saved, without the names of wrappers."""
    if not isinstance(contents, dict):
        return None
    place = _place(contents, averaged)
    weights = {str(key): x for key, x in (contents if place is None else contents[place]).items()}
    while weights and (
        wrapper := next((name for name in _WRAPPERS if all(key.startswith(name) for key in weights)), None)
    ):
        weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    return weights


def _is_segmenter(weights: Facts) -> bool:
    return f"{_BACKBONE}patch_embed.proj.weight" in weights


def _as(hint: Any, values: Any) -> Any:
    """`values` as the type `hint`, or nothing."""
    try:
        return as_type(values, hint)
    except TypeError:
        return ()


def write(model: nn.Module, destination: Path, classes: Sequence[str] | None, extra: Facts) -> list[str]:
    """Writes {"model": weights}, or mmsegmentation's dict for a segmenter, as a file; gives a line for each thing
    that such a file cannot tell."""
    assert isinstance(model, MaskedImageModel | ImageClassifier | SemanticSegmenter)
    encoder, segments = model.encoder, isinstance(model, SemanticSegmenter)
    patch = encoder.config.patch_size
    lacking = f"the released code has pyramids for patches of 8 and 16: it cannot hold one for patches of {patch}"
    require(not segments or patch in (8, 16), lacking)
    weights, notes = with_table(model)
    weights = (SEGMENTER_KEYS if segments else KEYS).write(weights, NAME)
    # The released code wants the index of its tables beside them; all blocks share one.
    index = relative_position_index(encoder.grid)
    weights |= {key.replace(TABLE, "relative_position_index"): index for key in [*weights] if key.endswith(TABLE)}
    meta = {"CLASSES": tuple(classes or ()) or None, "PALETTE": extra.get("palette")}
    with destination.open("wb") as file:
        torch.save({"meta": meta, "state_dict": weights} if segments else {"model": weights}, file)
    return notes
