"""The README's commands work: every `beit` line is run as it stands, shortened by flags alone."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beit.cli.main import main

pytestmark = pytest.mark.slow

README = Path(__file__).parent.parent / "README.md"
SHORTER = {
    "demo": ["--scale", "0.005"],
    "plan": ["--budget", "20s"],
    "train": ["--budget", "20s", "--workers", "0"],
    "tokenizer": ["--batch-size", "4", "--workers", "0"],
    "segment": ["--steps", "2", "--batch-size", "4", "--workers", "0"],
    "finetune": ["--steps", "2", "--batch-size", "4", "--workers", "0"],
    "pretrain": ["--steps", "2", "--depth", "1", "--batch-size", "4", "--workers", "0"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def beit_lines() -> list[list[str]]:
    commands = re.split(r"\n|&&", "\n".join(blocks("sh")))
    return [shlex.split(line)[1:] for line in map(str.strip, commands) if line.startswith("beit ")]


def without_budget(line: list[str]) -> list[str]:
    """The shorter line has --steps instead."""
    if "--budget" not in line:
        return line
    place = line.index("--budget")
    return line[:place] + line[place + 2 :]


def test_the_first_two_blocks_set_up_and_go() -> None:
    first, second = blocks("sh")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert first.endswith("&& beit train --data photos/ --out runs/mine --budget 1h\n")
    assert second.endswith("&& pytest\n")


def test_every_beit_line_and_the_python_block_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(24):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
        folder = tmp_path / "labelled" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        split = "validation" if index % 6 == 0 else "training"
        for part, array in (("images", pixels), ("annotations", pixels[:, :, 0] // 64)):
            path = tmp_path / "regions" / part / split / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    lines = beit_lines()
    assert {line[0] for line in lines} >= {
        "demo",
        "check",
        "plan",
        "train",
        "tokenizer",
        "pretrain",
        "report",
        "finetune",
        "segment",
    }
    for line in lines:
        with pytest.raises(SystemExit) as leave:
            main([*without_budget(line), *SHORTER.get(line[0], [])])
        assert not leave.value.code, line
    assert (tmp_path / "demo/report.html").exists()
    assert (tmp_path / "runs/tokenizer/report.html").exists()
    shutil.copy(tmp_path / "photos/0.png", "photo.jpg")
    scope: dict[str, torch.Tensor] = {}
    exec(compile("\n".join(blocks("python")), str(README), "exec"), scope)
    assert scope["features"].shape[:2] == (1, 65)  # the width is one that this machine is fast enough for
    assert scope["tokens"].shape == (1, 8, 8)
