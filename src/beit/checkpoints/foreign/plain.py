"""Plain vision transformers (timm's and Hugging Face's ViT, DeiT, MAE, DINO, DINOv2) as encoders of ours."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from beit.config.architecture import PIXEL_STATISTICS
from beit.config.errors import require
from beit.untrusted import Facts

TABLE = "relative_position_bias_table"
EMBEDDED = "embedded_tokens"
"""Tokens between the class token and the patches that have rows in the table of position embeddings, as timm's
registers and DeiT's distillation token; our registers have none."""
_STRANGE = {
    **dict.fromkeys(("mlp.w12", "mlp.w1.", "mlp.fc1_g", "weights_in"), "SwiGLU"),
    **dict.fromkeys(("q_norm", "k_norm"), "norms of queries and keys"),
    **dict.fromkeys(("norm_pre", "pre_layrnorm"), "a norm before the blocks"),
    **dict.fromkeys(("rope", "rotary", "dinov3"), "rotary positions"),
    **{"attn_pool": "pooling by attention", "rel_pos_h": "windows"},
    **dict.fromkeys(("head_dist", "distillation_classifier"), "a second head, of distillation"),
}


def refuse_strange(path: Path, names: Collection[str]) -> None:
    """UserError where `names` of weights are those of a part that no encoder here has."""
    found = [f"{words} ({part})" for part, words in _STRANGE.items() if any(part in key for key in names)]
    # DINOv3 keeps nothing of its rotary positions in a file.
    is_plain = any(key.endswith((".qkv.bias", "reg_token", EMBEDDED)) for key in names)
    found += ["rotary positions (no pos_embed)"] if is_plain and not any("pos" in key for key in names) else []
    require(not found, f"{path} has {', '.join(found)}, which no encoder here has; give a plain ViT or BEiT")


def renamed(weights: Facts) -> tuple[dict[str, Any], list[str]]:
    """Names of timm, DeiT and MAE as DINOv2 and the released code have them, without the decoder; a line on it."""
    kept = {name: x for name, x in weights.items() if not name.startswith("decoder")}
    names = {name: re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name) for name in kept}
    names |= dict.fromkeys(names.keys() & {"reg_token", "dist_token"}, EMBEDDED)
    notes = ["the decoder is left out"] if len(kept) < len(weights) else []
    return {names[name]: x for name, x in kept.items()}, notes


def converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, some of them as plain ViTs have them -> ours, equal in every output; on any device.

    The bias of keys is dropped: it adds a constant to all scores of a query, which cancels in the softmax. Tokens
    with positions become registers that contain them; a table without a class token's row (DeiT III) gets one of
    zeros. A position bias of all blocks beside one of each, which no model here has, is added to these.
    """
    ours = dict(weights)
    is_plain = any(name.endswith((".qkv.bias", EMBEDDED)) for name in ours)
    tables = [name for name in ours if name.endswith(f".attn.{TABLE}")]
    if shared := [name for name in ours if name.endswith(f"rel_pos_bias.{TABLE}")] if tables else []:
        table = ours.pop(shared[0])
        ours |= {name: ours[name] + table for name in tables}
    for name in [name for name in ours if name.endswith(".qkv.bias")]:
        query, _, value = ours.pop(name).chunk(3)
        ours |= {name.replace("qkv.bias", "q_bias"): query.clone()}
        ours |= {name.replace("qkv.bias", "v_bias"): value.clone()}
    for name in [name for name in ours if is_plain and name.endswith("pos_embed")]:
        stem, table = name.removesuffix("pos_embed"), ours[name]
        tokens, rows = ours.pop(stem + EMBEDDED, table[:, :0]), table.shape[1]
        first = 1 + tokens.shape[1]
        if math.isqrt(rows) ** 2 == rows:  # of patches alone
            table = F.pad(table, (0, 0, 1, 0))
        else:
            tokens, table = tokens + table[:, 1:first], table[:, [0, *range(first, rows)]]
        ours |= {name: table} | ({f"{stem}register_tokens": tokens} if first > 1 else {})
    return ours


def pixels_of(imagenet: bool) -> tuple[dict[str, Any], list[str]]:
    """Constants of files that name none: ImageNet's where the layout tells (MAE, DINO), else 0.5 and a line."""
    mean, std = PIXEL_STATISTICS["imagenet" if imagenet else "half"]
    note = "nothing tells its pixel constants: 0.5 is taken; state @pixel_mean=imagenet,pixel_std=imagenet if need be"
    return {"pixel_mean": mean, "pixel_std": std}, [] if imagenet else [note]
