"""`python kill_rounds.py FOLDER KILLS SEED`: the toy uninterrupted in FOLDER/whole, killed in FOLDER/killed.

One process loads torch and forks every start, so that a round costs no start-up.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from toy_recipe import Toy, train

TOY = Toy(steps=60, sleep=0.002, save_every_steps=2, log_every=7, eval_every=30)


def start(out: Path) -> int:
    """The process id of a new start of the run in `out`."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
        try:
            train(out, TOY)
            status = 0
        finally:
            os._exit(status)
    return process


def main() -> None:
    torch.set_num_threads(1)
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    train(folder / "warm-up", Toy(steps=1, save_every_steps=None))  # torch imports much on first use
    began = time.monotonic()
    assert os.waitpid(start(folder / "whole"), 0)[1] == 0
    whole = time.monotonic() - began
    landed = 0
    for _ in range(kills):
        process = start(folder / "killed")
        time.sleep(chance.uniform(0, 0.25 * whole))
        os.kill(process, signal.SIGKILL)
        landed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert os.waitpid(start(folder / "killed"), 0)[1] == 0
    print(f"{landed} kills landed; {whole:.2f} s uninterrupted")


if __name__ == "__main__":
    main()
