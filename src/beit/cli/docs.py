"""What the knobs mean: the docstrings behind the fields of a configuration, for help texts and `help`."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import TypeVar

FIELDS = "\n\nFields:\n\n"
Config = TypeVar("Config", bound=type)


@cache
def field_docs(config_type: type) -> Mapping[str, str]:
    """The docstring of every field in one line, a class's own before that of its base."""
    docs: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        for node in ast.parse(textwrap.dedent(inspect.getsource(base))).body:
            for knob, text in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
                match knob, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                        docs[name] = " ".join(said.split())
    return docs


def documented(config_type: Config) -> Config:
    """`config_type`, whose docstring now says what its fields are."""
    said = inspect.cleandoc(str(config_type.__doc__))
    if FIELDS not in said:
        entries = (f"{name}: {text}" for name, text in field_docs(config_type).items())
        lines = (textwrap.fill(entry, 90, subsequent_indent="    ") for entry in entries)
        config_type.__doc__ = said + FIELDS + "\n".join(lines)
    return config_type
