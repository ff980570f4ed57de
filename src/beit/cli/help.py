"""`beit VERB --help`: the flags in groups, the common ones first; and what the knobs mean, for Python's `help`."""

import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar

from beit.config.values import FILE_ONLY, alternatives, field_docs, flag_of

GROUPS = {
    "data": "data eval_data labels label_maps label_share labels_per_class multilabel classes reduce_zero_label "
    "split limit holdout group_by image_size token_image_size resize crop max_bad image_channels value_range "
    "max_megapixels max_gibibytes layout",
    "model": "model init from_scratch tokenizer kind teacher teacher_layer vocab_size patch_size width depth "
    "num_heads mlp_ratio position bias init_scheme layer_scale_init normalization stride blocks_per_group code_width "
    "pool init_scale decoder layers channels transposed window multi_scale layer top_k",
    "mask": "num_masked masking encoder_sees target pixel_norm predict min_block mask_count block_aspect "
    "decoder_depth decoder_width",
    "training": "preset config budget steps epochs batch_size accumulate lr freeze layer_decay token_cache",
    "machine": "device devices precision workers checkpoint_activations compile",
    "output": "out overwrite dry_run print_config save_every keep log_every evaluations overlays tensorboard wandb",
}
"""What no group names comes last in `training`, where schedules and augmentations are."""
KINDS: Mapping[object, str] = {int: "NUMBER", float: "NUMBER", str: "TEXT", ...: "..."}
SHORT = {"TEXT|TEXT...": "TEXT...", "NUMBER|NUMBER NUMBER": "NUMBER [NUMBER]"}
"""How values are written, and shorter ways to say that one or several may be given."""
WIDEST = 100


def explain(bases: tuple[type, ...], positional: Sequence[str], values: Mapping[str, Any], program: str) -> None:
    """Print the flags for the fields of `bases`, with `values` for defaults."""
    hints = {name: hint for base in bases for name, hint in typing.get_type_hints(base).items()}
    docs = {name: text for base in bases for name, text in field_docs(base).items()}
    knobs = {knob.name: knob.default for base in bases for knob in fields(base) if knob.metadata != FILE_ONLY}
    values, width = {**knobs, **values}, min(WIDEST, shutil.get_terminal_size().columns)
    heads = {name: _flag(name, hints[name], values[name]) for name in knobs}
    for name in positional:
        word = f"{name.upper()}{'...' * ('tuple' in str(hints[name]))}"
        heads[name] = word if values[name] is MISSING else f"[{word}]"
    print("usage:", program, *(heads[name] for name in positional), "[--flags]\n")
    print(textwrap.fill(" ".join(str(bases[0].__doc__).partition("\n\n")[0].split()), width))
    groups = {"positional arguments": positional}
    groups |= {f"{group} options": names.split() for group, names in GROUPS.items()}
    named = {name for names in groups.values() for name in names}
    groups["training options"] = [*groups["training options"], *(name for name in knobs if name not in named)]
    for heading, names in groups.items():
        if members := [x for x in names if x in knobs and (names is positional or x not in positional)]:
            print(f"\n{heading}")
        for name in members:
            left_out = "without it" if values[name] is None else "none"
            text = re.sub(r"\bnull( for)?\b", left_out, docs.get(name, ""))
            print(f"  {heads[name]}", textwrap.indent(textwrap.fill(text, width - 6), 6 * " "), sep="\n")


def _flag(name: str, hint: object, default: object) -> str:
    """A flag, what stands behind it, and what holds where it is not given, if that is anything."""
    if hint is bool:
        return f"{flag_of(name)}, {flag_of(f'no_{name}')}  (default: on)" if default is True else flag_of(name)
    words = " ".join(map(str, default)) if isinstance(default, tuple) else default
    held = "  (required)" if default is MISSING else "" if default is None else f"  (default: {words})"
    return f"{flag_of(name)} {_value(hint)}{held}"


def _value(hint: object) -> str:
    """How a value of this type is written."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, options))
    if origin is tuple:
        return " ".join(map(_value, options)).replace(" ...", "...")
    if hint in KINDS:
        return KINDS[hint]
    said = "|".join(dict.fromkeys(_value(option) for option in alternatives(hint) if option is not types.NoneType))
    return SHORT.get(said, said)


# ------------------------------------------------------------------------------------------------------------
# What the knobs mean: the docstrings behind the fields of a configuration


FIELDS = "\n\nFields:\n\n"
Config = TypeVar("Config", bound=type)


def documented(config_type: Config) -> Config:
    """`config_type`, whose docstring now says what its fields are."""
    said = inspect.cleandoc(str(config_type.__doc__))
    if FIELDS not in said:
        entries = (f"{name}: {text}" for name, text in field_docs(config_type).items())
        lines = (textwrap.fill(entry, 90, subsequent_indent="    ") for entry in entries)
        config_type.__doc__ = said + FIELDS + "\n".join(lines)
    return config_type
