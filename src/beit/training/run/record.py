"""A run directory as the report sees it: everything that is there, the curve of every figure among it,
whatever the state the run is in."""

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.config.errors import UserError
from beit.config.files import read_values
from beit.config.values import counted
from beit.training.console import duration
from beit.training.run.lock import RunLock
from beit.untrusted import read_json

LARGEST = sys.float_info.max
NOT_FIGURES = {"step", "epoch", "images", "seconds", "time"}
MIME_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PICTURE_NAME = re.compile(r"step-(?P<step>\d+)-(?P<kind>.+)")
ANSI_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LOG_LINES = 60
MAX_PICTURE_BYTES = 12_000_000
GONE = "its process is gone without a word: killed, out of memory, or a power cut"


class Curve(NamedTuple):
    """Values of one figure at increasing steps; all finite."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def recent(self) -> float:
        """Mean of the last tenth: the last value of a noisy curve says little."""
        return float(self.values[-max(1, len(self.values) // 10) :].mean())


@dataclass(frozen=True)
class Picture:
    """One file of `samples/`."""

    path: Path
    kind: str
    step: int | None
    size: tuple[int, int]
    """Width and height in pixels."""


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says; whatever is missing is empty."""

    name: str = ""
    folder: Path = Path()
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    log_tail: str = ""
    problems: Sequence[str] = ()
    """What could not be read, in words."""

    @property
    def verb(self) -> str:
        return str(self.status.get("verb") or "run")

    @property
    def state(self) -> str:
        return str(self.status.get("state") or "unknown")

    @property
    def classes(self) -> list[Any]:
        """Names of the model's classes; empty where it has none."""
        classes = self.model.get("classes")
        return classes if isinstance(classes, list) else []

    def entries(self, name: str) -> dict[str, Mapping[str, Any]]:
        """What of `name` in results.json has figures of its own: "classes", each class; "confusion", likewise."""
        table = self.results.get(name)
        entries = table.items() if isinstance(table, Mapping) else ()
        return {str(key): entry for key, entry in entries if isinstance(entry, Mapping)}

    @property
    def vocab_size(self) -> int | None:
        return self.number("vocab_size")

    def number(self, name: str) -> int | None:
        """The first whole number of this name."""
        values = (find(source, name) for source in (self.results, self.status, self.model, self.config))
        return next((value for value in values if isinstance(value, int)), None)

    @property
    def time(self) -> str | None:
        """How long it took, in words."""
        seconds = find(self.results, "seconds") or self.status.get("elapsed")
        return duration(seconds) if isinstance(seconds, int | float) else None


def read_run(folder: Path) -> RunRecord:
    """Read a run directory, finished or not. A folder that is none raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run directory: there is no such folder; name the --out of a training run")
    if not any((folder / name).is_file() for name in ("status.json", "config.yaml", "metrics.jsonl")):
        lacks = "it holds no status.json, config.yaml or metrics.jsonl"
        raise UserError(f"{folder} is not a run directory: {lacks}; name the --out of a training run")
    problems: list[str] = []
    curves, unreadable = read_curves(folder / "metrics.jsonl")
    if unreadable:
        problems.append(f"{counted(unreadable, 'line')} of metrics.jsonl could not be read")
    config_text = _read_text(folder / "config.yaml")
    config: dict[str, Any] = {}
    try:
        config = read_values(folder / "config.yaml", "config.yaml") if config_text else {}
    except UserError:
        problems.append("config.yaml could not be read")
    log = ANSI_ESCAPE.sub("", _read_text(folder / "log.txt").replace("\r\n", "\n"))
    # A progress bar rewrites its line: only what it said last counts.
    log_lines = [line.rstrip("\r").rpartition("\r")[2] for line in log.splitlines()]
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        config=config,
        config_text=config_text,
        status=_read_json(folder / "status.json", problems),
        results=_read_json(folder / "results.json", problems),
        model=_read_json(folder / "model" / "model.json", problems),
        curves=curves,
        pictures=tuple(_read_pictures(folder / "samples", problems)),
        log_tail="\n".join(log_lines[-LOG_LINES:]),
        problems=problems,
    )


def read_standing(folder: Path) -> RunRecord:
    """The record of a run, whose state is "killed" where it says "running" and no process runs it.

    UserError for a folder that is no run.
    """
    record = read_run(folder)
    # None where nobody can tell: then the run is believed.
    if record.state == "running" and RunLock.is_held(folder) is False:
        return replace(record, status={**record.status, "state": "killed", "reason": GONE})
    return record


def distinct_names(runs: Sequence[RunRecord]) -> list[str]:
    """One name for each run: its folder, with as many of the folders above as it takes to tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    names = [run.name for run in runs]
    depth = 1
    while len(set(names)) < len(names) and depth < max(map(len, parts)):
        depth += 1
        clashing = {name for name in names if names.count(name) > 1}
        names = ["/".join(p[-depth:]) if n in clashing else n for n, p in zip(names, parts, strict=True)]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def find(tree: Mapping[Any, Any], key: str) -> Any:
    """The first value under `key` at any depth, or None."""
    return next((value for name, value in flatten(tree) if name.rpartition(".")[2] == key), None)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_json(path) or {}
    except UserError:
        problems.append(f"{path.name} could not be read")
        return {}


def _read_pictures(folder: Path, problems: list[str]) -> Iterator[Picture]:
    """Pictures in the order of their steps. A file that is not whole is reported, not shown."""
    pictures = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix.lower() not in MIME_TYPES or path.name.startswith("."):
            continue
        if path.stat().st_size > MAX_PICTURE_BYTES:
            problems.append(f"samples/{path.name} is too large for this page")
            continue
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as picture:
                picture.load()
                size = picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            problems.append(f"samples/{path.name} could not be read")
            continue
        match = PICTURE_NAME.fullmatch(path.stem)
        step = int(match["step"]) if match else None
        pictures.append(Picture(path, match["kind"] if match else path.stem, step, size))
    yield from sorted(pictures, key=lambda picture: (picture.step or 0, picture.path.name))


def read_curves(path: Path) -> tuple[dict[str, Curve], int]:
    """Every figure of a `metrics.jsonl` by name, and the number of lines that could not be read.

    A last line without its newline is still being written and is not counted. A step that was logged twice, before a
    kill and again after it, counts as it was logged last. Values that are not finite numbers are left out.
    """
    if not path.is_file():
        return {}, 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    points: dict[str, dict[float, float]] = {}
    unreadable = 0
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            unreadable += 1
            continue
        for name, value in record.items():
            if name not in NOT_FIGURES and type(value) in (int, float) and abs(value) <= LARGEST:
                points.setdefault(name, {})[step] = value
    curves = {name: Curve(*np.array(sorted(of_name.items()), float).T) for name, of_name in points.items()}
    return curves, unreadable
