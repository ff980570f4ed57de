"""The shape of the house in figures: ``python tests/house.py [SRC]`` prints them, test_architecture.py bounds them.

What is counted: lines and files, functions, parameter objects and uses of Any, from the text; the imports of a
pre-training run, as they are written and as they happen; and the way of one batch through the files, by a profile of
a real step.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
ENTRY = "beit.recipes.pretrain"


class House:
    """The files under `src`/beit, parsed."""

    def __init__(self, src: Path = SRC) -> None:
        self.src = src
        self.files = {self._module(path): path for path in sorted((src / "beit").rglob("*.py"))}

    def _module(self, path: Path) -> str:
        parts = path.relative_to(self.src).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @functools.cache  # noqa: B019  one house for each process
    def tree(self, module: str) -> ast.Module:
        return ast.parse(self.text(module))

    def text(self, module: str) -> str:
        return self.files[module].read_text(encoding="utf-8")

    def lines(self, module: str) -> int:
        return len(self.text(module).splitlines())

    # ---------------------------------------------------------------------------------------------- Text

    def lines_of_code(self) -> int:
        """Lines that are not blank, comment or docstring."""
        count = 0
        for module in self.files:
            prose = set()
            for node in ast.walk(self.tree(module)):
                body = getattr(node, "body", None)
                for child in body if isinstance(body, list) else ():
                    if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                        prose |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
            for number, line in enumerate(self.text(module).splitlines(), 1):
                count += bool(line.strip()) and not line.strip().startswith("#") and number not in prose
        return count

    def packages(self) -> dict[str, tuple[int, int]]:
        """Files and lines of each package; those beside the packages as `root`."""
        table: dict[str, tuple[int, int]] = {}
        for module, path in self.files.items():
            parts = path.relative_to(self.src / "beit").parts
            name = parts[0] if len(parts) > 1 else "root"
            files, lines = table.get(name, (0, 0))
            table[name] = files + 1, lines + self.lines(module)
        return table

    def folders(self) -> dict[str, int]:
        """Entries of each folder, without `__init__`, caches and what hides."""
        folders = [self.src / "beit", *(path for path in (self.src / "beit").rglob("*") if path.is_dir())]
        return {
            str(folder.relative_to(self.src)): sum(
                entry.name not in ("__init__.py", "__pycache__") and not entry.name.startswith(".")
                for entry in folder.iterdir()
            )
            for folder in folders
            if folder.name != "__pycache__"
        }

    def functions(self) -> Iterator[tuple[int, str]]:
        """Length and place of every function."""
        for module in self.files:
            for node in ast.walk(self.tree(module)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield (node.end_lineno or 0) - node.lineno + 1, f"{module}:{node.lineno} {node.name}"

    def parameter_objects(self) -> dict[str, int]:
        """Fields of every dataclass and NamedTuple, inherited ones counted."""
        classes: dict[str, tuple[list[str], int]] = {}
        for module in self.files:
            for node in ast.walk(self.tree(module)):
                if isinstance(node, ast.ClassDef):
                    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                    marks = [ast.unparse(mark) for mark in node.decorator_list] + bases
                    fields = sum(
                        isinstance(child, ast.AnnAssign) and "ClassVar" not in ast.unparse(child.annotation)
                        for child in node.body
                    )
                    if any(mark.startswith(("dataclass", "dataclasses.dataclass")) for mark in marks) or (
                        "NamedTuple" in bases
                    ):
                        classes[node.name] = bases, fields

        def total(name: str) -> int:
            bases, fields = classes[name]
            return fields + sum(total(base) for base in bases if base in classes)

        return {name: total(name) for name in classes}

    def any_lines(self) -> int:
        """Lines that use Any, beyond imports."""
        found = set()
        for module in self.files:
            for node in ast.walk(self.tree(module)):
                if isinstance(node, ast.Name) and node.id == "Any":
                    found.add((module, node.lineno))
        return len(found)

    # ------------------------------------------------------------------------------------------- Imports

    def imports(self, module: str, *, late: bool = True) -> set[str]:
        """Modules of the package that `module` imports; `late`: also those that its functions import as they run.
        Those for type checkers alone do not count."""
        found: set[str] = set()

        def visit(node: ast.AST, inside: bool) -> None:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                    continue
                if isinstance(child, ast.Import):
                    names = [alias.name for alias in child.names]
                elif isinstance(child, ast.ImportFrom) and child.module:
                    names = [child.module, *(f"{child.module}.{alias.name}" for alias in child.names)]
                else:
                    visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
                    continue
                if late or not inside:
                    found.update(name for name in names if name in self.files)

        visit(self.tree(module), False)
        return found

    def closure(self, entry: str = ENTRY, *, late: bool = False) -> set[str]:
        """All that is imported with `entry`."""
        seen: set[str] = set()
        waiting = [entry]
        while waiting:
            module = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            waiting += self.imports(module, late=late)
        return seen

    def circles(self) -> list[list[str]]:
        """Groups of modules that import one another, those imported late or for type checkers alone left out."""
        graph = {module: self.imports(module, late=False) - {module} for module in self.files}
        reach: dict[str, set[str]] = {}
        for module in graph:
            seen: set[str] = set()
            waiting = list(graph[module])
            while waiting:
                other = waiting.pop()
                if other not in seen:
                    seen.add(other)
                    waiting += graph[other]
            reach[module] = seen
        groups = {
            tuple(sorted(other for other in graph if other in reach[module] and module in reach[other]))
            for module in graph
            if module in reach[module]
        }
        return [list(group) for group in sorted(groups)]


# ---------------------------------------------------------------------------------------------------- A real step


PROFILED = """
import json, pathlib, sys, tempfile, threading
import numpy as np
from PIL import Image

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "images").mkdir()
for index in range(24):
    pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{index:02}.png")
import beit
common = dict(data=str(folder / "images"), steps=1, epochs=None, workers=0, evaluations=1, precision="float32",
              warmup_steps=0, warmup_epochs=None, holdout=0.25)
beit.tokenizer(beit.TokenizerConfig(
    **common, out=str(folder / "tokenizer"), image_size=32, width=8, blocks_per_group=1, stride=8, vocab_size=16,
    batch_size=4))
ours = str(pathlib.Path(beit.__file__).parent)
config = beit.PretrainConfig(
    **common, out=str(folder / "run"), tokenizer=str(folder / "tokenizer"), image_size=32, patch_size=8, width=32,
    depth=2, num_heads=2, batch_size=1)
del beit
for name in [name for name in sys.modules if name == "beit" or name.startswith("beit.")]:
    del sys.modules[name]
from beit.recipes.pretrain import pretrain
visits, inside = [], False

def profile(frame, event, _):
    global inside
    if event != "call" or not frame.f_code.co_filename.startswith(ours):
        return
    name = frame.f_code.co_filename[len(ours) + 1:]
    if inside and (not visits or visits[-1] != name):
        visits.append(name)

import beit.training.loop as loop
owner = next(value for value in vars(loop).values() if isinstance(value, type) and hasattr(value, "take_step"))
take_step = owner.take_step

def one_step(*arguments, **named):
    global inside
    inside = True
    sys.setprofile(profile)
    try:
        return take_step(*arguments, **named)
    finally:
        inside = False
        sys.setprofile(None)

owner.take_step = one_step
pretrain(config)
from beit.config.REPORT_HOME import ReportConfig
from beit.recipes.report import report
report(ReportConfig(runs=(str(folder / "run"),)))
modules = sorted(name for name in sys.modules if name == "beit" or name.startswith("beit."))
print("PROFILE" + json.dumps({"modules": modules, "visits": visits}))
"""


def run_one_step(src: Path = SRC) -> tuple[list[str], list[str]]:
    """A one-step pre-training on one image, with evaluation, drawing, save and report, in a process of its own: the
    modules of the package that were imported, and the files that the step went through, in order."""
    home = "use" if (src / "beit/config/use.py").exists() else "others"
    code = PROFILED.replace("REPORT_HOME", home)
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(src), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    record = json.loads(done.stdout.rpartition("PROFILE")[2])
    return record["modules"], record["visits"]


def main(src: Path = SRC) -> None:
    house = House(src)
    for name, (files, lines) in sorted(house.packages().items()):
        print(f"{name:12} {files:4} files {lines:6,} lines")
    print(f"all          {len(house.files):4} files {sum(map(house.lines, house.files)):6,} lines")
    print(f"lines of code {house.lines_of_code():,}")
    folders = sorted(house.folders().items(), key=lambda item: -item[1])[:6]
    print("largest folders", ", ".join(f"{name} {count}" for name, count in folders))
    lengths = sorted(house.functions(), reverse=True)
    print("functions over 50 lines", [place for length, place in lengths if length > 50])
    print(f"functions over 40 lines {sum(length > 40 for length, _ in lengths)}")
    print("circles", house.circles())
    widest = sorted(house.parameter_objects().items(), key=lambda item: -item[1])
    print("widest", ", ".join(f"{name} {count}" for name, count in widest if count > 9))
    print(f"lines with Any {house.any_lines()}")
    for late in (False, True):
        closure = house.closure(late=late)
        print(
            f"closure of {ENTRY}{' with late imports' if late else ''}: {len(closure)} files, "
            f"{sum(map(house.lines, closure)):,} lines"
        )
    modules, visits = run_one_step(src)
    known = [module for module in modules if module in house.files]
    print(f"imported by a one-step run: {len(known)} files, {sum(map(house.lines, known)):,} lines")
    counts = Counter(visits)
    print(f"one batch: {len(counts)} files, {len(visits) - len(counts)} re-entries")
    print("  ", ", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SRC)
