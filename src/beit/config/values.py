"""Values of YAML and JSON as the types that dataclasses state."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any


def as_type(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says, lists as tuples, or TypeError. Knows the few types that the package uses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return as_type(value, option)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
    elif origin in (tuple, Sequence):
        if isinstance(value, (list, tuple)):
            if origin is Sequence or arguments[-1] is Ellipsis:
                return tuple(as_type(item, arguments[0]) for item in value)
            if len(value) == len(arguments):
                return tuple(map(as_type, value, arguments))
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is str and type(value) is int:
        return str(value)  # save_every: 500
    elif type(value) is hint or (hint is type(None) and value is None):
        return value
    raise TypeError(f"{str(value)[:80]!r} is no {hint}")
