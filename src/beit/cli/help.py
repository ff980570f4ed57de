"""`beit VERB --help`: the flags in groups, the common ones first."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import tyro

from beit.config.values import FILE_ONLY

GROUPS = {
    "data": "data eval_data labels label_share labels_per_class multilabel classes reduce_zero_label "
    "split limit holdout group_by image_size token_image_size resize crop max_bad image_channels value_range "
    "max_megapixels",
    "model": "model init from_scratch tokenizer kind teacher teacher_layer vocab_size patch_size width depth "
    "num_heads mlp_ratio position bias init_scheme layer_scale_init normalization stride blocks_per_group code_width "
    "pool init_scale decoder layers channels transposed window multi_scale layer top_k",
    "mask": "num_masked masking encoder_sees target pixel_norm predict min_block mask_count block_aspect "
    "decoder_depth decoder_width",
    "training": "preset config budget steps epochs batch_size accumulate lr freeze layer_decay token_cache",
    "machine": "device devices precision workers checkpoint_activations",
    "output": "out overwrite dry_run print_config save_every keep log_every evaluations overlays tensorboard wandb",
}
"""What no group names comes last in `training`, where schedules and augmentations are."""


def explain(bases: tuple[type, ...], positional: Sequence[str], values: Mapping[str, Any], program: str) -> None:
    """Print the flags for the fields of `bases`, with `values` for defaults, and leave."""
    names = [knob.name for base in bases for knob in dataclasses.fields(base) if knob.metadata != FILE_ONLY]
    members = {group: [name for name in words.split() if name in names] for group, words in GROUPS.items()}
    members["training"] += [name for name in names if not any(name in group for group in members.values())]
    parts = {group: _part(bases, fields, positional, values) for group, fields in members.items() if fields}
    groups = [(group, type(part), dataclasses.field(default=part)) for group, part in parts.items()]
    whole = dataclasses.make_dataclass("Flags", groups, namespace={"__doc__": program})
    look = (tyro.conf.OmitArgPrefixes,)
    tyro.cli(whole, prog=program, args=["--help"], description=bases[0].__doc__, config=look)


def _part(
    bases: tuple[type, ...], fields: Sequence[str], positional: Sequence[str], values: Mapping[str, Any]
) -> object:
    """An object with the `fields` alone, of an unvalidated twin of `bases`, for a value may be missing."""
    twin: Any = type("Part", bases, {"__hash__": object.__hash__, "__eq__": object.__eq__, "__annotations__": {}})
    for name in set(positional).intersection(fields):
        hint, mark = typing.get_type_hints(bases[0])[name], cast(Any, tyro.conf.Positional)
        words = f"{name.upper()}{'...' * ('tuple' in str(hint))}"
        shown = tyro.conf.arg(metavar=f"[{words}]" if name in values else words)
        # One word where any number may stand, or it would be shown as optional.
        twin.__annotations__[name] = mark[Annotated[hint if name in values else str, shown]]
    twin = dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)(twin)
    twin.__dataclass_fields__ = {name: twin.__dataclass_fields__[name] for name in fields}
    part: object = object.__new__(twin)
    for name in fields:
        object.__setattr__(part, name, values.get(name, getattr(bases[-1], name, tyro.MISSING)))
    return part
