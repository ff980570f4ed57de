"""Values of configurations: the limits that stand in their types, and YAML and JSON read as those types."""

import ast
import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, astuple, fields
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

from beit.config.errors import UserError, require

Limit = Gt | Ge | Lt | Le

EXCLUSIVE = (("label_share", "labels_per_class"), ("eval_data", "holdout"), ("labels", "label_maps"))
"""Ways to say one thing, of which at most one may be given."""
FILE_ONLY = {"file_only": True}
"""Metadata of a field that stands in files, and has no flag."""

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
PositiveShare = Annotated[float, Interval(gt=0, le=1)]


def flag_of(field: str) -> str:
    """The flag that sets a field of a configuration."""
    return f"--{field.replace('_', '-')}"


def counted(number: int, noun: str, verbs: str = "") -> str:
    """A number of things, and which of two verbs they have: 1 image, 2,048 images; 1 class is, 3 classes are."""
    plural = "" if number == 1 else "es" if noun.endswith(("s", "x", "tch")) else "s"
    one, _, several = verbs.partition("/")
    return f"{number:,} {noun}{plural} {one if number == 1 else several}".rstrip()


def defaults_of(config_type: Any) -> dict[str, Any]:
    """The values of a configuration's fields that have a default, by name."""
    return {field.name: field.default for field in fields(config_type) if field.default is not MISSING}


@functools.cache
def field_docs(of: type) -> Mapping[str, str]:
    """The docstring below every attribute of a class, in one line, its own before that of its base."""
    docs: dict[str, str] = {}
    for base in reversed(of.__mro__):
        for node in ast.parse(inspect.getsource(base)).body if base is not object else ():
            for knob, text in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
                match knob, text:
                    case (
                        (ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)])),
                        ast.Expr(value=ast.Constant(value=str(said))),
                    ):
                        docs[name] = " ".join(said.split())
    return docs


def check_limits(config: object) -> None:
    """UserError naming the first field of a dataclass whose value, or a part of it, its type does not allow, and
    fields that exclude each other.

    Numbers have limits, and where nothing but words is allowed these are looked up. Paths become text.
    """
    for name, value in vars(config).items():
        if isinstance(value, Path):
            object.__setattr__(config, name, str(value))
        elif isinstance(value, (list, tuple)) and any(isinstance(x, Path) for x in value):
            object.__setattr__(config, name, tuple(str(x) if isinstance(x, Path) else x for x in value))
    config_type: type = type(config)
    for name, limits in _limits_of(config_type).items():
        value = getattr(config, name)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(number, Real) and (problem := _problem(number, limits)):
                raise UserError(f"{flag_of(name)} {problem}")
    for name, hint in _words_of(config_type).items():
        value = getattr(config, name)
        require(value in typing.get_args(hint), f"{flag_of(name)} must be {in_words(hint)}, not {value!r}")
    for group in EXCLUSIVE:
        given = [flag_of(name) for name in group if getattr(config, name, None) is not None]
        require(len(given) < 2, f"{' and '.join(given)} exclude each other; give one")


@functools.cache
def _words_of(config_type: type) -> dict[str, Any]:
    """The fields that take nothing but words."""
    hints = typing.get_type_hints(config_type)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is Literal}


@functools.cache
def _limits_of(config_type: type) -> dict[str, tuple[Limit, ...]]:
    """The limits of each field, those of a field of the same name in a base class among them."""
    limits: dict[str, dict[Limit, None]] = {}
    for base in reversed(config_type.__mro__):
        for name, hint in typing.get_type_hints(base, include_extras=True).items():
            limits.setdefault(name, {}).update(dict.fromkeys(_limits_in(hint)))
    return {name: tuple(of_field) for name, of_field in limits.items() if of_field}


def _limits_in(hint: Any) -> Iterator[Any]:
    """The limits in a type, at any depth."""
    for limit in getattr(hint, "__metadata__", ()):
        yield from limit if isinstance(limit, Interval) else (limit,)
    for part in typing.get_args(hint):
        yield from _limits_in(part)


_WORDS = {"Gt": "above", "Ge": "at least", "Lt": "below", "Le": "at most"}


def _problem(value: Any, limits: Sequence[Limit]) -> str | None:
    """What is wrong with a number, if anything is, with all its limits; none may be infinite."""
    bounds = [(type(limit).__name__, astuple(limit)[0]) for limit in limits]
    finite = isinstance(value, int) or math.isfinite(value)
    if finite and all(getattr(operator, sign.lower())(value, bound) for sign, bound in bounds):
        return None
    words = ("positive" if limit == ("Gt", 0) else f"{_WORDS[limit[0]]} {limit[1]}" for limit in bounds)
    return f"must be {' and '.join(words)}, not {value if abs(value) < 1e15 or not finite else 'so large'}"


def alternatives(hint: object) -> tuple[Any, ...]:
    """The types of a union; of another type itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def as_type(value: object, hint: object) -> Any:
    """`value` as the type `hint` says, lists as tuples, or TypeError. Knows the few types that the package uses."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if len(among := alternatives(hint)) > 1:
        for option in among:
            with suppress(TypeError):
                return as_type(value, option)
    elif origin is Literal:
        if any(type(value) is type(option) and value == option for option in options):
            return value
    elif origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
        any_number = origin is Sequence or options[-1] is Ellipsis
        hints = options[:1] * len(value) if any_number else options
        if len(hints) == len(value):
            return tuple(map(as_type, value, hints))
    elif origin is dict and isinstance(value, dict):
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is str and type(value) is int:
        return str(value)  # save_every: 500
    elif type(value) is hint:
        return value
    raise TypeError(f"{str(value)[:80]!r} is no {hint}")


def typed(values: Mapping[str, Any], hints: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """`values` as the types of `hints`, lists as tuples. UserError, beginning with `name`, for the first that is
    none."""
    result = {}
    for key, value in values.items():
        try:
            result[key] = as_type(value, hints[key])
        except (TypeError, OverflowError):
            raise UserError(f"{name}{key} is {repr(value)[:80]}, but must be {in_words(hints[key])}") from None
    return result


def in_words(hint: object) -> str:
    """A type as a message names it."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"{'one of ' if len(options) > 1 else ''}{', '.join(map(repr, options))}"
    if len(among := alternatives(hint)) > 1:
        return " or ".join(map(in_words, among))
    if origin in (tuple, Sequence):
        return f"{'several' if Ellipsis in options or origin is Sequence else len(options)} values"
    words: dict[object, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(hint, "an object" if hint is dict else "null")
