"""When a run is saved, and what becomes of a save that fails."""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from beit.atomic import remove
from beit.config.errors import RunFailed, UserError
from beit.training.plan import Job
from beit.training.run.directory import MODEL, MODEL_BEST, RunDirectory
from beit.training.state import TrainingState
from beit.untrusted import read_json

MOST_FAILED_SAVES = 3


@dataclass(eq=False)
class Saver:
    """Keeps checkpoints, model/ and model-best/ of `run` up with `state`."""

    job: Job
    state: TrainingState
    run: RunDirectory
    save_model: Callable[[nn.Module, Path, int], None]

    def __post_init__(self) -> None:
        self.saved_step = self.state.step
        self._model_step = -1
        self._saved_at = time.monotonic()
        self._failures = 0

    @property
    def last_resort(self) -> str:
        """What there is to go back to, in words."""
        if self.saved_step == 0:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {self.saved_step} is intact"

    def is_due(self) -> bool:
        """Whether the plan asks for a save after the step just done."""
        return self.job.plan.should_save(self.state.step, time.monotonic() - self._saved_at)

    def save(self) -> None:
        """Save if this step is not saved yet; called on every rank.

        Raises:
            RunFailed: it could not be written for the third time on end, or after the last step.
        """
        step = self.state.step
        if self.saved_step == step:
            return
        content = self.state.state_dict(self.job.compute)
        has_state, problem = self.job.compute.from_main(lambda: self._write(content))
        self._saved_at = time.monotonic()
        if has_state:
            self.saved_step = step
        if problem is None:
            self._failures = 0
            return
        self._failures += 1
        part = "model/ of step" if has_state else "step"
        message = f"{part} {step} could not be saved: {problem}; {self.last_resort}"
        if step == self.job.plan.steps or self._failures == MOST_FAILED_SAVES:
            raise RunFailed(message)
        self.run.console.say(message)

    def _write(self, content: Mapping[str, Any]) -> tuple[bool, str | None]:
        """Checkpoint first, then model/: whether the checkpoint is written, and what went wrong, if anything did."""
        step, plan = self.state.step, self.job.plan
        problem = self._attempt(lambda: self.run.save(step, content, plan.config.keep, plan.branch))
        return problem is None, problem or self._attempt(self.write_model)

    def _attempt(self, write: Callable[[], object]) -> str | None:
        """What went wrong in `write`, if anything did, beside what there is room for."""
        try:
            write()
        except OSError as error:
            # Weights, two moments, and the average where there is one.
            needed = (3 + (self.state.ema is not None)) * sum(x.nbytes for x in self.state.model.parameters())
            free = shutil.disk_usage(self.run.path).free
            return f"{error} ({free / 2**20:,.1f} MiB free, about {needed / 2**20:,.1f} needed)"
        return None

    def write_best(self) -> bool:
        """Put the model of this step in model-best/; called on every rank. What fails is told and borne: then the one
        before it stays the best that there is.

        Only where the state of the step is on the disk: a run that goes on from an earlier one would not know it.
        """
        if self.saved_step != self.state.step:
            return False
        problem = self.job.compute.from_main(lambda: self._attempt(lambda: self._replace(MODEL_BEST)))
        if problem is not None:
            self.run.console.say(f"model-best/ of step {self.state.step} could not be saved: {problem}")
        return problem is None

    def holds_best(self) -> bool:
        """Whether model-best/ is of the step that the state knows, or neither is; one of another step is removed.
        Called on the main rank."""
        place, step = self.run.path / MODEL_BEST, self.state.best.get("step")
        if not place.exists():
            return step is None
        with suppress(UserError):
            provenance = (read_json(place / "model.json") or {}).get("provenance")
            if step is not None and isinstance(provenance, dict) and provenance.get("step") == step:
                return True
        remove(place)
        return False

    def write_model(self) -> None:
        """Bring model/ up to this step."""
        if self._model_step != self.state.step:
            self._replace(MODEL)
            self._model_step = self.state.step

    def _replace(self, place: str) -> None:
        self.run.replace_model(lambda folder: self.save_model(self.state.result, folder, self.state.step), place)
