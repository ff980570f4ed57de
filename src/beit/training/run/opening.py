"""Opening a run directory: a new run, one to continue, a finished one, or a refusal."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from beit.atomic import remove
from beit.config.errors import UserError
from beit.config.files import plain
from beit.training.console import Console
from beit.training.device import Compute
from beit.training.run.directory import CONFIG, LAYOUT, LOG, SAMPLES, STATUS, RunDirectory
from beit.training.run.lock import RunLock
from beit.untrusted import read_json

CHANGEABLE = frozenset(
    {
        "accumulate",
        "device",
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

RNG_VERSION = 2
"""The version of how random numbers are drawn and images held back. Runs of another would end with other weights."""
RELEASES = {1: "0.1"}
"""The release that finishes a run of each version; a status.json without one is of version 1."""


class Stored(NamedTuple):
    """What a run directory says of its run; of a new run, what it is going to say."""

    config: dict[str, Any]
    status: dict[str, Any]


class Request(NamedTuple):
    """A run that is asked for: what it is, and what decides its result."""

    verb: str
    config: Mapping[str, Any]
    """The resolved configuration; where it says `auto`, the stored choice is reused."""
    defaults: Mapping[str, Any] = {}
    """Values of knobs that a configuration stored by an older release may lack."""
    facts: Mapping[str, str] = {}
    """What the run depends on besides its configuration, by name; a run that began with others is refused."""
    typed: Mapping[str, Any] | None = None
    """What of the configuration a user gave; the rest is taken as stored. None compares all of it."""
    budget: str | None = None
    """The time that the steps were chosen for."""
    began: float | None = None
    """When this start began, by :func:`time.monotonic`; None for now."""


def open_run(
    out: str | Path, request: Request, *, compute: Compute, console: Console, overwrite: bool = False
) -> RunDirectory:
    """Begin the run in `out`, or continue the one that is there.

    Args:
        overwrite: delete the run that is there, after naming it.

    Raises:
        UserError: `out` holds something else, a run with another configuration, or one that is still running.
    """
    path = Path(out)
    lock: RunLock | None = None

    def claim() -> Stored:
        nonlocal lock
        _make_folder(path)
        lock = RunLock.take(path)
        try:
            if overwrite:
                _delete_run(path, request.verb, console)
            stored = _reconcile(path, request)
            _require_same_facts(path, request.facts, stored.status)
            return stored
        except BaseException:
            lock.release()
            raise

    config, status = compute.from_main(claim)
    console.log_to(path / LOG)
    typed = {} if request.typed is None else {"typed": plain(request.typed), "budget": request.budget}
    run = RunDirectory(
        path,
        verb=request.verb,
        config=config,
        status={"rng_version": RNG_VERSION, **typed, **status, **request.facts},
        lock=lock,
        compute=compute,
        console=console,
        began=time.monotonic() if request.began is None else request.began,
    )
    try:
        run.begin()
    except BaseException:
        run.release()
        raise
    return run


def stored_run(out: str | Path, request: Request) -> Stored | None:
    """The run in `out`, as it is to go on; None where there is none. Reads only.

    Raises:
        UserError: `out` holds another run.
    """
    return _reconcile(Path(out), request) if (Path(out) / CONFIG).exists() else None


def _make_folder(path: Path) -> None:
    """Make sure that `path` is a run, or a place for one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        contents = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        if SAMPLES in contents and not any((path / SAMPLES).iterdir()):
            contents.remove(SAMPLES)
    except OSError as error:
        raise UserError(f"--out {path} cannot be used: {error.strerror}") from error
    # A run that was killed while it began may have left its log, its status and an empty folder, and nothing else.
    if contents - {LOG, STATUS} and not (path / CONFIG).exists():
        raise UserError(f"--out {path} is not empty and holds no run; choose another folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out {path} cannot be written to; choose another folder")


def _require_same_version(path: Path, request: Request, status: Mapping[str, Any]) -> None:
    version = status.get("rng_version", 1) if status else RNG_VERSION
    if version != RNG_VERSION:
        release = RELEASES.get(version)
        finish = f"finish it with beit {release}" if release else "finish it with the release that began it"
        with_init = f"from its model with --init {path}" if "init" in request.config else "in another --out"
        raise UserError(
            f"--out {path} began when random numbers were drawn and images held back in another way (version "
            f"{version}, now {RNG_VERSION}): {finish}, or begin a new run {with_init}"
        )


def _require_same_facts(path: Path, facts: Mapping[str, str], status: Mapping[str, Any]) -> None:
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
        remove(path / name)


def _reconcile(path: Path, request: Request) -> Stored:
    """The configuration and status to go on with in `path`: the stored ones where a run is there."""
    config, verb = plain(request.config), request.verb
    if not (path / CONFIG).exists():
        return Stored(config, {})
    status = _read_status(path)
    if status.get("verb", verb) != verb:
        raise UserError(f"--out {path} holds a {status['verb']} run, not a {verb} run; choose another --out")
    if status.get("state") != "done":  # what differs from another release's run is beside the point
        _require_same_version(path, request, status)
    written = _read_config(path)
    stored = plain(request.defaults) | written
    if request.typed is None or "preset" not in written:  # a release that did not store what was typed
        merged, differences = _compare_values(request, stored)
    else:
        merged, differences = _compare_typed(request, stored, status.get("typed"))
    if differences:
        raise UserError(
            f"--out {path} holds a run with another configuration: {'; '.join(differences)}."
            " Give the stored values, choose another --out, or delete the run with --overwrite"
        )
    return Stored(merged, status)


def _compare_values(request: Request, stored: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration to go on with, and what of it is not as stored."""
    config = plain(request.config)
    if request.typed is not None:  # defaults and presets were others then
        config = config | stored | plain(request.typed)
    merged, differences = {}, []
    for key in [*config, *(key for key in stored if key not in config)]:
        new, old = config.get(key), stored.get(key)
        merged[key] = old if new == "auto" and key in stored and key not in CHANGEABLE else new
        if merged[key] != old and key not in CHANGEABLE and key != "preset":
            differences.append(f"{key} was {old!r} and is now {new!r}")
    return merged, differences


def _compare_typed(
    request: Request, stored: dict[str, Any], then: dict[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """The configuration to go on with, and what was typed otherwise `then`, or left out, or is not as stored."""
    config, now = plain(request.config), plain(request.typed)
    is_whole = stored.keys() <= now.keys() | {"preset"}
    then = {} if then is None or is_whole else then
    differences = [
        f"{key} was {then.get(key, stored.get(key))!r} and is now {now[key]!r}"
        for key in now
        if key not in CHANGEABLE and now[key] != then.get(key, stored.get(key))
    ]
    differences += [
        f"{key} was {then[key]!r} and is now left out"
        for key in then
        if key not in CHANGEABLE and key not in now
    ]
    changed = CHANGEABLE & (now.keys() | then.keys())
    return config | stored | {key: config[key] for key in changed if key in config}, differences


def _read_config(path: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        if isinstance(stored, dict):
            return stored
    except (OSError, ValueError, yaml.YAMLError):
        pass
    raise UserError(f"{path / CONFIG} cannot be read; --overwrite starts the run afresh")


def _read_status(path: Path) -> dict[str, Any]:
    """What status.json says; nothing if it was never written."""
    try:
        return read_json(path / STATUS) or {}
    except UserError:
        return {}
