"""What a file asks for that nobody has checked: values of the right type, models that can be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch

from beit.checkpoints.foreign.key_map import shown
from beit.config.errors import UserError
from beit.config.values import as_type


def typed(values: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the types of `hints`, lists as tuples. Raises :class:`UserError` for the first that is none."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = as_type(value, hints[name])
        except (TypeError, OverflowError):
            raise UserError(f"{name} is {shown(repr(value))}, not {_in_words(hints[name])}") from None
    return found


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else re.sub(r"typing\.|collections\.abc\.", "", str(hint))


@contextmanager
def without_weights(path: Path) -> Iterator[None]:
    """Models built inside take no memory. Whatever is wrong with what `path` asks for is a :class:`UserError` that
    names it, and a field where a configuration would name a flag."""
    try:
        with torch.device("meta"):
            yield
    except UserError as error:
        if str(path) in str(error):
            raise
        reason = re.sub(r"--([a-z][a-z-]+)", lambda flag: flag[1].replace("-", "_"), str(error))
        raise UserError(f"{path}: {shown(reason, 300)}") from None
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        reason = shown(str(error).partition("\n")[0])
        raise UserError(f"{path} asks for a model that cannot be ({reason})") from None
