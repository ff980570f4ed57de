"""The house keeps its shape: who may import whom, and what stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import beit

PACKAGE = Path(beit.__file__).parent

ALLOWED = {
    "atomic": set(),
    "pixels": set(),
    "untrusted": {"config"},
    "config": set(),
    "presets": {"config"},
    "masking": {"config"},
    "metrics": {"config"},
    "data": {"masking", "config", "pixels"},
    "models": {"config", "pixels"},
    "tokenizers": {"config", "pixels"},
    "training": {"atomic", "config", "visualize"},
    "checkpoints": {"atomic", "models", "tokenizers", "config", "presets"},
    "visualize": {"atomic", "models", "tokenizers", "data", "masking", "config", "training"},
    "stages": {
        "checkpoints",
        "config",
        "data",
        "masking",
        "metrics",
        "models",
        "pixels",
        "presets",
        "tokenizers",
        "training",
        "visualize",
    },
    "recipes": {
        "atomic",
        "checkpoints",
        "config",
        "data",
        "masking",
        "metrics",
        "models",
        "presets",
        "stages",
        "tokenizers",
        "training",
        "visualize",
    },
    "cli": {"config", "presets"},
}


def imports_of(path: Path) -> set[str]:
    """First component under `beit` of everything that the file imports from the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"relative import in {path}"
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("beit.")}
    return found


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_lies_below_it(layer: str) -> None:
    home = PACKAGE / layer
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    assert files
    for file in files:
        assert imports_of(file) <= ALLOWED[layer] | {layer}, file


def test_every_module_belongs_to_a_layer() -> None:
    modules = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert modules - {"__init__", "__main__"} == set(ALLOWED)


@pytest.mark.parametrize("module", ["beit", "beit.cli.main", "beit.config", "beit.presets", "beit.masking"])
def test_is_free_of_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_resolves() -> None:
    for name in beit.__all__:
        assert getattr(beit, name) is not None
