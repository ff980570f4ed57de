"""`beit plan`: what `beit train` would do with these images on this machine, as commands with their times."""

import shlex

from beit.config.use import Outcome, PlanConfig, TrainConfig
from beit.config.values import flag_of
from beit.recipes.train.run import train


def plan(config: PlanConfig) -> Outcome:
    """Print the parts of the journey, their sizes and times, and the command, which is returned as `command`, in
    words; nothing is written."""
    train(TrainConfig(**vars(config)), dry_run=True, overwrite=True)
    command = ["beit", "train", *_flags(config), "--budget", config.budget, "--out", config.out]
    print(f"next: {shlex.join(command)}")
    return Outcome(config, {"command": command})


def _flags(config: PlanConfig) -> list[str]:
    """What was said, as flags."""
    said = {"data": config.data} | {k: v for k, v in config.shared_with(TrainConfig).items() if k != "data"}
    words: list[str] = []
    for name, value in said.items():
        values = () if isinstance(value, bool) else value if isinstance(value, tuple) else (value,)
        words += [flag_of(f"no_{name}" if value is False else name), *map(str, values)]
    return words
