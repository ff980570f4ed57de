"""`beit info`: what a run, a model or a checkpoint of another library is, and where a run stands."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.checkpoints.reference import locate
from beit.checkpoints.store import REMEDY, describe, is_model
from beit.config.errors import require
from beit.config.use import InfoConfig, Outcome
from beit.training.metrics import short_number
from beit.training.run.checkpoints import checkpoint_steps
from beit.training.run.record import read_standing

Facts = dict[str, Any]
"""Named facts, in the order in which they are shown."""


def info(config: InfoConfig) -> Outcome:
    """Print what is at `config.path`, and return it: `results` has the facts about a `run`, a `model`, or both."""
    path, _ = locate(config.path)
    require(path.exists(), f"{path} does not exist; {REMEDY}")
    facts: dict[str, Facts] = {}
    for run in (Path(config.path), path):  # a run of `beit train`, and the part that stands for it
        if (run / "status.json").is_file():
            facts["run"] = describe_run(run)
            break
    if is_model(path):
        facts["model"] = describe_model(config.path, path)
    require(bool(facts), f"{path} is neither a run nor a model of a known format; {REMEDY}")
    show(facts)
    return Outcome(config, facts)


# ------------------------------------------------------------------------------------------------------------
# Runs


def describe_run(path: Path) -> Facts:
    """Where a run stands, its newest figures, and how to go on."""
    run = read_standing(path)
    steps = checkpoint_steps(path / "checkpoints")
    facts: Facts = {
        "run": str(path),
        "verb": run.verb,
        "state": run.state,
        **{key: run.status.get(key) or None for key in ("reason", "step", "steps", "started", "updated")},
        "data": run.config.get("data"),
        # The figures of the end where there is one, else those logged last.
        "last": run.results.get("last") or {name: curve.last for name, curve in run.curves.items()},
        "checkpoint": steps[-1] if steps else None,
        "command": run.status.get("command"),
        "problems": list(run.problems) or None,
    }
    if run.state not in ("done", "running"):
        place = shlex.quote(str(path))  # which config.yaml does not know, where the run has moved
        facts["to continue"] = f"beit {run.verb} --config {place}/config.yaml --out {place}"
    return facts


# ------------------------------------------------------------------------------------------------------------
# Models


def describe_model(reference: str, path: Path) -> Facts:
    """What model.json says, or what a file of another library shows; the weights of our own are not read."""
    description = describe(reference)
    description.pop("palette", None)  # colours say little in words
    provenance = description.setdefault("provenance", {}) or {}
    if isinstance(provenance.get("command"), list):
        provenance["command"] = shlex.join(map(str, provenance["command"]))
    first = {name: description.pop(name) for name in ("format", "kind", "parameters")}
    last = {name: description.pop(name, None) for name in ("classes", "architecture", "provenance")}
    return {"model": str(path), **first, **description, **last}


# ------------------------------------------------------------------------------------------------------------
# For people


def show(parts: Mapping[str, Facts]) -> None:
    """Print every fact as a line."""
    width = 1 + max(len(name) for facts in parts.values() for name in facts)
    for number, facts in enumerate(parts.values()):
        if number:
            print()
        for name, value in facts.items():
            if value not in (None, [], {}):
                print(f"{name.replace('_', ' '):<{width}} {in_words(value)}")


def in_words(value: Any) -> str:
    """A fact as text: mappings as `name value` pairs, long lists cut short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        words = ", ".join(map(in_words, value[:12]))
        return f"{words}, and {len(value) - 12:,} more" if len(value) > 12 else words
    if isinstance(value, float):
        return short_number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
