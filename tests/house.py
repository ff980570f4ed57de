"""The shape of the house in figures: ``python tests/house.py [SRC]`` prints them, test_architecture.py bounds them.

Lines, functions, parameter objects and imports are read from the text. The files that a pre-training imports, and the
way of one batch through them, are watched in a real step.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SRC = Path(__file__).parents[1] / "src"
ENTRY = "beit.recipes.pretrain"


class Function(NamedTuple):
    lines: int
    place: str


class House:
    """The modules of the package under `src`, parsed."""

    def __init__(self, src: Path = SRC) -> None:
        self.package = src / "beit"
        self.paths: dict[str, Path] = {}
        for path in sorted(self.package.rglob("*.py")):
            parts = path.relative_to(src).with_suffix("").parts
            self.paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.texts = {module: path.read_text(encoding="utf-8") for module, path in self.paths.items()}
        self.trees = {module: ast.parse(text) for module, text in self.texts.items()}

    # ---------------------------------------------------------------------------------------------- Text

    def lines(self, modules: Iterable[str]) -> int:
        return sum(len(self.texts[module].splitlines()) for module in modules)

    def lines_of_code(self) -> int:
        """Lines that are not blank, comment or docstring, the recipes' among them, which are data."""
        recipes = [line.strip() for path in self.package.rglob("*.yaml") for line in path.read_text().splitlines()]
        code = sum(self._lines_of_code(module) for module in self.texts)
        return code + sum(bool(line) and not line.startswith("#") for line in recipes)

    def _lines_of_code(self, module: str) -> int:
        docstrings: set[int] = set()
        for node in ast.walk(self.trees[module]):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                docstrings.update(range(node.lineno, (node.end_lineno or 0) + 1))
        lines = enumerate(map(str.strip, self.texts[module].splitlines()), 1)
        return sum(bool(line) and not line.startswith("#") and number not in docstrings for number, line in lines)

    def rooms(self) -> dict[str, list[str]]:
        """The modules of each folder of the package; those beside the folders as `root`."""
        rooms: dict[str, list[str]] = {}
        for module, path in self.paths.items():
            parts = path.relative_to(self.package).parts
            rooms.setdefault(parts[0] if len(parts) > 1 else "root", []).append(module)
        return rooms

    def folders(self) -> dict[str, int]:
        """Entries of each folder, without `__init__` and caches."""
        entries: Counter[str] = Counter()
        for path in self.package.rglob("*"):
            if not path.name.startswith((".", "__init__", "__pycache__")) and path.suffix != ".pyc":
                entries[str(path.parent.relative_to(self.package.parent))] += 1
        return dict(entries)

    def functions(self) -> list[Function]:
        return [
            Function((node.end_lineno or 0) - node.lineno + 1, f"{module}:{node.lineno} {node.name}")
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def parameter_objects(self) -> dict[str, int]:
        """Fields of every dataclass and NamedTuple, inherited ones counted."""
        classes = {
            node.name: node
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and _has_fields(node)
        }

        def fields(node: ast.ClassDef) -> int:
            inherited = [classes[ast.unparse(base)] for base in node.bases if ast.unparse(base) in classes]
            return sum(map(_is_field, node.body)) + sum(map(fields, inherited))

        return {name: fields(node) for name, node in classes.items()}

    def lines_with_any(self) -> int:
        """Lines that use Any, beyond imports."""
        return sum(
            len({node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any"})
            for tree in self.trees.values()
        )

    # ------------------------------------------------------------------------------------------- Imports

    def imports(self, module: str, *, late: bool = False) -> set[str]:
        """Modules of the package that `module` imports as it is loaded; `late`: by its functions, too.
        Those for type checkers alone do not count."""
        names: set[str] = set()
        nodes: list[ast.AST] = [self.trees[module]]
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                nodes.extend(node.orelse)
            elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes.extend(ast.iter_child_nodes(node))
        return names & self.paths.keys()

    def closure(self, *modules: str, late: bool = False) -> set[str]:
        """`modules`, and all that is imported with them."""
        closure: set[str] = set()
        queue = list(modules)
        while queue:
            module = queue.pop()
            if module not in closure:
                closure.add(module)
                queue.extend(self.imports(module, late=late))
        return closure

    def circles(self) -> list[list[str]]:
        """Groups of modules that import one another as they are loaded."""
        below = {module: self.closure(*self.imports(module) - {module}) for module in self.paths}
        circles = {
            tuple(sorted(other for other in below[module] if module in below[other]))
            for module in self.paths
            if module in below[module]
        }
        return [list(circle) for circle in sorted(circles)]


def _has_fields(node: ast.ClassDef) -> bool:
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    return bool(decorators & {"dataclass", "dataclasses.dataclass"}) or any(
        ast.unparse(base) == "NamedTuple" for base in node.bases
    )


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)


# ---------------------------------------------------------------------------------------------------- A real step

ONE_STEP = """
import json, pathlib, sys
import numpy as np
from PIL import Image

package, folder = sys.argv[1], pathlib.Path(sys.argv[2])
(folder / "images").mkdir()
for index in range(24):
    pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{index:02}.png")
common = dict(preset=None, data=str(folder / "images"), steps=1, epochs=None, workers=0, evaluations=1,
              precision="float32", warmup_steps=0, warmup_epochs=None, holdout=0.25, image_size=32)

import beit
beit.tokenizer(beit.TokenizerConfig(
    **common, out=str(folder / "tokenizer"), width=8, blocks_per_group=1, stride=8, vocab_size=16, batch_size=4))
for module in [name for name in sys.modules if name.split(".")[0] == "beit"]:
    del sys.modules[module]

visits, inside = [], False

def watch(frame, event, _):
    global inside
    file = frame.f_code.co_filename
    if event not in ("call", "return") or not file.startswith(package):
        return
    if frame.f_code.co_name == "take_step":
        inside = event == "call"
    elif inside and event == "call":
        file = file.removeprefix(package)
        if not visits or visits[-1] != file:
            visits.append(file)

import beit
sys.setprofile(watch)
beit.pretrain(beit.PretrainConfig(
    **common, out=str(folder / "run"), tokenizer=str(folder / "tokenizer"), patch_size=8, width=32, depth=2,
    num_heads=2, batch_size=1))
sys.setprofile(None)
beit.report(beit.ReportConfig(runs=(str(folder / "run"),)))
(folder / "record.json").write_text(json.dumps({"modules": list(sys.modules), "visits": visits}))
"""


def run_one_step(src: Path = SRC) -> tuple[set[str], list[str]]:
    """A one-step pre-training with evaluation, drawing, save and report, in a process of its own: the modules that
    were imported, and the files that the batch of one image went through, in order."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", ONE_STEP, f"{src / 'beit'}/", folder]
        environment = {**os.environ, "PYTHONPATH": str(src), "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, env=environment, capture_output=True, check=True)
        record = json.loads((Path(folder) / "record.json").read_text())
    return set(record["modules"]), record["visits"]


def main(src: Path = SRC) -> None:
    house = House(src)
    for room, modules in sorted(house.rooms().items()):
        print(f"{room:12} {len(modules):4} files {house.lines(modules):6,} lines")
    print(f"all          {len(house.paths):4} files {house.lines(house.paths):6,} lines")
    print(f"lines of code {house.lines_of_code():,}")
    folders = Counter(house.folders()).most_common(6)
    print("largest folders", ", ".join(f"{name} {count}" for name, count in folders))
    functions = house.functions()
    print("functions over 50 lines", [function.place for function in functions if function.lines > 50])
    print("functions over 40 lines", sum(function.lines > 40 for function in functions))
    print("circles", house.circles())
    widest = Counter(house.parameter_objects()).most_common()
    print("widest", ", ".join(f"{name} {count}" for name, count in widest if count > 9))
    print("lines with Any", house.lines_with_any())
    for late in (False, True):
        closure = house.closure(ENTRY, late=late)
        note = " with late imports" if late else ""
        print(f"closure of {ENTRY}{note}: {len(closure)} files, {house.lines(closure):,} lines")
    modules, visits = run_one_step(src)
    loaded = modules & house.paths.keys()
    print(f"imported by a one-step run: {len(loaded)} files, {house.lines(loaded):,} lines")
    files = Counter(visits)
    print(f"one batch: {len(files)} files, {len(visits) - len(files)} re-entries")
    print("  ", ", ".join(f"{name} {count}" for name, count in files.most_common()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
