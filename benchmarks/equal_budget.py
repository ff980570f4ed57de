"""Pre-training targets side by side at one equal budget, on labelled images whose labels pre-training does not use.

    python benchmarks/equal_budget.py --data cifar10/ --out grid
    python benchmarks/equal_budget.py --data cifar10/ --out grid --table

A row is a tokenizer (if it has one), a pre-training, a linear probe, and a fine-tuning with few labels for each seed,
all ordinary runs under OUT/ROW. `--minutes` is what tokenizer and pre-training of a row may take on one core.
A first round that a tokenizer learns from is counted in. Two rows go side by side, each pinned to a core of its own.
Nothing else may run meanwhile: the time of a row is the clock's. Stop it whenever you like: the same command goes on
where it stood. Data with a `test` part are judged on it once, by what was chosen on training images that were held
back.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

Flags = tuple[str, ...]

VISIBLE: Flags = ("--encoder-sees", "visible", "--masking", "random", "--num-masked", "75%")
ALL: Flags = ("--encoder-sees", "all", "--masking", "block", "--num-masked", "40%")
PATCH: Flags = ("--target", "pixels", "--pixel-norm", "patch")
KMEANS: Flags = ("--kind", "kmeans")
# A third of the time for tokenizers that are trained, and the settings of `--preset tiny` for them.
TRAINED = 1 / 3
FIRST_ROUND = 0.4


class Row(NamedTuple):
    """What is predicted, and what the encoder sees."""

    tokenizer: Flags | None
    """Flags of `beit tokenizer`; None for a target without tokens."""
    pretrain: Flags
    share: float | None = None
    """Of the time, for the tokenizer; None for one that takes what it takes."""
    teacher: str | None = None
    """The row whose recipe gives the tokenizer its teacher, in :data:`FIRST_ROUND` of the time."""


DVAE = ("--kind", "dvae", "--preset", "tiny")
FSQ = ("--kind", "fsq", "--preset", "tiny")
ROWS: Mapping[str, Row] = {
    "visible-kmeans": Row(KMEANS, VISIBLE),
    "visible-pixels-patch": Row(None, (*VISIBLE, *PATCH)),
    "all-kmeans": Row(KMEANS, ALL),
    "all-dvae": Row(DVAE, ALL, TRAINED),
    "visible-dvae": Row(DVAE, VISIBLE, TRAINED),
    "visible-features": Row(("--kind", "features", "--vocab-size", "256"), VISIBLE, teacher="visible-kmeans"),
    "visible-fsq": Row(FSQ, VISIBLE, TRAINED),
    "visible-pixels": Row(None, (*VISIBLE, "--target", "pixels", "--pixel-norm", "none")),
    "all-pixels-patch": Row(None, (*ALL, *PATCH)),
    "all-kmeans-random-75": Row(KMEANS, (*ALL[:2], *VISIBLE[2:])),
    "visible-kmeans-block-40": Row(KMEANS, (*VISIBLE[:2], *ALL[2:])),
    "untrained": Row(None, (*VISIBLE, *PATCH, "--steps", "1", "--lr", "1e-12")),
    "scratch": Row(None, ()),
}
"""In the order in which they are made."""


@dataclass(frozen=True)
class Grid:
    """One data set, one budget, one network."""

    data: str
    out: Path
    seconds: float
    network: Flags
    """Flags of its size, for every row."""
    few: Flags
    """How many labels a fine-tuning has: `--label-share 0.1` or `--labels-per-class 20`."""
    steps: int
    """Of a fine-tuning."""
    seeds: int

    def make(self, name: str, core: int) -> None:
        """All runs of a row, on `core`; those that are done are no-ops."""
        row, folder = ROWS[name], self.out / name
        if name == "scratch":
            self.finetune(folder / "same-steps", core, ("--from-scratch", *self.network, "--steps", str(self.steps)))
            self.finetune(
                folder / "same-time",
                core,
                ("--from-scratch", *self.network, "--budget", f"{self.seconds:.0f}s"),
            )
            return
        left = self.seconds
        tokenizer: Flags = ()
        if row.tokenizer is not None:
            taken = self.make_tokenizer(row, folder, core)
            left, tokenizer = left - taken, ("--tokenizer", str(folder / "tokenizer"))
        length: Flags = () if "--steps" in row.pretrain else ("--budget", f"{left:.0f}s")
        self.run(core, "pretrain", folder / "pretrain", *tokenizer, *row.pretrain, *self.network, *length)
        init = ("--init", str(folder / "pretrain"))
        self.run(core, "probe", folder / "probe", *init)
        self.finetune(folder / "finetune", core, (*init, "--steps", str(self.steps)))

    def make_tokenizer(self, row: Row, folder: Path, core: int) -> float:
        """The seconds that the tokenizer took, with the round that its teacher comes from."""
        assert row.tokenizer is not None
        flags, before = row.tokenizer, 0.0
        if row.teacher is not None:
            first, teacher = ROWS[row.teacher], folder / "first-round"
            assert first.tokenizer is not None
            self.run(core, "tokenizer", folder / "first-tokenizer", *first.tokenizer)
            budget = f"{FIRST_ROUND * self.seconds:.0f}s"
            tokenizer = ("--tokenizer", str(folder / "first-tokenizer"))
            self.run(core, "pretrain", teacher, *tokenizer, *first.pretrain, *self.network, "--budget", budget)
            before = elapsed(folder / "first-tokenizer") + elapsed(teacher)
            flags = (*flags, "--teacher", str(teacher))
        if row.share is not None:
            flags = (*flags, "--budget", f"{row.share * self.seconds:.0f}s")
        self.run(core, "tokenizer", folder / "tokenizer", *flags)
        return before + elapsed(folder / "tokenizer")

    def finetune(self, folder: Path, core: int, flags: Flags) -> None:
        """One fine-tuning for each seed, which draws labels, order and head."""
        for seed in range(self.seeds):
            self.run(core, "finetune", Path(f"{folder}-{seed}"), *self.few, *flags, "--seed", str(seed))

    def run(self, core: int, verb: str, out: Path, *flags: str) -> None:
        """`beit VERB` on one core; its output is appended to OUT.txt."""
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "beit", verb, "--data", self.data, "--out", str(out), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(f"{out}.txt", "a") as log:
            process = subprocess.Popen(
                [*command, "--workers", "0"], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            os.sched_setaffinity(process.pid, {core})
            if process.wait():
                raise SystemExit(f"{' '.join(command)} failed; see {out}.txt")


def elapsed(run: Path) -> float:
    """Seconds that a run took, all of its starts together."""
    status: Mapping[str, Any] = json.loads((run / "status.json").read_text())
    return float(status["elapsed"])


def table(grid: Grid) -> Iterator[str]:
    """The rows that are there, as Markdown."""
    yield "| row | tokenizer, s | images | k-NN | linear | fine-tuned |"
    yield "|---|---|---|---|---|---|"
    for name in ROWS:
        folder = grid.out / name
        pretrain, probe = results(folder / "pretrain"), results(folder / "probe")
        tuned = [results(path) for path in sorted(folder.glob("*-[0-9]")) if path.is_dir()]
        scores = ", ".join(percent(run, "top1") for run in tuned if run)
        made = (folder / "tokenizer/results.json").exists()
        seconds = f"{elapsed(folder / 'tokenizer'):.0f}" if made else ""
        images = f"{pretrain['images']:,}" if pretrain else ""
        frozen = f"{percent(probe, 'knn_top1')} | {percent(probe, 'top1')}"
        yield f"| {name} | {seconds} | {images} | {frozen} | {scores} |"


def results(run: Path) -> dict[str, Any]:
    """What a finished run says at its end; nothing of one that is not done."""
    path = run / "results.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def percent(run: Mapping[str, Any], figure: str) -> str:
    """A figure on `test`, else on the held-back images."""
    last = run.get("last", {})
    value = last.get(f"test/{figure}", last.get(f"eval/{figure}"))
    return "" if value is None else f"{100 * value:.1f}"


def work(grid: Grid, names: Sequence[str], cores: Sequence[int]) -> None:
    """Make the rows, one at a time on each core."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in names:
        waiting.put(name)

    def take(core: int) -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except Empty:
                return
            began = time.monotonic()
            grid.make(name, core)
            print(f"{name}: {time.monotonic() - began:.0f} s on core {core}", flush=True)

    threads = [Thread(target=take, args=(core,)) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--network", default="--width 128 --depth 4 --num-heads 4", help="flags of its size")
    parser.add_argument("--few", default="--label-share 0.1", help="flags that choose the labels")
    parser.add_argument("--steps", type=int, default=700, help="of every fine-tuning")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tunings of each row")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--table", action="store_true", help="print what is done, and stop")
    arguments = parser.parse_args()
    grid = Grid(
        arguments.data,
        arguments.out,
        60 * arguments.minutes,
        tuple(arguments.network.split()),
        tuple(arguments.few.split()),
        arguments.steps,
        arguments.seeds,
    )
    if not arguments.table:
        work(grid, arguments.rows, arguments.cores)
    print("\n".join(table(grid)))


if __name__ == "__main__":
    main()
