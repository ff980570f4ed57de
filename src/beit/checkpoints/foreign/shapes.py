"""The architecture of an encoder, read off the names and shapes of its weights; and plain vision transformers made
encoders of ours."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch.nn.functional as F
from torch import Tensor, nn

from beit.checkpoints.reference import Stated, agreed
from beit.config.architecture import MAX_DEPTH, PIXEL_STATISTICS, EncoderConfig
from beit.config.errors import UserError, require
from beit.config.values import counted, typed
from beit.models.encoder import BeitEncoder
from beit.models.position import CLS_ROWS, CLS_TOKENS, Grid, bias_table_rows
from beit.untrusted import Facts

Shape = tuple[int, ...]
WIDTH_OF_HEAD = 64
"""Dimensions of an attention head where a file does not tell."""
DEFAULT_GRID = (14, 14)
"""Of a file without any position information."""

TABLE = "relative_position_bias_table"
EMBEDDING = "encoder.pos_embed"
SHARED_BIAS = f"encoder.rel_pos_bias.{TABLE}"
BLOCK_BIAS = f"encoder.blocks.0.attn.{TABLE}"
EMBEDDED = "embedded_tokens"
"""Tokens between the class token and the patches that have rows in the table of position embeddings, as timm's
registers and DeiT's distillation token; our registers have none."""


def positions_of(config: Facts, flags: Mapping[str, str]) -> dict[str, Any]:
    """What a library's configuration says of positions, as facts; `flags` has its name of each kind of them."""
    biases = [bias for bias in ("block", "shared") if config.get(flags[bias])]
    position = "absolute" if config.get(flags["absolute"]) else "none"
    return {"position": position, "bias": biases[0] if biases else "none", "biases": biases}


def flags_of(config: EncoderConfig, flags: Mapping[str, str]) -> dict[str, bool]:
    """The flags of an encoder that is written, see :func:`with_table`."""
    held = {"absolute": config.position != "none", "block": config.bias == "block", "shared": config.bias == "shared"}
    return {flags[kind]: is_held for kind, is_held in held.items()}


def with_table(model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a model on an encoder, sine-cosine positions among them as a table; and a line where there is
    one: other libraries have tables alone."""
    weights, encoder = dict(model.state_dict()), model.encoder
    assert isinstance(encoder, BeitEncoder)
    if getattr(model, "pool", None) == "cls":  # where the norm of each token is that of the class token
        weights = {re.sub(r"^encoder\.norm\.", "norm.", name): x for name, x in weights.items()}
    if encoder.config.position != "sincos":
        return weights, []
    table = encoder.position_embedding(encoder.grid)
    assert table is not None
    return weights | {EMBEDDING: table}, ["sine-cosine positions written as a table of absolute ones"]


def infer(shapes: Mapping[str, Shape], facts: Facts, stated: Stated) -> EncoderConfig:
    """The architecture of weights under our names.

    facts: fields of :class:`EncoderConfig` that a configuration beside them tells, and `hidden`, its MLP's width.
        They come first: what they promise and the weights do not hold is missing.
    Raises :class:`UserError`, without the file's name, where these contradict one another.
    """
    facts = typed(facts, get_type_hints(EncoderConfig) | {"hidden": int})
    width, patch = _width_and_patch(shapes)
    agreed("width", facts.pop("width", None), width)
    agreed("patch_size", facts.pop("patch_size", None), patch)
    ratio = facts.pop("mlp_ratio", None)
    by_ratio = None if ratio is None else int(width * ratio)
    hidden = agreed("hidden", facts.pop("hidden", None), by_ratio, shapes["encoder.blocks.0.mlp.fc1.weight"][0])
    ratio = hidden / width
    rows, heads = _position_rows(shapes)
    heads = _heads(width, stated.num_heads, facts.pop("num_heads", None), heads)
    size = facts.pop("image_size", None)
    own_grid = None if size is None else (size[0] // patch, size[1] // patch)
    grid = _grid(agreed("grid", stated.grid, own_grid), rows)
    for name in ("pixel_mean", "pixel_std"):
        # Weights do not tell; and hub files of ADE20K models name other constants than they were trained with.
        pixel = getattr(stated, name) or facts.pop(name, None)
        facts |= {} if pixel is None else {name: tuple(pixel)}
    seen: dict[str, Any] = {
        "depth": number_of(shapes, "encoder.blocks.{}.mlp.fc1.weight"),
        "position": "absolute" if EMBEDDING in rows else "none",
        "bias": "block" if BLOCK_BIAS in rows else "shared" if SHARED_BIAS in rows else "none",
        "layer_scale_init": 0.1 if "encoder.blocks.0.gamma_1" in shapes else None,
        "num_registers": shapes.get("encoder.register_tokens", (1, 0))[1],
        "qv_bias": any(name.endswith((".q_bias", ".v_bias")) for name in shapes),
        "final_norm": "encoder.norm.weight" in shapes,
    }
    # Such that int(width * ratio) is `hidden` again.
    ratio = ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
    seen |= {"image_size": (grid[0] * patch, grid[1] * patch), "patch_size": patch, "width": width}
    return EncoderConfig(num_heads=heads, mlp_ratio=ratio, **seen | facts)


def _heads(width: int, *accounts: int | None) -> int:
    heads: int | None = agreed("num_heads", *accounts)
    if heads is None and width % WIDTH_OF_HEAD:
        raise UserError(f"nothing tells the number of heads of its width {width}; state num_heads (PATH@num_heads=N)")
    require(heads is None or heads > 0, f"{heads} attention heads")
    return heads or width // WIDTH_OF_HEAD


def number_of(names: Mapping[str, Shape], template: str, start: int = 0) -> int:
    """How many names fill the {} of `template`, from `start` on without a gap; at most :data:`MAX_DEPTH`."""
    for number in range(MAX_DEPTH + 1):
        if template.format(start + number) not in names:
            return number
    raise UserError(f"it has more than {MAX_DEPTH} blocks")


def _width_and_patch(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    token, patches = shapes["encoder.cls_token"], shapes["encoder.patch_embed.proj.weight"]
    hidden = shapes["encoder.blocks.0.mlp.fc1.weight"]
    lengths = len(token), len(patches), len(hidden)
    if lengths != (3, 4, 2) or patches[1] != 3 or patches[2] != patches[3]:
        found = f"cls_token {token}, patch_embed.proj.weight {patches} and mlp.fc1.weight {hidden}"
        raise UserError(f"{found} are not those of an encoder of square patches of RGB images")
    require(0 not in (*token, *patches, *hidden), "it has weights without numbers")
    gated = hidden[0] == 2 * shapes.get("encoder.blocks.0.mlp.fc2.weight", (0,))[-1]
    require(not gated, "it has SwiGLU (mlp.fc1 with gates), which no encoder here has; give a plain ViT or BEiT")
    return token[2], patches[2]


def _position_rows(shapes: Mapping[str, Shape]) -> tuple[dict[str, int], int | None]:
    """The rows of each kind of position information, and the heads of a bias table."""
    found = {name: shapes[name] for name in (EMBEDDING, BLOCK_BIAS, SHARED_BIAS) if name in shapes}
    fits = all(len(shape) == (3 if name == EMBEDDING else 2) for name, shape in found.items())
    require(fits, "its position information has too many or too few dimensions")
    heads = next((shape[1] for name, shape in found.items() if name != EMBEDDING), None)
    return {name: shape[-2] for name, shape in found.items()}, heads


def _grid(grid: Grid | None, kinds: Mapping[str, int]) -> Grid:
    """The grid that position information of so many rows is for; where nothing tells it, a square. The one place
    where a square is taken for granted."""
    for kind, rows in kinds.items():
        if grid is None and kind == EMBEDDING:
            grid = (math.isqrt(max(rows - CLS_TOKENS, 0)),) * 2
        elif grid is None:
            grid = ((math.isqrt(max(rows - CLS_ROWS, 0)) + 1) // 2,) * 2
        needed = CLS_TOKENS + math.prod(grid) if kind == EMBEDDING else bias_table_rows(grid)
        needs = f"a grid of {grid[0]}x{grid[1]} patches needs {needed}; state grid (PATH@grid=ROWSxCOLUMNS)"
        require(min(grid) > 0 and needed == rows, f"its position information has {counted(rows, 'row')}, and {needs}")
    return grid or DEFAULT_GRID


# ------------------------------------------------------------------------------------------------------------
# Plain vision transformers (timm's and Hugging Face's ViT, DeiT, MAE, DINO, DINOv2) as encoders of ours


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
