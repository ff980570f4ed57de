"""`python ranks.py FOLDER IMAGES COLOURS TOKENIZER`: the verbs of `RUNS` as two ranks, in FOLDER/NAME-2x1."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_runs import finetune_config, pretrain_config, tokenizer_config

from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer.run import tokenizer

CHANCE = {"drop_path_rate": 0.5, "log_every": 1, "steps": 6}


def runs(folder: Path, images: Path, colours: Path, tokens: Path, split: str) -> dict[str, Callable[[], Any]]:
    """One run for each kind of random numbers that the samples of a step draw, split as `split` says."""
    place: dict[str, Any] = {"accumulate": int(split[-1])}
    configs = {
        "gumbel": tokenizer_config(images, folder / f"gumbel-{split}", log_every=1, steps=6, **place),
        "paths": pretrain_config(images, folder / f"paths-{split}", tokenizer=str(tokens), **CHANCE, **place),
        "mixed": finetune_config(colours, folder / f"mixed-{split}", from_scratch=True, **CHANCE, **place),
    }
    verbs: dict[str, Callable[[Any], Any]] = {"gumbel": tokenizer, "paths": pretrain, "mixed": finetune}
    return {name: lambda name=name: verbs[name](configs[name]) for name in verbs}  # type: ignore[misc]


def main() -> int:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0"}
    other = os.fork()
    if not other:
        os.environ["RANK"] = "1"
    folder, images, colours, tokens = map(Path, sys.argv[1:])
    for run in runs(folder, images, colours, tokens, "2x1").values():
        run()
    return os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) if other else 0


if __name__ == "__main__":
    sys.exit(main())
