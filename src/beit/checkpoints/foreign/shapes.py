"""The architecture of an encoder, read off the names and shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from beit.checkpoints.reference import Stated, agreed
from beit.config.architecture import MAX_DEPTH, EncoderConfig
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.position import CLS_ROWS, Grid, bias_table_rows
from beit.untrusted import Facts, typed

Shape = tuple[int, ...]
WIDTH_OF_HEAD = 64
"""Dimensions of an attention head where a file does not tell."""
DEFAULT_GRID = (14, 14)
"""Of a file without any position information."""


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
    hidden = agreed(
        "hidden", facts.pop("hidden", None), by_ratio, shapes["encoder.blocks.0.mlp.fc1.weight"][0]
    )
    position, table = _position(shapes)
    heads = _heads(width, stated.num_heads, facts.pop("num_heads", None), table[1] if table else None)
    size = facts.pop("image_size", None)
    own_grid = None if size is None else (size[0] // patch, size[1] // patch)
    grid = agreed("grid", stated.grid, own_grid) or _square_grid(shapes, table)
    _check_grid(grid, shapes, table)
    for name in ("pixel_mean", "pixel_std"):
        # Weights do not tell; and hub files of ADE20K models name other constants than they were trained with.
        pixel = getattr(stated, name) or facts.pop(name, None)
        facts |= {} if pixel is None else {name: tuple(pixel)}
    seen = {
        "depth": number_of(shapes, "encoder.blocks.{}.mlp.fc1.weight"),
        "position": position,
        "layer_scale_init": 0.1 if "encoder.blocks.0.gamma_1" in shapes else None,
    }
    return EncoderConfig(
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        width=width,
        num_heads=heads,
        mlp_ratio=_ratio(hidden, width),
        **seen | facts,
    )


def _heads(width: int, *accounts: int | None) -> int:
    heads: int | None = agreed("num_heads", *accounts)
    if heads is None:
        if width % WIDTH_OF_HEAD:
            raise UserError(
                f"nothing tells the number of heads of its width {width}; state num_heads (PATH@num_heads=N)"
            )
        return width // WIDTH_OF_HEAD
    if heads < 1:
        raise UserError(f"{heads} attention heads")
    return heads


def number_of(names: Mapping[str, Shape], template: str, start: int = 0) -> int:
    """How many names fill the {} of `template`, from `start` on without a gap; at most :data:`MAX_DEPTH`."""
    end = start
    while template.format(end) in names:
        end += 1
        if end - start > MAX_DEPTH:
            raise UserError(f"it has more than {MAX_DEPTH} blocks")
    return end - start


def _ratio(hidden: int, width: int) -> float:
    """hidden / width, such that int(width * ratio) is `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _width_and_patch(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    token, patches = shapes["encoder.cls_token"], shapes["encoder.patch_embed.proj.weight"]
    hidden = shapes["encoder.blocks.0.mlp.fc1.weight"]
    if (
        len(token) != 3
        or len(patches) != 4
        or len(hidden) != 2
        or patches[1] != 3
        or patches[2] != patches[3]
    ):
        raise UserError(
            f"cls_token {token}, patch_embed.proj.weight {patches} and mlp.fc1.weight {hidden} "
            f"are not those of an encoder of square patches of RGB images"
        )
    if 0 in (*token, *patches, *hidden):
        raise UserError("it has weights without numbers")
    return token[2], patches[2]


def _position(shapes: Mapping[str, Shape]) -> tuple[Any, Shape | None]:
    """The kind of position information, and the shape of a bias table."""
    shared = shapes.get("encoder.rel_pos_bias.relative_position_bias_table")
    block = shapes.get("encoder.blocks.0.attn.relative_position_bias_table")
    absolute = shapes.get("encoder.pos_embed")
    if sum(x is not None for x in (shared, block, absolute)) > 1:
        raise UserError("it has more than one kind of position information, which no BEiT has")
    if any(x is not None and len(x) != 2 for x in (shared, block)) or (absolute and len(absolute) != 3):
        raise UserError("its position information has too many or too few dimensions")
    if absolute:
        return "absolute", None
    return ("shared_bias", shared) if shared else ("block_bias", block) if block else ("none", None)


def _square_grid(shapes: Mapping[str, Shape], table: Shape | None) -> Grid:
    """The square that the position information fits. The one place where a square is taken for granted."""
    if table:
        side = (math.isqrt(max(table[0] - CLS_ROWS, 0)) + 1) // 2
    elif "encoder.pos_embed" in shapes:
        side = math.isqrt(max(shapes["encoder.pos_embed"][1] - BeitEncoder.num_prefix_tokens, 0))
    else:
        return DEFAULT_GRID
    return side, side


def _check_grid(grid: Grid, shapes: Mapping[str, Shape], table: Shape | None) -> None:
    needed, rows = None, None
    if table:
        needed, rows = bias_table_rows(grid), table[0]
    elif "encoder.pos_embed" in shapes:
        needed = BeitEncoder.num_prefix_tokens + math.prod(grid)
        rows = shapes["encoder.pos_embed"][1]
    if min(grid) < 1 or needed != rows:
        raise UserError(
            f"its position information has {rows} rows, and a grid of {grid[0]}x{grid[1]} patches needs {needed}; "
            f"state grid (PATH@grid=ROWSxCOLUMNS)"
        )
