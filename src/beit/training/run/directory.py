"""The run directory: what a run leaves on disk, how it is opened again, and what may differ when it is.

config.yaml  status.json  log.txt  metrics.jsonl  results.json  held-back.txt  trained-on.npy  samples/  model/
checkpoints/step-N/
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from beit.atomic import remove, replace_folder, restore_folder, sync, write_text
from beit.config.errors import Interrupted, RunFailed, UserError
from beit.config.files import to_yaml
from beit.training.console import Console
from beit.training.device import Compute, describe_machine, describe_versions
from beit.training.metrics import json_ready
from beit.training.run.checkpoints import newest_checkpoint, prune, read_state, write_checkpoint
from beit.training.run.lock import RunLock
from beit.untrusted import read_json

CONFIG, STATUS, LOG = "config.yaml", "status.json", "log.txt"
METRICS, RESULTS, REPORT = "metrics.jsonl", "results.json", "report.html"
HELD_BACK, TRAINED_ON, JUDGED = "held-back.txt", "trained-on.npy", "judged.npz"
SAMPLES, MODEL, MODEL_BEST, CHECKPOINTS = "samples", "model", "model-best", "checkpoints"
TRACKERS = ("tensorboard", "wandb")
FILES = (LOG, METRICS, RESULTS, REPORT, HELD_BACK, TRAINED_ON, JUDGED)
LAYOUT = (*FILES, SAMPLES, MODEL, MODEL_BEST, CHECKPOINTS, *TRACKERS, STATUS, CONFIG)
"""All that is a run's own, in the order in which it is deleted: what marks the folder as a run goes last."""

Choice = TypeVar("Choice")


class RunDirectory:
    """One run on disk; made by :func:`beit.training.run.opening.open_run`. Only the main rank writes.

    As a context, it notes in status.json how the run ended, and gives up its lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        verb: str,
        config: dict[str, Any],
        status: dict[str, Any],
        lock: RunLock | None,
        compute: Compute,
        console: Console,
        began: float,
    ) -> None:
        self.path, self.verb, self.config, self.console = path, verb, config, console
        self._status, self._lock, self._compute = status, lock, compute
        self._elapsed_before, self._began = float(status.get("elapsed", 0.0)), began
        self._broken: list[int] = []

    @property
    def identity(self) -> str:
        """A name no other run has."""
        return str(self._status["id"])

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken so far, all its starts together."""
        return self._elapsed_before + time.monotonic() - self._began

    @property
    def budget(self) -> str | None:
        """The time that the steps were to fit in, as it was typed; None where they were given."""
        return self._status.get("budget")

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def resolve(self, key: str, choose: Callable[[], Choice]) -> Choice:
        """What `auto` stands for in the configuration's `key`: chosen at the first start, stored, and reused."""
        if self.config[key] == "auto":
            self.config[key] = self._compute.from_main(choose)
            self._write_config()
        choice: Choice = self.config[key]
        return choice

    # What is written while training.

    def write_status(self, **changes: Any) -> None:
        """Change what status.json says."""
        self._status |= {**changes, "updated": _now(), "elapsed": round(self.elapsed, 1)}
        if self._compute.main:
            write_text(self.path / STATUS, json.dumps(self._status, indent=2) + "\n", durable=False)

    def write_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self._compute.main:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(json_ready(record), allow_nan=False) + "\n")

    def replace_model(self, write: Callable[[Path], None], place: str = MODEL) -> None:
        """Let `write` fill a folder, and put it in the place of model/, or of model-best/."""
        if self._compute.main:
            replace_folder(self.path / place, write)

    def holds_best(self, step: int | None) -> bool:
        """Whether model-best/ is of `step` (None: whether there is none); one of another step is removed."""
        return self._compute.from_main(lambda: self._holds_best(step))

    def _holds_best(self, step: int | None) -> bool:
        place = self.path / MODEL_BEST
        if not place.exists():
            return step is None
        try:
            provenance = (read_json(place / "model.json") or {}).get("provenance")
        except UserError:
            provenance = None
        if step is not None and isinstance(provenance, dict) and provenance.get("step") == step:
            return True
        remove(place)
        return False

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write the final figures; the run is done."""
        if self._compute.main:
            ready = {
                key: json_ready(value) if isinstance(value, dict) else value for key, value in results.items()
            }
            write_text(self.path / RESULTS, json.dumps(ready, indent=2, allow_nan=False) + "\n")
        self.write_status(state="done", reason=None)

    # States to resume from.

    def save(self, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Write the state after `step` steps, then delete older ones but the `keep` newest.

        Raises:
            OSError: it could not be written; what was there before is intact.
        """
        if not self._compute.main:
            return
        config = json.dumps(self.config, sort_keys=True).encode()
        facts = {
            "world_size": self._compute.world,
            "config_sha256": hashlib.sha256(config).hexdigest(),
            "metrics_bytes": self._sync_metrics(),
            "written": _now(),
        }
        write_checkpoint(self.checkpoints, step, state, facts)
        self._broken = [other for other in self._broken if other != step]
        prune(self.checkpoints, keep, self._broken, self.console.say)
        self._broken = []

    def restore(self) -> dict[str, Any] | None:
        """The newest good state, read on every rank; None for a run without any.

        metrics.jsonl is cut back to where that state was saved, so that no step is in it twice.

        Raises:
            RunFailed: there are checkpoints, and all are broken.
        """
        manifest, self._broken = self._compute.from_main(
            lambda: newest_checkpoint(self.checkpoints, self.console.say)
        )
        if manifest is None and self._broken:
            raise RunFailed(
                f"no checkpoint in {self.checkpoints} can be used; --overwrite starts the run afresh"
            )
        if manifest is None and self._status["step"]:
            self.console.say(
                f"no checkpoint is left in {self.checkpoints}; starting again from the first step"
            )
        if self._compute.main:
            self._cut_metrics(0 if manifest is None else manifest["metrics_bytes"])
        return None if manifest is None else read_state(self.checkpoints, manifest["step"])

    def _sync_metrics(self) -> int:
        """Bring metrics.jsonl to the disk before the checkpoint that counts on it; its size."""
        path = self.path / METRICS
        if not path.exists():
            return 0
        sync(path)
        return path.stat().st_size

    def _cut_metrics(self, size: int) -> None:
        path = self.path / METRICS
        if not path.exists() and size == 0:
            return
        if path.exists() and path.stat().st_size >= size:
            os.truncate(path, size)
        else:
            self.console.say(
                f"{METRICS} is shorter than the checkpoint says; figures of past steps are missing"
            )

    # Beginning and leaving.

    def begin(self) -> None:
        """Clear away what a killed process left half written, and record that the run is running, here and now."""
        origin = {"id": uuid.uuid4().hex[:12], "started": _now(), "step": 0, "steps": None}
        self._status = {"state": "running", "verb": self.verb, **origin, **self._status}
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
            text = to_yaml(self.config, f"beit {self.verb} --config THIS-FILE")
            write_text(self.path / CONFIG, text)

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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
