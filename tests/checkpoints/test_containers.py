"""What trainers put around and beside the weights of a BEiT is seen through; other networks are told from it."""

from __future__ import annotations

import argparse
import datetime
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from beit import UserError, load_model
from beit.checkpoints.own import KINDS

MODEL = tiny("mean", position="block_bias")


def released() -> dict[str, Tensor]:
    return {key.removeprefix("encoder."): x for key, x in MODEL.state_dict().items()}


def under(wrapper: str) -> dict[str, Tensor]:
    return {f"{wrapper}{key}": x for key, x in released().items()}


@pytest.mark.parametrize(
    "content",
    [
        *({key: released()} for key in ("model", "module", "state_dict", "model_state_dict", "net")),
        under("module."),
        {"model": under("module.")},
        {"state_dict": under("model."), "pytorch-lightning_version": "2.5", "epoch": 3},
        {"model": under("_orig_mod.module.")},
    ],
    ids=lambda content: next(iter(content)),
)
def test_weights_within_what_trainers_save(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    loaded = load_model(tmp_path / "x.pth")
    assert all(torch.equal(x, MODEL.state_dict()[key]) for key, x in loaded.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_objects_beside_the_weights(legacy: bool, tmp_path: Path) -> None:
    counts: defaultdict[str, list[int]] = defaultdict(list)
    counts["a"].append(1)
    beside = {
        "history": counts,
        "seen": Counter("abc"),
        "loss": np.arange(6.0).reshape(2, 3),
        "best": np.float64(0.5),
        "frozen": frozenset({"cls_token"}),
        "types": [torch.int8, torch.uint8, torch.bool, torch.int32],
        "when": datetime.datetime(2026, 1, 1),
        "args": argparse.Namespace(factory=int, stages=[OrderedDict(a=1)]),
    }
    file = tmp_path / "x.pth"
    torch.save({"model": released(), **beside}, file, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(file)
    assert all(torch.equal(x, MODEL.state_dict()[key]) for key, x in loaded.state_dict().items())


def test_what_is_of_no_known_format_is_shown_and_has_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"conv1.weight": torch.zeros(2, 2), "fc": {}}, file)
    with pytest.raises(UserError, match=r"it holds conv1\.weight, fc; give a BEiT"):
        load_model(file)
    torch.save({"student": {"conv.weight": torch.zeros(2)}, "epoch": 3}, file)
    with pytest.raises(UserError, match=r"it holds epoch, student; give a BEiT") as error:
        load_model(file)
    assert "\n" not in str(error.value)
    torch.save({"model": released(), "trainer": KINDS["probe"].model}, file)
    with pytest.raises(UserError, match=r"LinearProbe'.*save its weights alone, torch\.save\(model\.state_dict"):
        load_model(file)


@pytest.mark.parametrize(
    ("stranger", "message"),
    [("blocks.0.attn.qkv.bias", r"unknown blocks\.0\.attn\.q_bias"), ("dist_token", "unknown dist_token")],
)
def test_a_file_is_of_one_kind_of_transformer(stranger: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"model": {**released(), stranger: torch.zeros(96)}}, file)
    with pytest.raises(UserError, match=message):
        load_model(file)
