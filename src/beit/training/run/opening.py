"""Opening a run directory: a new run, one to continue, a finished one, or a refusal."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import beit.training.run.directory as directory
from beit.atomic import remove
from beit.config.errors import UserError, require
from beit.config.files import plain, read_values
from beit.config.values import typed
from beit.training.console import Console
from beit.training.device import Compute
from beit.training.optim import cool_down_start
from beit.training.run.checkpoints import checkpoint_steps
from beit.training.run.directory import Request, RunDirectory, Stored
from beit.training.run.lock import RunLock
from beit.untrusted import read_json

STATUS_TYPES = {"id": str, "verb": str, "step": int, "rng_version": int, "elapsed": float, "typed": dict}

RNG_VERSION = 3
"""The version of how random numbers are drawn and images held back. Runs of another would end with other weights."""
RELEASES = {1: "beit 0.1", 2: "beit 0.2.0.dev0"}
"""The release that finishes a run of each version; a status.json without one is of version 1."""


def open_run(
    out: str | Path,
    request: Request,
    *,
    compute: Compute,
    console: Console,
    overwrite: bool = False,
    parts: Collection[str] = (),
) -> RunDirectory:
    """Begin the run in `out`, or continue the one that is there.

    Args:
        overwrite: delete the run that is there, after naming it.
        parts: runs that it is made of, which may lie in `out` before it begins.

    Raises:
        UserError: `out` holds something else, a run with another configuration, or one that is still running.
    """
    path = Path(out)
    lock: RunLock | None = None

    def claim() -> Stored:
        nonlocal lock
        _make_folder(path, parts)
        lock = RunLock.take(path)
        try:
            if overwrite:
                _delete_run(path, request.verb, console)
            stored = _reconcile(path, request)
            _require_same_facts(path, request.facts, stored.status)
            if stored.status.get("state") == directory.EXTENDED:
                _leave_end(path, stored)
            return stored
        except BaseException:
            lock.release()
            raise

    config, status = compute.from_main(claim)
    console.log_to(path / directory.LOG)
    typed = {} if request.typed is None else {"typed": plain(request.typed), "budget": request.budget}
    stored = Stored(config, {"rng_version": RNG_VERSION, **typed, **status, **request.facts})
    run = RunDirectory(path, request, stored, lock, compute, console)
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
    return _reconcile(Path(out), request) if (Path(out) / directory.CONFIG).exists() else None


def _make_folder(path: Path, parts: Collection[str]) -> None:
    """Make sure that `path` is a run, or a place for one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        contents = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        if directory.SAMPLES in contents and not any((path / directory.SAMPLES).iterdir()):
            contents.remove(directory.SAMPLES)
    except OSError as error:
        raise UserError(f"--out {path} cannot be used: {error.strerror}") from error
    # A run that was killed while it began may have left its log, its status and an empty folder, and nothing else.
    if contents - {directory.LOG, directory.STATUS, *parts} and not (path / directory.CONFIG).exists():
        raise UserError(f"--out {path} is not empty and holds no run; choose another folder")
    require(os.access(path, os.W_OK | os.X_OK), f"--out {path} cannot be written to; choose another folder")


def _require_same_version(path: Path, request: Request, status: Mapping[str, Any]) -> None:
    version = status.get("rng_version", 1) if status else RNG_VERSION
    if version != RNG_VERSION:
        release = RELEASES.get(version, "the release that began it")
        with_init = f"from its model with --init {path}" if "init" in request.config else "in another --out"
        versions = f"(version {version}, now {RNG_VERSION})"
        drawn = f"random numbers were drawn and images held back in another way {versions}"
        mend = f"finish it with {release}, or begin a new run {with_init}"
        raise UserError(f"--out {path} began when {drawn}: {mend}")


def _require_same_facts(path: Path, facts: Mapping[str, str], status: Mapping[str, Any]) -> None:
    for name, fact in facts.items():
        if status.get(name, fact) != fact:
            other = f"--out {path} began with other {name} ({status[name]}, now {fact})"
            raise UserError(f"{other}; bring them back, choose another --out, or start afresh with --overwrite")


def _delete_run(path: Path, verb: str, console: Console) -> None:
    if not (path / directory.CONFIG).exists():
        return
    status = _read_status(path)
    if status.get("verb", verb) != verb:
        raise UserError(f"--overwrite would delete the {status['verb']} run in {path}; choose another --out")
    console.say(
        f"deleting the {status.get('verb', 'unfinished')} run in {path}"
        f" ({status.get('state', 'state unknown')}, step {status.get('step', 0)})"
    )
    for name in directory.LAYOUT:
        remove(path / name)


def _reconcile(path: Path, request: Request) -> Stored:
    """The configuration and status to go on with in `path`: the stored ones where a run is there."""
    config, verb = plain(request.config), request.verb
    if not (path / directory.CONFIG).exists():
        return Stored(config, {})
    status = _read_status(path)
    if status.get("verb", verb) != verb:
        raise UserError(f"--out {path} holds a {status['verb']} run, not a {verb} run; choose another --out")
    is_longer = _is_longer(path, request, status)
    if is_longer or status.get("state") != "done":  # what differs from another release's run is beside the point
        _require_same_version(path, request, status)
    stored = plain(request.defaults) | _read_config(path)
    merged, differences = _compare(request, stored, status, {"extend_to"} if is_longer else set())
    if differences:
        other = f"--out {path} holds a run with another configuration: {'; '.join(differences)}"
        raise UserError(f"{other}. Give the stored values, choose another --out, or delete the run with --overwrite")
    if not is_longer:
        now, then = plain(request.typed or {}), status.get("typed", {})
        # Or, once done, it would be refused.
        moved = {name: now[name] for name in directory.PLACES & now.keys() & then.keys()}
        return Stored(merged, {**status, "typed": {**then, **moved}} if moved else status)
    # All of it as it was until now, so that whatever follows from its length stays.
    ends = [*(stored.get("ends") or ()), status["steps"]]
    length = {"steps": ends[0], "epochs": None, "extend_to": config["extend_to"], "ends": ends}
    return Stored(merged | length, {**status, "state": directory.EXTENDED, "typed": plain(request.typed)})


def _is_longer(path: Path, request: Request, status: Mapping[str, Any]) -> bool:
    """Whether the finished run in `path` is to go on; UserError where one that is not finished is."""
    now, then = (values.get("extend_to") for values in (request.typed or {}, status.get("typed", {})))
    if now in (None, then):
        return False
    is_done = status.get("state") == "done"
    require(is_done, f"--extend-to is for a finished run, and {path} is not; continue it without, and then extend it")
    return True


def _leave_end(path: Path, stored: Stored) -> None:
    """Forget what belongs to the end of a run that goes on: its results, and states of a rate that has fallen."""
    remove(path / directory.RESULTS)
    if stored.config.get("schedule") != "constant":
        return
    states, branch = path / directory.CHECKPOINTS, cool_down_start(stored.config["ends"][-1])
    kept = [step for step in checkpoint_steps(states) if step <= branch]
    require(bool(kept), f"{states} holds no state of step {branch}, before the cool-down; begin a longer run anew")
    for step in checkpoint_steps(states):
        if step > branch:
            remove(states / f"step-{step}")


def _compare(
    request: Request, stored: dict[str, Any], status: Mapping[str, Any], exempt: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """The configuration to go on with, and what was typed otherwise before, or left out, or is not as stored, but for
    knobs that are `exempt`."""
    places = directory.PLACES if status.get("state") != "done" else frozenset()
    changeable = directory.CHANGEABLE | places | exempt
    config, now = plain(request.config), plain(request.typed)
    if now is None:
        now = {key: value for key, value in config.items() if value != "auto" or key not in stored}
    is_whole = stored.keys() <= now.keys() | {"preset"}
    then = {} if is_whole else status.get("typed", {})
    # A release that did not store what was typed had other presets.
    compared = [key for key in now if key not in changeable and (key != "preset" or key in stored)]
    before = {key: then.get(key, stored.get(key)) for key in compared}
    differences = [f"{key} was {x!r} and is now {now[key]!r}" for key, x in before.items() if now[key] != x]
    gone = {key: x for key, x in then.items() if key not in directory.CHANGEABLE and key not in now}
    differences += [f"{key} was {x!r} and is now left out" for key, x in gone.items()]
    changed = changeable & (now.keys() | then.keys())
    changed -= {"accumulate"} if config.get("accumulate") == "auto" else set()  # which was chosen, and is stored
    return config | stored | {key: config[key] for key in changed if key in config}, differences


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_values(path / directory.CONFIG, str(path / directory.CONFIG))
    except UserError as error:
        raise UserError(f"{error}; --overwrite starts the run afresh") from None


def _read_status(path: Path) -> dict[str, Any]:
    """What status.json says; nothing if it was never written, or is gone."""
    try:
        status = read_json(path / directory.STATUS) or {}
        typed({name: status[name] for name in STATUS_TYPES.keys() & status.keys()}, STATUS_TYPES)
        return status
    except UserError as error:
        mend = "delete it, and the run goes on from its states"
        raise UserError(f"{path / directory.STATUS} is damaged: {mend}") from error
