"""`beit plan`: what `beit train` would do with these images on this machine, as commands with their times."""

import shlex
from pathlib import Path

from beit.config.use import Outcome, PlanConfig, TrainConfig
from beit.recipes.train.run import train
from beit.training.run.directory import RESULTS


def plan(config: PlanConfig) -> Outcome:
    """Print the parts of the journey, their sizes and times, and the command, which is returned as `command`, in
    words; nothing is written."""
    train(TrainConfig(**vars(config)), dry_run=True, overwrite=True)
    is_finished = Path(config.out, RESULTS).exists()
    out = f"{config.out}-{config.budget}" if is_finished else config.out
    command = ["beit", "train", *config.flags(), "--budget", config.budget, "--out", out]
    print(f"next: {shlex.join(command)}")
    return Outcome(config, {"command": command})
