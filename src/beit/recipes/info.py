"""`beit info`: what a run, a model or a checkpoint of another library is, and where a run stands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from beit.checkpoints.own import WEIGHTS
from beit.checkpoints.reference import Located, locate
from beit.checkpoints.store import REMEDY, describe, is_model
from beit.config.errors import UserError
from beit.config.use import InfoConfig
from beit.training.metrics import short_number
from beit.training.run.checkpoints import checkpoint_steps
from beit.training.run.record import RunRecord
from beit.training.run.standing import read_standing

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch norms keep besides their weights."""
Facts = dict[str, Any]
"""Named facts, in the order in which they are shown."""


def info(config: InfoConfig) -> dict[str, Facts]:
    """Print what is at `config.path`, and return it: the facts about a `run`, a `model`, or both."""
    located = locate(config.path)
    path = located.path
    if not path.exists():
        raise UserError(f"{path} does not exist; {REMEDY}")
    found = {part.name: part.describe(located) for part in PARTS if part.recognizes(path)}
    if not found:
        raise UserError(f"{path} is neither a run nor a model of a known format; {REMEDY}")
    show(found)
    return found


# ------------------------------------------------------------------------------------------------------------
# Runs


def is_run(path: Path) -> bool:
    return (path / "status.json").is_file()


def describe_run(located: Located) -> Facts:
    """Where a run stands, its newest figures, and how to go on."""
    path = located.path
    run = read_standing(path)
    status = run.status
    saved = checkpoint_steps(path / "checkpoints")
    facts: Facts = {
        "run": str(path),
        "verb": run.verb,
        "state": run.state,
        "reason": status.get("reason"),
        "step": status.get("step"),
        "steps": status.get("steps"),
        "started": status.get("started"),
        "updated": status.get("updated"),
        "data": run.config.get("data"),
        "last": newest_figures(run),
        "checkpoint": saved[-1] if saved else None,
        "command": status.get("command"),
        "problems": list(run.problems) or None,
    }
    if run.state not in ("done", "running"):
        facts["to continue"] = f"beit {run.verb} --config {path / 'config.yaml'}"
    return facts


def newest_figures(run: RunRecord) -> Facts:
    """The last value of every figure: those of the end where there is one, else those logged last."""
    last = run.results.get("last")
    return (
        dict(last) if isinstance(last, Mapping) else {name: curve.last for name, curve in run.curves.items()}
    )


# ------------------------------------------------------------------------------------------------------------
# Models


def describe_model(located: Located) -> Facts:
    """What model.json says, or what a file of another library shows; the weights of our own are not read."""
    path = located.path
    described = describe(located)
    classes = described.pop("classes", None)
    described.pop("palette", None)  # colours say little in words
    facts: Facts = {"model": str(path), "format": described.pop("format"), "kind": described.pop("kind")}
    facts["parameters"] = described.pop("parameters", None) or count_parameters(path)
    provenance, architecture = described.pop("provenance", None) or {}, described.pop("architecture", None)
    if isinstance(provenance.get("command"), list):
        provenance["command"] = shlex.join(map(str, provenance["command"]))
    described["classes"] = classes
    return facts | described | {"architecture": architecture, "provenance": provenance}


def count_parameters(path: Path) -> int:
    """Numbers that were learned, in the weights of a run or model/ folder, from the file's header."""
    file = next(file for file in (path / "model" / WEIGHTS, path / WEIGHTS, path) if file.is_file())
    try:
        with safe_open(file, framework="pt") as tensors:
            keys = [key for key in tensors.keys() if key.rpartition(".")[2] not in STATISTICS]  # noqa: SIM118
            return sum(math.prod(tensors.get_slice(key).get_shape()) for key in keys)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy or save the model again") from None


class Part(NamedTuple):
    """Something that may be found at a path."""

    name: str
    recognizes: Callable[[Path], bool]
    describe: Callable[[Located], Facts]


PARTS: Sequence[Part] = (Part("run", is_run, describe_run), Part("model", is_model, describe_model))
"""All that are found are told."""


# ------------------------------------------------------------------------------------------------------------
# For people


def show(found: Mapping[str, Facts]) -> None:
    """Print every fact as a line."""
    width = 1 + max(len(name) for facts in found.values() for name in facts)
    print("\n\n".join("\n".join(_lines(facts, width)) for facts in found.values()))


def _lines(facts: Facts, width: int) -> Iterator[str]:
    for name, value in facts.items():
        if value not in (None, [], {}):
            yield f"{name.replace('_', ' '):<{width}} {in_words(value)}"


def in_words(value: Any) -> str:
    """A fact as text: mappings as `name value` pairs, long lists cut short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        shown = ", ".join(map(in_words, value[:12]))
        return f"{shown}, and {len(value) - 12:,} more" if len(value) > 12 else shown
    if isinstance(value, float):
        return short_number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
