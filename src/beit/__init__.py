"""Learn vision models from unlabelled images: BEiT (Bao et al. 2021, arXiv 2106.08254).

The public names stand in one table, `__init__.pyi`, which type checkers and editors read; here they are resolved from
it on first use (PEP 562), so that ``import beit`` costs nothing.
"""

import ast
import importlib
from pathlib import Path

_TABLE = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {alias.name: node.module for node in _TABLE.body if isinstance(node, ast.ImportFrom) for alias in node.names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'beit' has no attribute {name!r}")
    if _HOMES[name] == "beit":
        return importlib.import_module(f"beit.{name}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    if name.endswith("Config"):  # help(beit.PretrainConfig) shows the text of every field
        importlib.import_module("beit.cli.help").documented(found)
    return found


def __dir__() -> list[str]:
    return __all__
