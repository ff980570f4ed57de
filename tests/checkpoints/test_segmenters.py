"""Segmenters in the files of other libraries: the same outputs there and here, or a refusal that names the loss."""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_models import IMAGENET, assert_same, segmenter, shaken_norms
from torch import Tensor, nn
from transformers import AutoImageProcessor, BeitConfig, BeitForSemanticSegmentation

from beit import SemanticSegmenter, UserError, load_encoder, load_model
from beit.checkpoints import convert, remote
from beit.checkpoints.own import save_model
from beit.checkpoints.reference import Stated
from beit.checkpoints.store import describe

pytestmark = pytest.mark.slow

POSITIONS = ("shared_bias", "block_bias", "absolute")
CLASSES = ["a", "b", "c", "d", "ü"]
PALETTE = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [255, 0, 255]]


def save(model: nn.Module, folder: Path) -> Path:
    extra = {
        "resize": 80,
        "crop": [64, 64],
        "stride": [42, 42],
        "reduce_zero_label": True,
        "palette": PALETTE,
    }
    save_model(model, folder, provenance={}, classes=CLASSES, extra=extra)
    return folder


def hints(model: SemanticSegmenter, source: str) -> dict[str, Any]:
    """What a file of the released code does not tell."""
    if source != "unilm":
        return {}
    return {"num_heads": model.encoder.config.num_heads, "layers": model.layers}


@pytest.mark.parametrize(
    ("decoder", "changes"),
    [
        ({}, {"position": "block_bias"}),
        ({"layers": (0, 1, 2, 4), "auxiliary": False}, {"position": "shared_bias", "depth": 6}),
        ({}, {"position": "absolute", "layer_scale_init": None}),
    ],
)
def test_round_trips_are_the_identity(decoder: Any, changes: Any, tmp_path: Path) -> None:
    model = segmenter(decoder, **changes)
    save(model, tmp_path / "beit")
    for to in ("unilm", "huggingface"):
        convert(tmp_path / "beit", tmp_path / to, to)
        assert_same(load_model(f"{tmp_path / to}{Stated(**hints(model, to)).text()}"), model)
    for source, to in permutations(("unilm", "huggingface", "beit"), 2):
        if source != "beit":
            target = tmp_path / f"{source}-{to}"
            convert(f"{tmp_path / source}{Stated(**hints(model, source)).text()}", target, to)  # type: ignore[arg-type]
            assert_same(load_model(f"{target}{Stated(**hints(model, to)).text()}"), model)
    back = load_model(tmp_path / "huggingface-beit")
    assert describe(tmp_path / "unilm-huggingface")["classes"] == CLASSES
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(back(images), model(images))
    assert load_encoder(tmp_path / "huggingface").config.depth == model.encoder.config.depth


def assert_equal_outputs(ours: Any, theirs: Any) -> None:
    """In float64 within 1e-9, in float32 within 2e-5 of the largest; their logits lie a quarter as dense."""
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = ours.encoder.config
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
    with torch.no_grad():
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
            logits = theirs.to(dtype)(((images - mean) / std).to(dtype)).logits
            expected = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
            result = ours.to(dtype)(images.to(dtype))
            scale = expected.abs().max()
            assert scale > 0.1
            torch.testing.assert_close(result / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("position", POSITIONS)
def test_transformers_reads_our_files(position: str, tmp_path: Path) -> None:
    """With the layers that its own configuration cannot ask for: the last block's is one of them."""
    model = segmenter(position=position)
    save(model, tmp_path / "own")
    notes = convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    assert "block 4 is zeros, never read" in notes[0]
    theirs, report = BeitForSemanticSegmentation.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.id2label[4] == "ü"
    assert_equal_outputs(model, theirs.eval())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert processor.do_reduce_labels
    assert list(processor.image_mean) == list(IMAGENET["pixel_mean"])
    # It keeps the key that tells of the unused block, and the names of 4.x.
    theirs.float().save_pretrained(tmp_path / "again")
    assert_same(load_model(tmp_path / "again", **IMAGENET), model.float())
    assert (
        load_file(tmp_path / "hf/model.safetensors").keys() == load_file(tmp_path / "again/model.safetensors").keys()
    )


@pytest.mark.parametrize(("position", "auxiliary"), [("block_bias", True), ("absolute", False)])
def test_we_read_the_files_of_transformers(position: str, auxiliary: bool, tmp_path: Path) -> None:
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=80,
        image_size=64,
        layer_norm_eps=1e-5,
        use_absolute_position_embeddings=position == "absolute",
        use_relative_position_bias=position == "block_bias",
        num_labels=5,
        out_indices=[2, 3, 4, 5],
        use_auxiliary_head=auxiliary,
    )
    theirs = shaken_norms(BeitForSemanticSegmentation(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load_model(tmp_path / "theirs")
    assert (ours.layers, ours.auxiliary, ours.encoder.config.depth) == ((0, 1, 2, 3), auxiliary, 5)
    assert_equal_outputs(ours, theirs)
    # The names of 5.x, which it has in memory alone.
    memory = tmp_path / "memory"
    memory.mkdir()
    torch.save(theirs.float().state_dict(), memory / "pytorch_model.bin")
    (memory / "config.json").write_text((tmp_path / "theirs/config.json").read_text())
    assert_same(load_model(memory), ours.float())


def test_the_released_taps_in_a_configuration_are_doubted_and_can_be_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ADE20K models on the hub have: the layers of the released code, which transformers reads otherwise."""
    model = segmenter({"layers": (3, 5, 7, 11), "channels": 16}, depth=12, width=16)
    save(model, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    weights = load_file(tmp_path / "hf/model.safetensors")
    save_file({key: x for key, x in weights.items() if ".layer.12." not in key}, tmp_path / "hf/model.safetensors")
    file = tmp_path / "hf/config.json"
    content = json.loads(file.read_text())
    del content["unused_blocks"]
    file.write_text(json.dumps({**content, "num_hidden_layers": 12, "out_indices": [3, 5, 7, 11]}))
    processor = tmp_path / "hf/preprocessor_config.json"
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor.write_text(json.dumps({**json.loads(processor.read_text()), **half}))
    as_they_read: Any = load_model(tmp_path / "hf")
    assert as_they_read.layers == (1, 3, 5, 9)
    assert "want layers [3, 5, 7, 11] and ImageNet's" in describe(tmp_path / "hf")["notes"][0]
    theirs = BeitForSemanticSegmentation.from_pretrained(tmp_path / "hf").eval()
    assert_equal_outputs(as_they_read, theirs)
    assert_same(load_model(f"{tmp_path / 'hf'}@layers=3:5:7:11,pixel_mean=imagenet,pixel_std=imagenet"), model)
    # By name it needs no statement.
    monkeypatch.setattr(remote, "fetched_from_hub", lambda place: tmp_path / "hf")
    for name in (
        "microsoft/beit-base-finetuned-ade-640-640",
        "hf://microsoft/beit-base-finetuned-ade-640-640",
    ):
        assert_same(load_model(name), model)


def test_a_file_of_the_released_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As mmcv saves it, with the names that the released code has."""
    model = segmenter(
        {"layers": (3, 5, 7, 11), "channels": 24}, depth=12, width=64, num_heads=1, position="block_bias"
    )
    names = {"pyramid.": "backbone.", "encoder.": "backbone."}
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for key, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            key = theirs + key.removeprefix(ours) if key.startswith(ours) else key
        weights[key] = tensor
    expected = {
        *(
            "backbone.fpn1.0.weight",
            "backbone.fpn1.1.running_var",
            "backbone.fpn1.3.bias",
            "backbone.fpn2.0.weight",
        ),
        *("decode_head.psp_modules.3.1.conv.weight", "decode_head.psp_modules.0.1.bn.num_batches_tracked"),
        *("decode_head.bottleneck.bn.bias", "decode_head.fpn_bottleneck.conv.weight"),
        *("decode_head.lateral_convs.2.conv.weight", "decode_head.fpn_convs.0.bn.running_mean"),
        *(
            "decode_head.conv_seg.bias",
            "auxiliary_head.convs.0.conv.weight",
            "auxiliary_head.conv_seg.weight",
        ),
        *("backbone.cls_token", "backbone.blocks.11.attn.relative_position_bias_table"),
    }
    assert expected <= weights.keys()
    for layer in range(12):
        weights[f"backbone.blocks.{layer}.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    run = {
        "meta": {"CLASSES": tuple(CLASSES), "PALETTE": PALETTE, "iter": 160000, "config": "model = dict()"},
        "state_dict": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": []},
    }
    file = tmp_path / "upernet.pth"
    torch.save(run, file, _use_new_zipfile_serialization=False)
    with caplog.at_level(logging.INFO, "beit"):
        assert_same(load_model(file), model)
    assert "layers [3, 5, 7, 11], which the released code reads of 12 blocks" in caplog.text
    about = describe(file)
    expected_facts = {
        "format": "unilm",
        "kind": "segmenter",
        "num_classes": 5,
        "decoder": "upernet",
        "channels": 24,
        "classes": CLASSES,
        "palette": PALETTE,
        "resize": 64,
        "crop": [64, 64],
        "stride": [42, 42],
        "reduce_zero_label": False,
        "unknown": [],
        "missing": [],
    }
    assert expected_facts.items() <= about.items()
    convert(file, tmp_path / "own", "beit")
    assert {key: describe(tmp_path / "own")[key] for key in ("palette", "stride", "classes")} == {
        "palette": PALETTE,
        "stride": [42, 42],
        "classes": CLASSES,
    }
    convert(tmp_path / "own", tmp_path / "again.pth", "unilm")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again["state_dict"].keys() == weights.keys()
    assert again["meta"]["CLASSES"] == tuple(CLASSES)
    other: Any = load_model(f"{file}@layers=0:1:2:3", pixel_mean=(0.5, 0.5, 0.5))
    assert other.layers == (0, 1, 2, 3)
    assert other.encoder.config.pixel_mean == (0.5, 0.5, 0.5)


PUP = {"decoder": "pup", "channels": 8}


@pytest.mark.parametrize(
    ("decoder", "changes", "to", "message"),
    [
        (
            PUP,
            {},
            "unilm",
            r"with UPerNet: it cannot hold SETR-PUP's decode_head\.up_convs and auxiliary_head",
        ),
        (PUP, {}, "huggingface", r"cannot hold SETR-PUP's decode_head\.up_convs"),
        ({}, {}, "timm", r"no decode_head: .*; choose --to unilm or huggingface or beit"),
        (PUP, {}, "timm", "choose --to beit$"),
        ({}, {}, "dalle", "cannot hold a SemanticSegmenter"),
        ({"channels": 16}, {}, "huggingface", "cannot hold 16 over 32"),
        ({"layers": (0, 0, 1, 2)}, {}, "huggingface", r"cannot hold layers \[0, 0, 1, 2\]"),
        ({}, {"patch_size": 8}, "huggingface", "cannot hold one for patches of 8"),
        ({}, {"patch_size": 4}, "unilm", "cannot hold one for patches of 4"),
        ({}, {"image_size": (64, 32)}, "huggingface", "shared_bias positions of a grid of 4x2"),
    ],
)
def test_what_a_format_cannot_hold_is_named(
    decoder: Any, changes: Any, to: Any, message: str, tmp_path: Path
) -> None:
    save(segmenter(decoder, **changes), tmp_path / "own")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "own", tmp_path / "x", to)
    assert not (tmp_path / "x").exists()
    convert(tmp_path / "own", tmp_path / "copy", "beit")
    assert describe(tmp_path / "copy")["palette"] == PALETTE


def test_what_a_file_cannot_tell_is_said(tmp_path: Path) -> None:
    save(segmenter({"layers": (0, 0, 1, 3)}, pixel_mean=(0.5, 0.5, 0.5)), tmp_path / "own")
    notes = "\n".join(convert(tmp_path / "own", tmp_path / "x.pth", "unilm"))
    said = "@pixel_mean=0.5:0.5:0.5,layers=0:0:1:3,reduce_zero_label=yes"
    assert f"cannot tell pixel_mean, layers, reduce_zero_label: load it as PATH{said}\n" in notes
    assert notes.endswith("unilm does not tell resize")
    about = describe(f"{tmp_path / 'x.pth'}{said}")
    assert (about["reduce_zero_label"], about["resize"], about["notes"]) == (True, 64, [])


WHOLE = {"resize": None, "crop": [64, 64], "stride": None, "reduce_zero_label": False, "ignore_value": 255}
SLID = {"resize": 64, "crop": [64, 64], "stride": [42, 42], "reduce_zero_label": True, "ignore_value": 255}


@pytest.mark.parametrize("num_classes", [5, 150])
@pytest.mark.parametrize("extra", [WHOLE, SLID, {}, {**SLID, "ignore_value": 0, "crop": [32, 64]}])
@pytest.mark.parametrize("to", ["unilm", "huggingface"])
def test_how_it_is_judged_travels_or_is_named_as_lost(
    to: Any, extra: dict[str, Any], num_classes: int, tmp_path: Path
) -> None:
    model = segmenter(num_classes=num_classes)
    save_model(model, tmp_path / "own", provenance={}, extra=extra)
    notes = convert(tmp_path / "own", tmp_path / "theirs", to)
    said = re.search(r"load it as PATH(@\S+)", "\n".join(notes))
    lost = re.search(f"{to} does not tell (.*)", "\n".join(notes))
    about = describe(f"{tmp_path / 'theirs'}{said[1] if said else ''}")
    wrong = {name for name, value in {**WHOLE, **extra}.items() if about[name] != value}
    assert wrong == ({*lost[1].split(", ")} if lost else set())
    assert "reduce_zero_label" not in wrong


def test_the_labels_of_150_classes_are_a_guess_that_a_statement_mends(tmp_path: Path) -> None:
    save_model(segmenter(num_classes=150), tmp_path / "own", provenance={})
    file = tmp_path / "x.pth"
    notes = convert(tmp_path / "own", file, "unilm")
    assert f"{file}{notes[0].partition('PATH')[2]}".endswith("x.pth@reduce_zero_label=no")
    about = describe(f"{file}@layers=0:1:2:3")
    assert about["reduce_zero_label"] is True
    assert "reduce_zero_label=yes is a guess, by the 150 classes" in about["notes"][0]
    stated = describe(f"{file}@layers=0:1:2:3,reduce_zero_label=no")
    assert (stated["reduce_zero_label"], stated["notes"]) == (False, [])
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    assert describe(tmp_path / "hf")["reduce_zero_label"] is False
    with pytest.raises(UserError, match="reduce_zero_label is True by one account and False by another"):
        load_model(f"{tmp_path / 'hf'}@reduce_zero_label=yes")
    assert load_model(f"{file}@layers=0:1:2:3,reduce_zero_label=no")


def test_weights_that_are_unknown_missing_or_of_a_wrong_kind(tmp_path: Path) -> None:
    save(segmenter(), tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    file = tmp_path / "hf/model.safetensors"
    good = load_file(file)
    count = "decode_head.bottleneck.bn.num_batches_tracked"
    for changes, message in [
        ({count: good[count].float()}, r"num_batches_tracked holds torch\.float32 where a count is wanted"),
        ({"decode_head.classifier.weight": torch.ones(5, 32)}, "is no convolution to classes"),
        (
            {"auxiliary_head.convs.0.conv.weight": torch.ones(8, 32, 3, 3)},
            "of unexpected shapes: auxiliary_head",
        ),
        ({"decode_head.psp_modules.4.1.conv.weight": torch.ones(32, 32, 1, 1)}, r"unknown .*psp_modules\.4"),
    ]:
        save_file({**good, **changes}, file)
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "hf")
    del good["decode_head.fpn_convs.1.conv.weight"]
    save_file(good, file)
    with pytest.raises(UserError, match=r"missing decode_head\.fpn_convs\.1\.conv\.weight"):
        load_model(tmp_path / "hf")
