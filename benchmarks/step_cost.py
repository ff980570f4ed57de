"""What a step of one source tree costs beside one of another: paired, in turns, in random order.

    python benchmarks/step_cost.py OLD/src NEW/src --rounds 200

Both pre-train the same network on the built-in images, each in a process of its own, and wait for their turn before
every step; a step is all that the run does between two batches. Prints the median of the ratios new / old with its
95 % interval (order statistics). On a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
import time

RUN = """
import sys, torch, beit
from beit.stages import train
torch.set_num_threads(int(sys.argv[2]))
batches = train.RunBatches.train
def in_turns(self, start, stop):
    for batch in batches(self, start, stop):
        print("ready", file=sys.__stderr__, flush=True)
        sys.stdin.readline()
        yield batch
train.RunBatches.train = in_turns
train.estimate = lambda *arguments: None
beit.pretrain(beit.PretrainConfig(
    preset=None, data="demo", limit=200, out=sys.argv[1], target="pixels", image_size=64, patch_size=8, width=192,
    depth=8, num_heads=3, batch_size=32, workers=0, precision="float32", steps=10**6, epochs=None, log_every=10,
    drop_path_rate=0.1, evaluations=1, warmup_epochs=None))
"""


def run(source: str, folder: str, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", RUN, folder, str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def wait(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line == "ready\n":
            return
    raise SystemExit(f"a run has ended with status {process.wait()}")


def step(process: subprocess.Popen[str]) -> float:
    """Let it take one step; the seconds of that."""
    assert process.stdin is not None
    began = time.perf_counter()
    process.stdin.write("\n")
    process.stdin.flush()
    wait(process)
    return time.perf_counter() - began


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the order statistics that hold that of the whole with 95 %."""
    ordered, count = sorted(ratios), len(ratios)
    reach = math.ceil(0.98 * math.sqrt(count))
    middle = count // 2
    return ordered[middle], ordered[max(0, middle - reach)], ordered[min(count - 1, middle + reach)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run(source, f"{folder}/{name}", options.threads)
            for name, source in vars(options).items()
            if name in ("old", "new")
        ]
        try:
            for process in runs:
                wait(process)
                for _ in range(3):
                    step(process)
            times: list[list[float]] = [[], []]
            for _ in range(options.rounds):
                for number in random.sample((0, 1), 2):
                    times[number].append(step(runs[number]))
        finally:
            for process in runs:
                process.kill()
    median, low, high = interval([new / old for old, new in zip(*times, strict=True)])
    seconds = sorted(times[0])[options.rounds // 2]
    print(f"a step of {seconds:.3f} s; new / old: median {median:.4f} (95 % interval {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
