"""`beit plan`: what `beit train` would do with these images on this machine, as commands with their times."""

from __future__ import annotations

import shlex
from pathlib import Path

from beit.config.use import PlanConfig, TrainConfig
from beit.config.values import flag_of
from beit.recipes.train.parts import begin, planned
from beit.recipes.train.run import in_words


def plan(config: PlanConfig) -> list[str]:
    """Print the parts of the journey, their sizes and times, and the command; nothing is written.

    Returns:
        The command, in words.
    """
    for line in [*in_words(planned(config)), *begin(config, Path(config.out)).words()]:
        print(line)
    command = ["beit", "train", *_flags(config), "--budget", config.budget, "--out", config.out]
    print(f"next: {shlex.join(command)}")
    return command


def _flags(config: PlanConfig) -> list[str]:
    """What was said, as flags."""
    said = {"data": config.data} | {k: v for k, v in config.shared_with(TrainConfig).items() if k != "data"}
    words: list[str] = []
    for name, value in said.items():
        values = () if isinstance(value, bool) else value if isinstance(value, tuple) else (value,)
        words += [flag_of(f"no_{name}" if value is False else name), *map(str, values)]
    return words
