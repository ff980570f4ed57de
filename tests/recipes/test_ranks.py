"""Random numbers belong to samples: a batch that is split otherwise over ranks and passes trains the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import as_two_ranks, runs
from safetensors.torch import load_file
from tiny_runs import finetune_config

from beit.config.errors import UserError
from beit.recipes.finetune import finetune
from beit.training.method import Noise

pytestmark = pytest.mark.slow


def losses(run: Path) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]


def test_a_batch_trains_the_same_however_it_is_split(
    images: Path, colours: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    """Drop path, mixup, cutmix and Gumbel noise on: one rank, two ranks, and one with two passes."""
    data = tmp_path, images, colours, trained_tokenizer
    as_two_ranks(runs, *data, "2x1")
    for split in ("1x1", "1x2"):
        runs(*data, split)
    for name in ("gumbel", "paths", "mixed"):
        whole = losses(tmp_path / f"{name}-1x1")
        weights = load_file(tmp_path / f"{name}-1x1" / "model" / "model.safetensors")
        assert len(whole) == 6
        for split in ("1x2", "2x1"):
            run = tmp_path / f"{name}-{split}"
            assert losses(run) == pytest.approx(whole, rel=1e-5), (name, split)
            torch.testing.assert_close(load_file(run / "model" / "model.safetensors"), weights, rtol=1e-3, atol=1e-5)


def test_numbers_of_a_place_are_its_own(tmp_path: Path) -> None:
    def drawn(step: int, places: range, times: int = 1) -> torch.Tensor:
        noise = Noise(3, step, places, torch.device("cpu"))
        return [noise.uniform(5) for _ in range(times)][-1]

    whole = drawn(7, range(8))
    assert torch.equal(torch.cat([drawn(7, range(4)), drawn(7, range(4, 8))]), whole)
    others = torch.cat([whole, drawn(8, range(8)), drawn(7, range(8), times=2)]).flatten()
    assert len(others.unique()) == len(others) and others.min() >= 0 and others.max() < 1
    assert (
        Noise(3, 7, range(2), torch.device("cpu")).of_batch().random()
        == Noise(3, 7, range(2, 4), torch.device("cpu")).of_batch().random()
    )


def test_a_pass_that_holds_no_whole_pairs_is_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch-size 8 must be a multiple of 16, or add --mixup 0"):
        finetune(finetune_config(colours, tmp_path / "run", from_scratch=True, accumulate=4, repeats=2))
