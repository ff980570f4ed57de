"""Round trips between formats are the identity, or refused with the name of what would be lost."""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import Model, assert_same, models, outputs, shaken, tiny
from torch import nn

from beit import SemanticSegmenter, UserError, load_encoder, load_model
from beit.checkpoints import convert
from beit.checkpoints.conversion import Target, holders
from beit.checkpoints.foreign import huggingface_images as images
from beit.checkpoints.preparation import Preparation
from beit.checkpoints.reference import Stated
from beit.checkpoints.store import describe, save_model
from beit.cli.main import main
from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.tokenizers.dvae import DiscreteVAE

pytestmark = pytest.mark.slow

FOREIGN = ("unilm", "timm", "huggingface")


def why_not(model: Model, to: str) -> str | None:
    """What the message has to name where `to` cannot hold `model`."""
    config = model.encoder.config
    if to == "timm" and isinstance(model, MaskedImageModel):
        return r"no mask_token, no lm_head"
    if to == "huggingface" and config.grid[0] != config.grid[1] and config.positions != "none":
        return rf"{config.positions} positions of a grid of {config.grid[0]}x{config.grid[1]}"
    return None


def hints(model: Model, source: str) -> dict[str, Any]:
    """What a file of the released code does not tell."""
    config = model.encoder.config
    names = ("num_heads", "grid", "pixel_mean", "pixel_std") if source == "unilm" else ()
    return {name: getattr(config, name) for name in names}


@settings(max_examples=20, deadline=None)
@given(models())
def test_round_trips_are_the_identity_or_refused_by_name(model: Model) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(model, folder / "beit", provenance={}, classes=["ü", "b", "c", "d", "e"])
        held = []
        for to in FOREIGN:
            if reason := why_not(model, to):
                with pytest.raises(UserError, match=reason):
                    convert(folder / "beit", folder / to, to)
                assert not (folder / to).exists()
            else:
                convert(folder / "beit", folder / to, to)
                assert_same(load_model(folder / to, **hints(model, to)), model)
                held.append(to)
        for source, to in product(held, [*held, "beit"]):
            target = folder / f"{source}-{to}"
            convert(f"{folder / source}{Stated(**hints(model, source)).text()}", target, to)
            back = load_model(target, **hints(model, to))
            assert_same(back, model)
            if {source, to} <= {"huggingface", "beit"}:  # these two tell the LayerNorm's eps
                images = torch.rand(2, 3, *model.encoder.config.image_size)
                torch.testing.assert_close(outputs(back, images), outputs(model, images))


@pytest.mark.parametrize("to", FOREIGN)
def test_sine_cosine_positions_are_written_as_a_table(to: str, tmp_path: Path) -> None:
    model = tiny("mean", position="sincos", bias="block", layer_norm_eps=1e-6)
    save_model(model, tmp_path / "own", provenance={})
    notes = convert(tmp_path / "own", tmp_path / "theirs", to)  # type: ignore[arg-type]
    assert "sine-cosine positions written as a table of absolute ones" in notes
    theirs: Any = load_model(tmp_path / "theirs", **hints(model, to))
    assert (theirs.encoder.config.position, theirs.encoder.config.bias) == ("absolute", "block")
    images = torch.rand(2, 3, *model.encoder.config.image_size)
    torch.testing.assert_close(outputs(theirs, images), outputs(model, images))


def test_what_a_file_cannot_tell_is_said_and_has_its_default(tmp_path: Path) -> None:
    model = tiny("mean", image_size=(16, 24), position="absolute", pixel_mean=(0.1, 0.2, 0.3), layer_norm_eps=1e-5)
    save_model(model, tmp_path / "own", provenance={})
    notes = "\n".join(convert(tmp_path / "own", tmp_path / "file.pth", "unilm"))
    assert (
        "cannot tell num_heads, grid, pixel_mean: load it as PATH@num_heads=4,grid=2x3,pixel_mean=0.1:0.2:0.3"
        in notes
    )
    assert "eps of 1e-6, not 1e-05" in notes
    with pytest.raises(UserError, match=r"state num_heads"):
        load_model(tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"grid of 2x2 patches needs 5; state grid"):
        load_model(tmp_path / "file.pth", num_heads=4)
    with pytest.raises(UserError, match=r"a grid of 3x3 patches needs 10"):
        load_model(tmp_path / "file.pth", num_heads=4, grid=3)
    loaded: Any = load_model(tmp_path / "file.pth", num_heads=4, grid=(2, 3))
    assert loaded.encoder.config.pixel_mean == (0.5, 0.5, 0.5)
    wide = tiny("mean", width=128, num_heads=2, position="none", image_size=(112, 112))
    save_model(wide, tmp_path / "wide", provenance={})
    assert convert(tmp_path / "wide", tmp_path / "wide.pth", "unilm") == []
    assert load_encoder(tmp_path / "wide.pth").config.num_heads == 2
    with pytest.raises(UserError, match="drop num_heads"):
        load_model(tmp_path / "own", num_heads=4)


def test_how_images_are_shown_travels_or_is_named_as_lost(tmp_path: Path) -> None:
    extra = {"interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "squash", "multilabel": True}
    classes = [*"abcde"]
    save_model(tiny("mean"), tmp_path / "own", provenance={}, classes=classes, extra=extra)
    for to, lost in [
        ("unilm", ["unilm does not tell classes, crop_mode, crop_pct, interpolation, multilabel"]),
        ("timm", ["timm does not tell multilabel"]),
        ("huggingface", []),
        ("beit", []),
    ]:
        assert convert(tmp_path / "own", tmp_path / to, to) == lost  # type: ignore[arg-type]
        about = describe(tmp_path / to)
        for name, value in extra.items():
            assert about.get(name) == (None if lost and name in lost[0] else value)
    save_model(tiny(), tmp_path / "masked", provenance={}, tokenizer_hash="t")
    assert convert(tmp_path / "masked", tmp_path / "m", "unilm") == ["unilm does not tell tokenizer"]
    # Only what reading it back gives otherwise is lost: here nothing, since each key has the value of its absence.
    usual = {"interpolation": "bicubic", "crop_pct": 1.0, "multilabel": False}
    save_model(tiny("mean"), tmp_path / "usual", provenance={}, extra=usual)
    assert convert(tmp_path / "usual", tmp_path / "usual.pth", "unilm") == []


@given(st.integers(32, 1024), st.floats(0.11, 1))
@example(112, 0.5599)
@example(93, 0.46875)  # 198 before the cut; 93 / 198 is 0.4696969..., which rounds up at every digit
def test_a_crop_keeps_its_pixels_in_a_preprocessor(side: int, share: float) -> None:
    size = (side, side)
    for mode in ("center", "squash"):
        written = images.content(EncoderConfig(image_size=size, patch_size=1), Preparation("bilinear", share, mode))
        told, notes = images.preparation_of(written, size)
        assert notes == []
        assert images.before_cut(size, told["crop_pct"]) == images.before_cut(size, share)
        assert (told["interpolation"], told["crop_mode"]) == ("bilinear", mode)


def changed_processor(folder: Path, changes: dict[str, Any]) -> Path:
    """preprocessor_config.json beside a classifier of Hugging Face's, with some values changed."""
    save_model(tiny("mean"), folder / "own", provenance={})
    convert(folder / "own", folder / "hf", "huggingface")
    file = folder / "hf" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return file


@pytest.mark.parametrize(
    ("changes", "told", "note"),
    [
        # The released models, as the library's conversion wrote them.
        ({"size": 32, "resample": 2, "do_center_crop": False}, ("bilinear", 1.0, "squash"), False),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True}, ("bicubic", 0.8, "center"), False),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, None, True),
        ({"size": 40, "do_center_crop": False}, None, True),
        ({"size": 24, "do_center_crop": True}, None, True),
        ({"size": 10**9, "do_center_crop": True}, None, True),
        ({"size": "big"}, None, True),
        ({"do_resize": False}, None, True),
        ({"resample": 9}, None, True),
    ],
)
def test_how_hugging_face_shows_images_is_read_or_a_line_says_why_not(
    changes: dict[str, Any], told: tuple[str, float, str] | None, note: bool, tmp_path: Path
) -> None:
    file = changed_processor(tmp_path, changes)
    about = describe(file.parent)
    assert [about.get(name) for name in Preparation._fields] == [*(told or (None,) * 3)]
    assert [text.partition(":")[0] for text in about["notes"]] == ["preprocessor_config.json"] * note


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"image_mean": 0.3, "image_std": 0.2}, 0.3, 0.2),
        ({"rescale_factor": 1 / 127.5}, 0.25, 0.25),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5, 0.2),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, 0.0, 0.5),
        ({"image_mean": None}, 0.5, 0.5),
    ],
)
def test_pixels_of_any_range_are_normalised_as_in_hugging_face(
    changes: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    file = changed_processor(tmp_path, changes)
    about = describe(file.parent)
    assert about["pixel_mean"] == pytest.approx((mean,) * 3)
    assert about["pixel_std"] == pytest.approx((std,) * 3)
    for wrong in (
        {"rescale_factor": 0},
        {"rescale_factor": "x"},
        {"image_mean": "x"},
        {"image_std": [0] * 3},
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"rescale_factor is|pixel_(mean|std) (is|cannot be)"):
            load_model(file.parent)


def test_class_names_tokenizer_and_origin_travel(tmp_path: Path) -> None:
    classes = ["ü", "b", "c", "d", "e"]
    save_model(tiny("mean"), tmp_path / "own", provenance={"run": "x"}, classes=classes)
    for to in ("timm", "huggingface"):
        convert(tmp_path / "own", tmp_path / to, to)
        assert describe(tmp_path / to)["classes"] == classes
        convert(tmp_path / to, tmp_path / f"{to}-own", "beit")
        about = describe(tmp_path / f"{to}-own")
        assert about["classes"] == classes
        assert about["provenance"]["format"] == to
    save_model(tiny(), tmp_path / "masked", provenance={"run": "x"}, tokenizer_hash="t")
    convert(tmp_path / "masked", tmp_path / "copy", "beit")
    about = describe(tmp_path / "copy")
    assert (about["tokenizer"], about["provenance"]["run"]) == ("t", "x")


def test_class_names_with_gaps_are_taken_in_order_and_said(tmp_path: Path) -> None:
    """As the library's conversion of 22k classifiers writes them: two names deleted, the others' numbers kept."""
    save_model(tiny("mean"), tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    file = tmp_path / "hf" / "config.json"
    good = json.loads(file.read_text())
    for labels, names, odd in [
        ({"0": "a", "1": "b", "3": "d", "12": "m", "4": "e"}, ["a", "b", "d", "e", "m"], True),
        ({"4": "e", "3": "d", "2": "c", "1": "b", "0": "a"}, [*"abcde"], False),
        ({str(index): f"LABEL_{index}" for index in range(5)}, None, False),
    ]:
        file.write_text(json.dumps({**good, "id2label": labels}))
        about = describe(tmp_path / "hf")
        assert about["classes"] == names
        assert bool(about["notes"]) == odd
        assert not odd or "its 5 names are those of outputs 0 to 4 in order" in about["notes"][0]
    file.write_text(json.dumps({**good, "id2label": {"0": "a", "one": "b"}}))
    with pytest.raises(UserError, match=r"not one of BEiT's .*'one'"):
        load_model(tmp_path / "hf")


def test_missing_weights_are_errors_and_unknown_ones_unless_told_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tiny(), tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    file = tmp_path / "hf" / "model.safetensors"
    weights = load_file(file)
    weights["surprise"] = weights.pop("beit.encoder.layer.1.lambda_2")
    del weights["beit.encoder.layer.0.attention.attention.key.weight"]
    save_file(weights, file)
    # The query and the value without their key are not our one projection.
    pattern = r"unknown .*query\.weight.*surprise; missing encoder\.blocks\.0\.attn\.qkv.*blocks\.1\.gamma_2"
    for name in ("hf", "hf@strict=no"):
        with pytest.raises(UserError, match=pattern) as error:
            load_model(tmp_path / name)
        assert "\n" not in str(error.value)
    about = describe(tmp_path / "hf")
    assert "surprise" in about["unknown"]
    assert "encoder.blocks.1.gamma_2" in about["missing"]
    convert(tmp_path / "own", tmp_path / "whole", "huggingface")
    file = tmp_path / "whole" / "model.safetensors"
    save_file({**load_file(file), "surprise": torch.ones(1)}, file)
    with pytest.raises(UserError, match="unknown surprise; PATH@strict=no goes on without them"):
        load_model(tmp_path / "whole")
    load_model(f"{tmp_path / 'whole'}@strict=no")
    # A warning, which is shown unless someone turns it off.
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "surprise: unknown, left out" in caplog.text


def test_weights_of_another_stage_are_left_out_and_said(tmp_path: Path) -> None:
    model = tiny("mean", position="block_bias")
    weights = {key.removeprefix("encoder."): x for key, x in model.state_dict().items()}
    torch.save({"model": {**weights, "mask_token": torch.zeros(1, 1, 32)}}, tmp_path / "with_mask.pth")
    assert convert(tmp_path / "with_mask.pth", tmp_path / "own", "beit") == [
        "mask_token: left out, a classifier has none"
    ]
    bare = {key: x for key, x in weights.items() if not key.startswith(("head", "fc_norm"))}
    torch.save(bare, tmp_path / "bare.pth")
    encoder = load_model(tmp_path / "bare.pth")
    assert isinstance(encoder, BeitEncoder)
    assert load_encoder(tmp_path / "bare.pth", image_size=(48, 32)).grid == (6, 4)
    with pytest.raises(UserError, match="cannot hold a BeitEncoder"):
        convert(tmp_path / "bare.pth", tmp_path / "x", "beit")


def test_a_run_of_the_released_code_tells_its_normalisation(tmp_path: Path) -> None:
    import argparse

    model = tiny(position="shared_bias")
    weights = {
        key.removeprefix("encoder.").replace("token_head", "lm_head"): x for key, x in model.state_dict().items()
    }
    arguments = argparse.Namespace(model="beit_tiny", imagenet_default_mean_and_std=True, output_dir=Path("x"))
    run = {
        "model": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}},
        "epoch": 3,
        "args": arguments,
        "model_ema": weights,
    }
    for legacy in (False, True):
        file = tmp_path / f"checkpoint-{legacy}.pth"
        torch.save(run, file, _use_new_zipfile_serialization=not legacy)
        loaded: Any = load_model(file)
        assert describe(file)["notes"] == ["model_ema: not read, the weights as trained are"]
        assert loaded.encoder.config.pixel_std == (0.229, 0.224, 0.225)
        assert torch.equal(loaded.token_head.weight, model.token_head.weight)
        assert describe(file)["provenance"] == {"model": "beit_tiny"}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("cls_token", lambda x: x.long(), r"cls_token holds torch\.int64"),
        ("norm.weight", lambda x: x[:-1], r"norm\.weight is \(31,\), not \(32,\)"),
        ("patch_embed.proj.weight", lambda x: x[:, :1], "square patches of RGB images"),
        ("blocks.0.mlp.fc1.weight", lambda x: x[:0], "without numbers"),
        ("rel_pos_bias.relative_position_bias_table", lambda x: x[:, :0], "0 attention heads"),
        ("rel_pos_bias.relative_position_bias_table", lambda x: x[:-1], "has 51 rows"),
    ],
)
def test_weights_of_a_wrong_type_or_shape_are_refused(key: str, change: Any, message: str, tmp_path: Path) -> None:
    weights = {
        name.removeprefix("encoder.").replace("token_head", "lm_head"): x for name, x in tiny().state_dict().items()
    }
    save_file({**weights, key: change(weights[key]).clone()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "x.safetensors")


def test_a_description_needs_no_weights(tmp_path: Path) -> None:
    save_model(tiny("cls"), tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "timm", "timm")
    about = describe(tmp_path / "timm")
    expected = {
        "format": "timm",
        "kind": "classifier",
        "num_classes": 5,
        "pool": "cls",
        "unknown": [],
        "missing": [],
    }
    assert expected.items() <= about.items()
    assert about["architecture"]["num_heads"] == 4
    assert about["parameters"] == sum(x.numel() for x in tiny("cls").parameters())
    assert describe(tmp_path / "own")["format"] == "beit"


def dvae(**changes: Any) -> DiscreteVAE:
    small = {"vocab_size": 512, "width": 64, "stride": 8, "blocks_per_group": 1, "code_width": 8}
    model: DiscreteVAE = shaken(DiscreteVAE(DiscreteVAEConfig(**{**small, **changes})))
    return model


def test_tokenizers_travel_to_dalle_and_back(tmp_path: Path) -> None:
    model = dvae()
    save_model(model, tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "dalle", "dalle")
    convert(tmp_path / "dalle", tmp_path / "back", "beit")
    for path in ("dalle", "dalle/encoder.pkl", "back"):
        weights = load_model(tmp_path / path).state_dict()
        assert all(torch.equal(weights[key], x) for key, x in model.state_dict().items())
    for changes, lost in (({"stride": 4}, "stride 4"), ({"vocab_size": 256}, "vocab_size 256")):
        save_model(dvae(**changes), tmp_path / lost, provenance={})
        with pytest.raises(UserError, match=lost):
            convert(tmp_path / lost, tmp_path / "x", "dalle")
    (tmp_path / "dalle" / "decoder.pkl").unlink()
    with pytest.raises(UserError, match=r"decoder\.pkl is missing"):
        load_model(tmp_path / "dalle")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    return int(leave.value.code or 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, target = str(tmp_path / "own"), str(tmp_path / "a" / "target")
    save_model(tiny("mean"), Path(own), provenance={})
    assert run("convert", own, target, "--to", "huggingface") == 0
    assert f"{target} holds {own}" in capsys.readouterr().out
    assert isinstance(load_model(target), ImageClassifier)
    for arguments, message in [
        ([own, target, "--to", "unilm"], "exists already"),
        ([own, str(tmp_path / "x"), "--to", "keras"], "huggingface"),
        ([own, "--to", "unilm"], "needs DESTINATION"),
        ([own, str(tmp_path / "x"), "third", "--to", "unilm"], "third"),
        ([str(tmp_path / "nothing"), str(tmp_path / "x"), "--to", "unilm"], "nothing does not exist"),
    ]:
        assert run("convert", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    file = str(tmp_path / "x.pth")
    save_model(tiny("mean", image_size=(16, 64), position="absolute"), tmp_path / "wide", provenance={})
    assert run("convert", str(tmp_path / "wide"), file, "--to", "unilm") == 0
    assert run("convert", f"{file}@grid=2x8,num_heads=4", str(tmp_path / "again"), "--to", "beit") == 0
    assert load_encoder(tmp_path / "again").grid == (2, 8)


def test_folders_that_are_there_are_filled_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny("mean"), tmp_path / "own", provenance={})
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(UserError, match="here exists already"):
        convert(tmp_path / "own", here, "unilm")
    monkeypatch.chdir(here)
    convert("../own", ".", "timm")
    # Read where one stands: the folder is the same as before.
    assert {path.name for path in Path().iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(UserError, match="exists already"):
        convert("../own", ".", "timm")
    assert {path.name for path in tmp_path.iterdir()} == {"own", "here"}


def test_weights_are_as_readable_as_what_lies_beside_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(tiny("mean"), tmp_path / "own", provenance={})
        for to in FOREIGN:
            convert(tmp_path / "own", tmp_path / to, to)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert len(files) == 2 + 1 + 2 + 3


def test_the_remedy_of_a_refusal_is_one(tmp_path: Path) -> None:
    """Each format that a refusal names holds the model, and no other does."""
    encoder = EncoderConfig(image_size=(32, 32), patch_size=8, width=32, depth=2, num_heads=4)
    models: list[nn.Module] = [tiny(), tiny("mean"), LinearProbe(BeitEncoder(encoder), 5, 1, "mean"), dvae()]
    deep = BeitEncoder(replace(encoder, patch_size=16, depth=4))
    models.append(SemanticSegmenter(deep, 5, decoder="upernet", layers=(0, 1, 2, 3), channels=32))
    models.append(SemanticSegmenter(deep, 5, decoder="pup", layers=(3,), channels=32))
    models.append(MaskedImageModel(BeitEncoder(encoder), 5, encoder_sees="visible", num_masked=12))
    for number, model in enumerate(models):
        save_model(model, tmp_path / f"{number}", provenance={})
        held = set()
        for to in get_args(Target):
            try:
                convert(tmp_path / f"{number}", tmp_path / f"{number}-{to}", to)
                held.add(to)
            except UserError as error:
                assert str(error).endswith(f"choose --to {' or '.join(holders(model))}")
        assert held == {*holders(model)}


def test_statements_about_our_own_models_are_refused_everywhere(tmp_path: Path) -> None:
    save_model(tiny("mean"), tmp_path / "own", provenance={})
    reference = f"{tmp_path / 'own'}@num_heads=4"
    for read in (load_model, describe, lambda path: convert(path, tmp_path / "x", "unilm")):
        with pytest.raises(UserError, match="tells its architecture itself; drop num_heads"):
            read(reference)
    with pytest.raises(UserError, match="drop layers"):
        load_model(f"{tmp_path / 'own'}@layers=0:1:2:3")
    assert run("info", reference) == 2
