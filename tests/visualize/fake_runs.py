"""Run directories as the training verbs write them, with made-up figures and pictures drawn from shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from beit.visualize.pictures import contact_sheet, save_picture, shade_hidden, to_uint8, token_picture

VOCAB = 256


def images(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """Soft landscapes with a disc: uint8 (count, 3, side, side)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    pictures = []
    for _ in range(count):
        sky, land, disc = rng.uniform(0.2, 1, (3, 3))
        hill = y > 0.6 + 0.15 * np.sin(6 * x + rng.uniform(0, 6))
        round_ = (x - rng.uniform(0.2, 0.8)) ** 2 + (y - rng.uniform(0.15, 0.6)) ** 2 < rng.uniform(0.01, 0.05)
        picture = sky[:, None, None] * (0.5 + 0.5 * y)
        picture = np.where(round_, disc[:, None, None], picture)
        picture = np.where(hill, land[:, None, None] * (1.3 - y), picture)
        pictures.append(picture + rng.normal(0, 0.02, picture.shape))
    return torch.stack([to_uint8(torch.from_numpy(picture)) for picture in pictures])


def blurred(pictures: Tensor, grid: int) -> Tensor:
    small = functional.adaptive_avg_pool2d(pictures.float() / 255, grid)
    return functional.interpolate(small, size=pictures.shape[-2:], mode="bilinear")


def masks(count: int, grid: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    mask = torch.zeros(count, grid, grid, dtype=torch.bool)
    for one in mask:
        top, left = rng.integers(0, grid // 2, 2)
        one[top : top + grid // 2, left : left + 2 * grid // 3] = True
    return mask


def decay(start: float, end: float, rate: float = 5.0) -> Callable[[float], float]:
    return lambda t: end + (start - end) * math.exp(-rate * t)


TOKENIZER = {
    "loss": decay(-0.2, -1.4), "reconstruction_mae": decay(0.2, 0.052), "cell_mean_mae": decay(0.066, 0.066),
    "kl": decay(0.02, 1.1), "perplexity": decay(240, 91, 3), "codes_used": decay(256, 231),
    "temperature": decay(1, 1 / 16, 3),
}  # fmt: skip
PRETRAIN = {
    "loss": decay(5.55, 3.62), "token_accuracy": decay(0.01, 0.19), "unigram_loss": decay(4.93, 4.9),
    "position_unigram_loss": decay(4.8, 4.74), "copy_neighbour_loss": decay(4.44, 4.41),
}  # fmt: skip
FINETUNE = {"loss": decay(2.3, 0.2), "top1": decay(0.1, 0.87), "top5": decay(0.5, 0.99)}
FIGURES = {"tokenizer": TOKENIZER, "pretrain": PRETRAIN, "finetune": FINETUNE}


def fake_run(
    folder: Path, verb: str = "pretrain", *, steps: int = 1000, done: float = 1.0, shift: float = 0.0, seed: int = 0,
    pictures: bool = True,
) -> Path:  # fmt: skip
    """Write a run of `verb` that has reached the share `done` of its steps; its loss is off by `shift`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    reached = int(steps * done)
    lines = []
    for step in range(10, reached + 1, 10):
        t = step / steps
        line: dict[str, float] = {"step": step, "epoch": step / 50, "images": step * 64}
        for name, curve in FIGURES[verb].items():
            line[name] = (curve(t) + shift * (name == "loss")) * (1 + rng.normal(0, 0.015))
        line |= {
            "lr": 1.5e-3 * min(10 * t, 0.5 + 0.5 * math.cos(math.pi * t)),
            "data_wait": 0.02 + 0.01 * rng.random(),
        }
        line |= {
            "grad_norm": 80 * math.exp(-8 * t) + rng.gamma(4, 0.2),
            "images_per_second": 412 + rng.normal(0, 9),
        }
        lines.append(line)
        if step % (steps // 10) == 0:
            figures = {
                f"eval/{name}": curve(t) * 1.01 + shift * (name == "loss") for name, curve in FIGURES[verb].items()
            }
            lines.append({"step": step, "epoch": step / 50, "images": step * 64, **figures})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = {
        "verb": verb, "state": "done" if done == 1 else "running", "step": reached, "steps": steps,
        "command": f"beit {verb} --data photos --steps {steps} --out {folder.name}",
        "versions": {"beit": "0.1.0", "python": "3.11.2", "torch": "2.15.0"}, 
        "machine": {"host": "desk", "device": "cpu", "cpu": "Fast CPU", "cores": 2, "memory_gib": 24.0},
    }  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status))
    vocabulary = f"vocab_size: {VOCAB}\n" if verb == "tokenizer" else ""
    (folder / "config.yaml").write_text(
        f"data: photos\nout: {folder.name}\nsteps: {steps}\nbatch_size: 64\nlr: 0.0015\nimage_size: 64\n"
        f"seed: {seed}\nnum_masked: null\n{vocabulary}"
    )
    (folder / "log.txt").write_text("found 4,096 images in photos\n\x1b[32mencoder: 5.5 million parameters\x1b[0m\n")
    (folder / "model").mkdir()
    model = {"kind": verb, "architecture": {"vocab_size": VOCAB}, "classes": list("abcdefghij")}
    (folder / "model" / "model.json").write_text(json.dumps(model))
    if done == 1:
        last = {name: value for name, value in lines[-1].items() if name.startswith("eval/")}
        results = {
            "last": last,
            "best": last,
            "seconds": 312.4,
            "images": steps * 64,
            "parameters": 5_526_144,
        }
        if verb == "finetune":
            results["interval"] = {"figure": "eval/top1", "low": 0.8, "high": 0.9, "images": 200, "units": 200}
            results["classes"] = {"a": {"images": 150, "top1": 0.9}, "b": {"images": 50, "top1": 0.8}}
            results["confusion"] = {"a": {"a": 135, "b": 15}, "b": {"a": 10, "b": 40}}
            results["next"] = "beit predict --model classifier IMAGE..."
        (folder / "results.json").write_text(json.dumps(results))
    if pictures:
        for step in (reached // 4, reached // 2, reached):
            save_picture(fake_sheet(verb, step / steps), folder / "samples", step, KINDS[verb])
    return folder


KINDS = {"tokenizer": "reconstructions", "pretrain": "masked", "finetune": "predictions"}


def fake_sheet(verb: str, progress: float) -> object:
    batch, grid = images(4), 8
    tokens = (blurred(batch, grid)[:, :, 4::8, 4::8] * 6).round().long()
    tokens = (tokens * torch.tensor([1, 7, 49])[:, None, None]).sum(1) % VOCAB
    seen = {"image": batch}
    if verb == "pretrain":
        seen["hidden patches"] = torch.stack(
            [shade_hidden(*pair) for pair in zip(batch, masks(4, grid), strict=True)]
        )
        seen["tokens"] = torch.stack([token_picture(one, VOCAB, 8) for one in tokens])
        seen["tokens decoded"] = (blurred(batch, 16) * 255).to(torch.uint8)
        seen["hidden tokens predicted, decoded"] = (blurred(batch, 2 + int(8 * progress)) * 255).to(torch.uint8)
    if verb == "tokenizer":
        seen["from its tokens"] = (blurred(batch, 2 + int(14 * progress)) * 255).to(torch.uint8)
        seen["tokens"] = torch.stack([token_picture(one, VOCAB, 8) for one in tokens])
    return contact_sheet(seen)
