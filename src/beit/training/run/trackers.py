"""Where figures go besides metrics.jsonl, for those who want it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from beit.config.errors import UserError
from beit.config.run import TrainingConfig
from beit.training.run.directory import RunDirectory


class Tracker(Protocol):
    """Takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def require_trackers(config: TrainingConfig) -> None:
    """UserError where what `config` asks for is not installed."""
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and find_spec(name) is None:
            raise UserError(f"--{name} needs a package that is not installed: pip install 'beit[{name}]'")


def open_trackers(config: TrainingConfig, run: RunDirectory, step: int) -> list[Tracker]:
    """Those that `config` asks for, of a run that goes on from `step`."""
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoardTracker(run.path / "tensorboard", step))
    if config.wandb is not None:
        trackers.append(WandbTracker(run.path, config.wandb, run.identity, run.config))
    return trackers


class TensorBoardTracker:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps after the resumed one were logged before the kill and will come again.
        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run that continues when the run continues."""

    def __init__(self, folder: Path, project: str, identity: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=project,
            id=identity,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
