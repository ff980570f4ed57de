"""Opening a run directory: a new run, one to continue, a finished one, or a refusal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from beit.config.errors import UserError
from beit.training.console import Console
from beit.training.device import Compute
from beit.training.run.directory import CONFIG, LAYOUT, LOG, STATUS, RunDirectory
from beit.training.run.lock import RunLock

CHANGEABLE = frozenset(
    {
        "accumulate",
        "devices",
        "keep",
        "log_every",
        "max_bad",
        "out",
        "save_every",
        "tensorboard",
        "wandb",
        "workers",
    }
)
"""Knobs that may differ when a run continues."""


class _Found(NamedTuple):
    config: dict[str, Any]
    status: dict[str, Any]


def open_run(
    out: str | Path,
    *,
    verb: str,
    config: Mapping[str, Any],
    compute: Compute,
    console: Console,
    facts: Mapping[str, str] | None = None,
    changeable: Collection[str] = CHANGEABLE,
    overwrite: bool = False,
    heading: str = "",
) -> RunDirectory:
    """Begin the run in `out`, or continue the one that is there.

    Args:
        config: the resolved configuration as plain values; where it says `auto`, the stored choice is reused.
        facts: what the run depends on besides `config`, by name; a run that began with others is refused.
        changeable: top-level keys of `config` that may differ from the stored ones.
        overwrite: delete the run that is there, after naming it.
        heading: comment on top of config.yaml.

    Raises:
        UserError: `out` holds something else, a run with another configuration, or one that is still running.
    """
    path = Path(out)
    lock: RunLock | None = None

    def find() -> _Found:
        nonlocal lock
        _make_folder(path)
        lock = RunLock.take(path)
        try:
            if overwrite:
                _delete_run(path, verb, console)
            found = _reconcile(path, verb, _plain(config), changeable)
            _compare_facts(path, facts or {}, found.status)
            return found
        except BaseException:
            lock.release()
            raise

    found = compute.from_main(find)
    console.log_to(path / LOG)
    run = RunDirectory(
        path,
        verb=verb,
        config=found.config,
        status={**found.status, **(facts or {})},
        lock=lock,
        heading=heading,
        compute=compute,
        console=console,
    )
    if not run.finished:
        run.begin()
    return run


def _make_folder(path: Path) -> None:
    """Make sure that `path` is a run, or a place for one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        contents = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise UserError(f"--out {path} cannot be used: {error.strerror}") from error
    # A run that was killed while it began may have left its log and nothing else.
    if contents - {LOG} and not (path / CONFIG).exists():
        raise UserError(f"--out {path} is not empty and holds no run; choose another folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out {path} cannot be written to; choose another folder")


def is_finished(out: str | Path, *, verb: str, config: Mapping[str, Any]) -> bool:
    """Whether `out` holds this very run, and it is done. Reads only.

    Raises:
        UserError: `out` holds another run.
    """
    return _reconcile(Path(out), verb, _plain(config), CHANGEABLE).status.get("state") == "done"


def _compare_facts(path: Path, facts: Mapping[str, str], status: Mapping[str, Any]) -> None:
    for name, fact in facts.items():
        if status.get(name, fact) != fact:
            raise UserError(
                f"--out {path} began with other {name} ({status[name]}, now {fact}); bring them back, choose "
                f"another --out, or start afresh with --overwrite"
            )


def _delete_run(path: Path, verb: str, console: Console) -> None:
    if not (path / CONFIG).exists():
        return
    status = _read_status(path)
    if status.get("verb", verb) != verb:
        raise UserError(f"--overwrite would delete the {status['verb']} run in {path}; choose another --out")
    console.say(
        f"deleting the {status.get('verb', 'unfinished')} run in {path}"
        f" ({status.get('state', 'state unknown')}, step {status.get('step', 0)})"
    )
    for name in LAYOUT:
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _reconcile(path: Path, verb: str, config: dict[str, Any], changeable: Collection[str]) -> _Found:
    """The configuration and status to go on with in `path`: the stored ones where a run is there."""
    if not (path / CONFIG).exists():
        return _Found(config, {})
    status = _read_status(path)
    if status.get("verb", verb) != verb:
        raise UserError(f"--out {path} holds a {status['verb']} run, not a {verb} run; choose another --out")
    try:
        stored = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError
    except (OSError, ValueError, yaml.YAMLError):
        raise UserError(f"{path / CONFIG} cannot be read; --overwrite starts the run afresh") from None
    merged, differences = {}, []
    for key in [*config, *(key for key in stored if key not in config)]:
        new, old = config.get(key), stored.get(key)
        merged[key] = old if new == "auto" and key in stored and key not in changeable else new
        if merged[key] != old and key not in changeable:
            differences.append(f"{key} was {old!r} and is now {new!r}")
    if differences:
        raise UserError(
            f"--out {path} holds a run with another configuration: {'; '.join(differences)}."
            " Give the stored values, choose another --out, or delete the run with --overwrite"
        )
    return _Found(merged, status)


def _read_status(path: Path) -> dict[str, Any]:
    """What status.json says; nothing if it was never written."""
    try:
        status = json.loads((path / STATUS).read_text(encoding="utf-8"))
        return status if isinstance(status, dict) else {}
    except (OSError, ValueError):
        return {}


def _plain(value: Any) -> Any:
    """`value` with tuples as lists and paths as text, as YAML would give it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
