"""Where figures go besides metrics.jsonl, for those who want it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from beit.config.errors import UserError
from beit.config.run import TrainingConfig
from beit.training.device import Compute
from beit.training.run.directory import RunDirectory

Track = Callable[[int, Mapping[str, Any]], None]
"""`track(step, figures)`: takes the figures of a step."""


def require_trackers(config: TrainingConfig) -> None:
    """UserError where what `config` asks for is not installed."""
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and find_spec(name) is None:
            raise UserError(f"--{name} needs a package that is not installed: pip install 'beit[{name}]'")


@contextmanager
def open_trackers(
    config: TrainingConfig, run: RunDirectory, step: int, compute: Compute
) -> Iterator[Sequence[Track]]:
    """Those that `config` asks for, of a run that goes on from `step`; on the main rank."""
    trackers: list[Track] = []
    with ExitStack() as opened:
        if compute.main and config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Steps after the resumed one were logged before the kill and will come again.
            writer: Any = opened.enter_context(SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1))

            def write(step: int, figures: Mapping[str, Any]) -> None:
                for name, value in figures.items():
                    writer.add_scalar(name, value, step)

            trackers.append(write)
        if compute.main and config.wandb is not None:
            import wandb

            names = {"project": config.wandb, "id": run.identity, "name": run.path.name}
            tracked: Any = wandb.init(**names, dir=str(run.path), config=dict(run.config), resume="allow")
            opened.callback(tracked.finish)
            trackers.append(lambda step, figures: tracked.log(dict(figures), step=step))
        yield trackers
