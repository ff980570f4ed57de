"""What a run directory holds, and a run that is stopped midway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import beit
from beit.training import loop
from beit.training.state import Stepper


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return beit.load_model(run).state_dict()


def same_weights(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits."""
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def log(run: Path) -> str:
    return (run / "log.txt").read_text()


@contextmanager
def stopped_in_step(number: int, run: str | None = None) -> Iterator[None]:
    """What trains in here, in the folder of this name, is interrupted as it begins this step, from 1."""

    class Interrupted(Stepper):
        def take_step(self, micro_batches: Any) -> None:
            if self.state.step == number - 1 and run in (None, Path(self.job.plan.config.out).name):
                raise KeyboardInterrupt
            super().take_step(micro_batches)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "Stepper", Interrupted)
        yield
