"""This package beside what a user would run instead, stage by stage, in one process and in turns.

    python benchmarks/peers.py --out figures.json
    python benchmarks/tables.py figures.json docs/benchmarks.md

Nothing else may run meanwhile. A stage takes its share of --minutes; of each contestant the best and the median of
all rounds count, after one that warms up. Beside them, in the same rounds, stands the machine's own rate of matrix
products. Figures are written after every stage, and the same command goes on where it was stopped. With --compile the
tuned peers run compiled as well (minutes more for each). Peak memory is that of a process of its own for each
contestant of the stages in MEMORY.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from contestants import Setting, Stage, stages
from torch.utils.flop_counter import FlopCounterMode

from beit.stages.auto.choices import rate_of
from beit.training.device import Compute, choose_precision, describe_machine

MEMORY = ("pre-training step, all", "pre-training step, visible", "fine-tuning step", "segmentation step")
PACKAGES = ("beit", "torch", "torchvision", "transformers", "timm", "DALL-E", "numpy", "pillow")
FEWEST = 3
"""Timed rounds of every stage, however long they take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="a .json file; stages that it holds are not run again"
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="for all timed rounds together")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto", help="of ours and tuned")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="stages whose names begin so")
    parser.add_argument("--memory-of", nargs=2, metavar=("STAGE", "CONTESTANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    setting = Setting(device, options.batch_size, options.compile, choose_precision(options.precision, device))
    table = stages(setting)
    if options.memory_of:
        print(peak_of(table[options.memory_of[0]], options.memory_of[1], setting))
        return
    figures: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    about = description(setting)
    if figures.setdefault("about", about) != about:
        raise SystemExit(f"{options.out} holds figures of another machine or setting; choose another --out")
    chosen = [name for name in table if not options.only or name.startswith(tuple(options.only))]
    for name in chosen:
        stored = figures.setdefault("stages", {})
        if name not in stored:
            print(name, flush=True)
            stored[name] = race(table[name], setting, 60 * options.minutes / len(table))
            write(options.out, figures)
    for name in filter(MEMORY.__contains__, chosen):
        peaks = figures.setdefault("memory", {}).setdefault(name, {})
        for contestant in table[name].contestants:
            if contestant not in peaks:
                peaks[contestant] = peak_in_a_process(options, name, contestant)
                write(options.out, figures)


def race(stage: Stage, setting: Setting, seconds: float) -> dict[str, Any]:
    """Seconds of a call by contestant, the best and the median; the limit in the same rounds; work of an image."""
    compute, times = Compute(setting.device), dict[str, list[float]]()
    works, limits, flops = {}, list[float](), {}
    for name, build in stage.contestants.items():
        works[name], times[name] = build(), []
        with FlopCounterMode(display=False) as counter:
            works[name]()
        flops[name] = counter.get_total_flops() / 2 / stage.images
        print(f"  {name}: ready", flush=True)
    began = time.perf_counter()
    while len(limits) < FEWEST or time.perf_counter() - began < seconds:
        limits.append(rate_of(compute, setting.precision))
        for name, work in works.items():
            gc.collect()
            start = time.perf_counter()
            work()
            if setting.device.type == "cuda":
                torch.cuda.synchronize(setting.device)
            times[name].append(time.perf_counter() - start)
    return {
        "images": stage.images,
        "rounds": len(limits),
        "limit": max(limits),
        "contestants": {
            name: {
                "best": min(seconds),
                "median": statistics.median(seconds),
                "multiply_adds_per_image": flops[name],
            }
            for name, seconds in times.items()
        },
    }


def peak_of(stage: Stage, contestant: str, setting: Setting) -> float:
    """GiB at the peak of three calls beyond what was there before, the networks included."""
    before = resident()
    work = stage.contestants[contestant]()
    for _ in range(3):
        work()
    if setting.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(setting.device)) / 2**30
    return resident() - before


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_in_a_process(options: argparse.Namespace, stage: str, contestant: str) -> float:
    command = [sys.executable, __file__, "--out", str(options.out), "--memory-of", stage, contestant]
    command += ["--batch-size", str(options.batch_size), "--device", options.device]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--compile"] if options.compile else []
    command += ["--precision", options.precision]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def description(setting: Setting) -> dict[str, Any]:
    """The machine, the versions and the setting."""
    machine = describe_machine(Compute(setting.device))
    versions = {"python": platform.python_version(), **dict(_versions())}
    shown = {name: machine[name] for name in ("cpu", "gpu", "threads") if name in machine}
    chosen = {"batch_size": setting.batch_size, "precision": setting.precision, "compile": setting.compiled}
    return {**shown, **versions, **chosen}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "source tree"


def write(path: Path, figures: dict[str, Any]) -> None:
    figures["date"] = time.strftime("%Y-%m-%d")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=1) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    main()
