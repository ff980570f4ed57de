"""With --token-cache views come again under new masks, and the tokenizer runs for each of them once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import pretrain_config
from torch import Tensor

import beit
from beit.data.loaders import Loader
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.data.views.pretraining import PretrainViews
from beit.masking import RandomMasking
from beit.recipes.pretrain import pretrain
from beit.stages.tasks import masked_modelling
from beit.stages.tasks.masked_modelling import TokenCache, tokens_by

CYCLE = 2


def test_views_come_again_after_the_cycle_under_new_masks(images: Path) -> None:
    source = open_splits([str(images)], holdout=Holdout(0.0))["train"]
    views = PretrainViews((32, 32), (16, 16), RandomMasking((4, 4), 6))
    loader = Loader(source, views, batch_size=len(source), seed=3, cycle=CYCLE, max_bad=1.0)
    epochs = list(loader.batches(0, 2 * CYCLE))
    by_number = [{int(n): i for i, n in enumerate(batch.number) if n >= 0} for batch in epochs]
    assert by_number[0].keys() == by_number[2].keys() != by_number[1].keys()
    for number, place in by_number[0].items():
        again = by_number[2][number]
        assert torch.equal(epochs[0].image[place], epochs[2].image[again])
        assert torch.equal(epochs[0].token_image[place], epochs[2].token_image[again])
    moved = [torch.equal(epochs[0].mask[i], epochs[2].mask[by_number[2][n]]) for n, i in by_number[0].items()]
    assert not all(moved)
    first = {n % len(source): i for n, i in by_number[0].items()}
    second = {n % len(source): i for n, i in by_number[1].items()}
    assert not any(torch.equal(epochs[0].image[first[n]], epochs[1].image[second[n]]) for n in first)


def test_tokens_are_those_of_the_tokenizer_and_asked_for_once(trained_tokenizer: Path) -> None:
    tiny_tokenizer = beit.load_tokenizer(trained_tokenizer)
    cache, shown = TokenCache(tiny_tokenizer, 5, 16), []
    asked = tiny_tokenizer.encode
    cache.encode = lambda images: shown.append(len(images)) or asked(images)  # type: ignore[func-returns-value]
    batch = masked_modelling.PretrainBatch(
        torch.zeros(4, 3, 32, 32),
        torch.rand(4, 3, 16, 16),
        torch.zeros(4, 4, 4, dtype=torch.bool),
        torch.tensor([3, -1, 0, 4]),
    )
    truth = tokens_by(tiny_tokenizer)(batch)
    for images in (4, 1):  # in place of a damaged image each time
        assert torch.equal(cache(batch), truth)
        assert shown.pop() == images
        cache.keep(truth.flatten(1), batch.number)


def test_killed_after_the_cycle_a_run_ends_with_the_same_bits_and_without_the_tokenizer(
    images: Path, trained_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def config(name: str) -> object:
        values = {"tokenizer": str(trained_tokenizer), "token_cache": CYCLE, "steps": 12, "save_every": "5"}
        return pretrain_config(images, tmp_path / name, **{**values, "evaluations": 1, "max_bad": 1.0})

    def watched(model: object, encode: object, batch: object, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(encode, TokenCache):
            calls.append(0)
            if len(calls) == die_at:
                raise KeyboardInterrupt
        return method(model, encode, batch, *rest)  # type: ignore[arg-type]

    method = masked_modelling.masked_image_modelling
    monkeypatch.setattr(masked_modelling, "masked_image_modelling", watched)
    die_at = -1
    pretrain(config("whole"))  # type: ignore[arg-type]
    die_at = len(calls) - 1  # steps of a rehearsal come before; the run has states of steps 5 and 10
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        pretrain(config("killed"))  # type: ignore[arg-type]
    die_at = -1
    pretrain(config("killed"))  # type: ignore[arg-type]
    whole, killed = (beit.load_model(tmp_path / name).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    newest = sorted((tmp_path / "killed/checkpoints").iterdir())[-1]
    state = torch.load(next(newest.glob("*.pt")), weights_only=True)
    tokens = state["companions"]["token_cache"]["tokens"]
    assert np.mean((tokens >= 0).numpy()) > 0.9  # but for damaged images
