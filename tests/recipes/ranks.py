"""Training verbs as two ranks on a CPU, in processes forked from one that has imported them all and run nothing."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_runs import finetune_config, pretrain_config, tokenizer_config

from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer.run import tokenizer

PROCESSES = multiprocessing.get_context("forkserver")
VERBS = [f"beit.recipes.{verb}" for verb in ("finetune", "pretrain", "segment", "tokenizer.run")]
PROCESSES.set_forkserver_preload([*VERBS, "beit.stages.judgement", "beit.stages.scores.monitor"])
CHANCE = {"drop_path_rate": 0.5, "log_every": 1, "steps": 6}


def as_two_ranks(work: Callable[..., object], *arguments: object) -> None:
    """Calls `work`, which a module holds, with the same arguments on both ranks; both have to end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [PROCESSES.Process(target=_be_rank, args=(rank, port, work, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=200)
    ends = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert ends == [0, 0]


def _be_rank(rank: int, port: int, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    work(*arguments)


def runs(folder: Path, images: Path, colours: Path, tokens: Path, split: str) -> None:
    """FOLDER/NAME-SPLIT for each kind of random numbers that the samples of a step draw, split as `split` says."""
    place: dict[str, Any] = {"accumulate": int(split[-1])}
    tokenizer(tokenizer_config(images, folder / f"gumbel-{split}", log_every=1, steps=6, **place))
    pretrain(pretrain_config(images, folder / f"paths-{split}", tokenizer=str(tokens), **CHANCE, **place))
    finetune(finetune_config(colours, folder / f"mixed-{split}", from_scratch=True, **CHANCE, **place))
