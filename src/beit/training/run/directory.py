"""The run directory: what a run leaves on disk, how it is opened again, and what may differ when it is.

config.yaml  status.json  log.txt  metrics.jsonl  results.json  held-back.txt  trained-on.npy  listing.npz
samples/  model/  checkpoints/step-N/
"""

import errno
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from beit.atomic import remove, replace_folder, restore_folder, sync, write_text
from beit.config.errors import Interrupted, RunFailed
from beit.config.files import plain, to_yaml
from beit.training.console import Console
from beit.training.device import Compute, describe_machine, describe_versions
from beit.training.metrics import json_ready
from beit.training.run.checkpoints import newest_checkpoint, prune, read_state, write_checkpoint
from beit.training.run.lock import RunLock
from beit.untrusted import file_hash

CONFIG, STATUS, LOG = "config.yaml", "status.json", "log.txt"
METRICS, RESULTS, REPORT = "metrics.jsonl", "results.json", "report.html"
HELD_BACK, TRAINED_ON, LISTING, JUDGED = "held-back.txt", "trained-on.npy", "listing.npz", "judged.npz"
SAMPLES, MODEL, MODEL_BEST, CHECKPOINTS = "samples", "model", "model-best", "checkpoints"
TRACKERS = ("tensorboard", "wandb")
FILES = (LOG, METRICS, RESULTS, REPORT, HELD_BACK, TRAINED_ON, LISTING, JUDGED)
SKIPPED = "skipped "
"""How lines of the log begin that name an image."""
LAYOUT = (*FILES, SAMPLES, MODEL, MODEL_BEST, CHECKPOINTS, *TRACKERS, STATUS, CONFIG)
"""All that is a run's own, in the order in which it is deleted: what marks the folder as a run goes last."""

_OF_MACHINE = {"accumulate", "checkpoint_activations", "compile", "device", "devices", "timeout", "workers"}
_OF_OUTPUT = {"keep", "log_every", "out", "save_every", "tensorboard", "wandb"}
CHANGEABLE = frozenset(_OF_MACHINE | _OF_OUTPUT | {"max_bad"})
"""Knobs that may differ when a run continues."""
PLACES = frozenset({"data", "eval_data", "labels", "label_maps"})
"""Where its images lie, which may move until it is done: the facts tell whether they are the same."""
LENGTH = frozenset({"steps", "epochs", "extend_to", "ends"})
"""What tells how long a run is, which a finished one may change."""
EXTENDED = "extended"
"""State of a finished run that begins to go on."""


class Stored(NamedTuple):
    """What a run directory says of its run; of a new run, what it is going to say."""

    config: dict[str, Any]
    status: dict[str, Any]


class Request(NamedTuple):
    """A run that is asked for: what it is, and what decides its result."""

    verb: str
    config: Mapping[str, Any]
    """The resolved configuration; where it says `auto`, the stored value is reused."""
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


class RunDirectory:
    """One run on disk; made by :func:`beit.training.run.opening.open_run`. Only the main rank writes.

    As a context, it notes in status.json how the run ended, and gives up its lock.
    """

    def __init__(
        self, path: Path, request: Request, stored: Stored, lock: RunLock | None, compute: Compute, console: Console
    ) -> None:
        self.path, self.request, self.console = path, request, console
        (self.config, self._status), self._lock, self._compute = stored, lock, compute
        self._elapsed_before = float(self._status.get("elapsed", 0.0))
        self._began = time.monotonic() if request.began is None else request.began
        self._broken: list[int] = []
        self._unwritten = ""
        """Lines of metrics.jsonl."""

    @property
    def identity(self) -> str:
        """A name no other run has."""
        return str(self._status["id"])

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken so far, all its starts together."""
        return self._elapsed_before + time.monotonic() - self._began

    def noted(self, name: str) -> Any:
        """What status.json says under `name`, from this start or one before it; None for nothing."""
        return self._status.get(name)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    # What is written while training.

    def write_status(self, **changes: Any) -> None:
        """Change what status.json says."""
        self._status |= {**changes, "updated": _now(), "elapsed": round(self.elapsed, 1)}
        text = json.dumps(self._status, indent=2) + "\n"
        self.bear(STATUS, lambda: write_text(self._own(STATUS), text, durable=False))

    def change_config(self, **values: Any) -> None:
        """Store other `values` than the run began with, of what it has not come to yet."""
        self.config |= plain(values)
        self._write_config()

    def write_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self._compute.main:
            self._unwritten += json.dumps(json_ready(record), allow_nan=False) + "\n"
            self.bear(METRICS, self._append_metrics)

    def _append_metrics(self) -> None:
        """All lines that are not written yet, or none."""
        text = self._unwritten.encode()
        with self._own(METRICS).open("ab", buffering=0) as file:
            size = file.tell()
            if text and file.write(text) < len(text):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unwritten = ""

    def bear(self, name: str, write: Callable[[], None]) -> None:
        """Do `write` on the main rank; what fails is told, and borne: whether the run goes on is decided where it is
        saved."""
        try:
            if self._compute.main:
                write()
        except OSError as error:
            self.console.say(f"{name} could not be written: {error}")

    def gather_log(self) -> None:
        """Log what the other ranks have kept; called on every rank."""
        for text in chain(*self._compute.exchange(self.console.take_unlogged())):
            self.console.log(text)

    def damaged(self) -> int:
        """How many images the log names that could not be used, all starts together."""
        lines = (self.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        return len({line for line in lines if line.startswith(SKIPPED)})

    def _own(self, name: str) -> Path:
        """Where `name` is written, while the directory is still this run's."""
        if self._lock is not None:
            self._lock.require_own()
        return self.path / name

    def replace_model(self, write: Callable[[Path], None], place: str = MODEL) -> None:
        """Let `write` fill a folder, and put it in the place of model/, or of model-best/."""
        if self._compute.main:
            replace_folder(self._own(place), write)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the final figures; the run is done."""
        if self._compute.main:
            ready = {key: json_ready(value) if isinstance(value, dict) else value for key, value in results.items()}
            write_text(self._own(RESULTS), json.dumps(ready, indent=2, allow_nan=False) + "\n")
        self.write_status(state="done", reason=None)

    # States to resume from.

    def save(self, step: int, state: Mapping[str, Any], keep: int, branch: int | None = None) -> None:
        """Write the state after `step` steps, then delete older ones but the `keep` newest and that of step `branch`.

        Raises:
            OSError: it could not be written; what was there before is intact.
        """
        if not self._compute.main:
            return
        facts = {"world_size": self._compute.world, "run": self._nature(), "written": _now()}
        write_checkpoint(self._own(CHECKPOINTS), step, state, facts | self._sync_metrics())
        self._broken = [other for other in self._broken if other != step]
        prune(self.checkpoints, keep, self._broken, self.console.say, branch)
        self._broken = []

    def restore(self) -> dict[str, Any] | None:
        """The newest good state, read on every rank; None for a run without any.

        metrics.jsonl is cut back to where that state was saved, so that no step is in it twice.

        Raises:
            RunFailed: there are checkpoints, and all are broken, or the newest is of another run.
        """
        manifest, self._broken = self._compute.from_main(self._newest_checkpoint)
        if manifest is None and self._broken:
            raise RunFailed(f"no checkpoint in {self.checkpoints} can be used; --overwrite starts the run afresh")
        if manifest is None and self._status["step"]:
            self.console.say(f"no checkpoint is left in {self.checkpoints}; starting again from the first step")
        if self._compute.main:
            self._cut_metrics(manifest or {"metrics_bytes": 0})
        return None if manifest is None else read_state(self.checkpoints, manifest["step"])

    def _newest_checkpoint(self) -> tuple[dict[str, Any] | None, list[int]]:
        manifest, broken = newest_checkpoint(self.checkpoints, self.console.say)
        then = {} if manifest is None else manifest.get("run", {})  # runs of 0.1 have none
        if self._is_nameless and "id" in then:  # its status.json is gone
            self._status["id"] = then["id"]
        now = self._nature()
        for name in sorted(name for name in then.keys() & now.keys() if then[name] != now[name]):
            other = f"of another run ({name} {then[name]!r}, and {now[name]!r} here)"
            mend = "move it away, or start afresh with --overwrite"
            raise RunFailed(f"the newest of {self.checkpoints} is {other}; {mend}")
        return manifest, broken

    def _nature(self) -> dict[str, Any]:
        """What all states of this run have in common, and those of no other."""
        config = {name: value for name, value in self.config.items() if name not in CHANGEABLE | PLACES | LENGTH}
        return {**config, **self.request.facts, "id": self.identity, "rng_version": self._status.get("rng_version")}

    def _sync_metrics(self) -> dict[str, Any]:
        """Bring metrics.jsonl to the disk before the checkpoint that counts on it; its size and checksum."""
        self._append_metrics()
        path = self.path / METRICS
        sync(path)
        return {"metrics_bytes": path.stat().st_size, "metrics_sha256": file_hash(path)}

    def _cut_metrics(self, manifest: Mapping[str, Any]) -> None:
        path, size = self.path / METRICS, manifest["metrics_bytes"]
        if not path.exists() and size == 0:
            return
        if is_long := path.exists() and path.stat().st_size >= size:
            os.truncate(path, size)
        if not is_long or manifest.get("metrics_sha256") not in (None, file_hash(path)):
            self.console.say(f"{METRICS} is not as the checkpoint knows it: figures of past steps are lost or wrong")

    # Beginning and leaving.

    def begin(self) -> None:
        """Clear away what a killed process left half written, and record that the run is running, here and now."""
        self._is_nameless = "id" not in self._status
        origin = {"id": uuid.uuid4().hex[:12], "started": _now(self.elapsed), "step": 0, "steps": None}
        if self._status.get("state") == EXTENDED:  # or it would end where it ended before
            self._write_config()
        self._status = {"state": "running", "verb": self.request.verb, **origin, **self._status}
        self.write_status(
            state="running",
            reason=None,
            command=shlex.join(sys.argv),
            versions=describe_versions(),
            machine=describe_machine(self._compute),
        )
        if self._compute.main:
            # After what was typed, for it marks the folder as a run that the same command may continue.
            self._write_config()
            (self.path / SAMPLES).mkdir(exist_ok=True)
            for draft in [*self.path.glob(".tmp-*"), *self.checkpoints.glob(".*-step-*")]:
                remove(draft)
            restore_folder(self.path / MODEL)
            restore_folder(self.path / MODEL_BEST)

    def _write_config(self) -> None:
        if self._compute.main:
            write_text(self._own(CONFIG), to_yaml(self.config, f"beit {self.request.verb} --config THIS-FILE"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Interrupted | KeyboardInterrupt):
                self.write_status(state="interrupted", reason=str(error) or "stopped at once, without saving")
            elif error is not None and self._status["state"] != "done":
                self.write_status(state="failed", reason=f"{type(error).__name__}: {error}")
                self.console.log(f"failed: {error}")
        finally:
            self.release()

    def release(self) -> None:
        """Close the log and let others have the directory."""
        self.console.close()
        if self._lock is not None:
            self._lock.release()


def run_of(path: str | Path) -> Path | None:
    """The run that the model at `path` lies in: `path` itself, or the folder around its model/ or model-best/; else
    None."""
    folder = Path(path)
    run = folder.parent if folder.resolve().name in (MODEL, MODEL_BEST) else folder
    return run if all((run / name).exists() for name in ("model", "config.yaml", "status.json")) else None


def _now(seconds_ago: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds_ago))
