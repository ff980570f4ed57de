"""`python kill_rounds.py FOLDER KILLS SEED`: the toy uninterrupted in FOLDER/whole, killed in FOLDER/killed.

One process loads torch and forks every start, so that a round costs no start-up.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from toy_recipe import Toy, train

TOY = Toy(steps=60, sleep=0.002, save_every="2", log_every=7, evaluations=2)


def start(out: Path) -> int:
    """The process id of a new start of the run in `out`."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
        try:
            train(out, TOY)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def wait_for_step(run: Path, step: int, process: int) -> None:
    """Until a checkpoint of `step` or later is there, or the process has ended (and is left to be reaped)."""
    while step and not any(int(entry.name.split("-")[1]) >= step for entry in run.glob("checkpoints/step-*")):
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def main() -> None:
    torch.set_num_threads(1)
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    train(folder / "warm-up", Toy(steps=1))  # torch imports much on first use
    assert os.waitpid(start(folder / "whole"), 0)[1] == 0
    landed = 0
    for round in range(kills):
        process = start(folder / "killed")
        # By steps and not by the clock, so that a busy machine does not push the kills to the end of the run.
        wait_for_step(folder / "killed", round * TOY.steps // (kills + 1), process)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        landed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert os.waitpid(start(folder / "killed"), 0)[1] == 0
    print(f"{landed} kills landed")


if __name__ == "__main__":
    main()
