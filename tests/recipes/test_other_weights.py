"""Weights of other libraries start, feed and run in the verbs, from the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from dall_e import Decoder, Encoder
from torch import nn

import beit
from beit.checkpoints import convert
from beit.checkpoints.adapt import expand_shared_bias
from beit.checkpoints.store import describe, save_model
from beit.cli.main import main
from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter

pytestmark = pytest.mark.slow

SHORT = [
    *(
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--lr-batch-size",
        "8",
        "--workers",
        "0",
        "--precision",
        "float32",
    ),
    *("--evaluations", "1", "--eval-images", "8"),
]


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as leave:
        main([str(argument) for argument in arguments])
    assert not leave.value.code, arguments


def encoder(**changes: Any) -> BeitEncoder:
    torch.manual_seed(0)
    small = {"image_size": (32, 32), "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
    return BeitEncoder(EncoderConfig(**{**small, **changes}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pretrained.pth without heads, pretrained-hf/, classifier-hf/, classifier.pth and dalle/, in foreign layouts."""
    folder = tmp_path_factory.mktemp("files")
    masked = MaskedImageModel(encoder(position="absolute"), 512)
    classifier = ImageClassifier(expand_shared_bias(encoder()), 3)
    nn.init.normal_(classifier.head.weight)
    save_model(masked, folder / "a", provenance={})
    save_model(classifier, folder / "b", provenance={}, classes=("blue", "green", "red"))
    convert(folder / "a", folder / "pretrained.pth", "unilm")
    convert(folder / "a", folder / "pretrained-hf", "huggingface")
    convert(folder / "b", folder / "classifier-hf", "huggingface")
    convert(folder / "b", folder / "classifier.pth", "unilm")
    (folder / "dalle").mkdir()
    sizes = {"n_hid": 64, "n_blk_per_group": 1, "vocab_size": 512}
    for name, half in {"encoder": Encoder(**sizes), "decoder": Decoder(n_init=8, **sizes)}.items():
        for parameter in half.parameters():
            nn.init.normal_(parameter, std=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older container keeps the source code, where it finds it
            torch.save(half, folder / "dalle" / f"{name}.pkl", _use_new_zipfile_serialization=False)
    return folder


def test_a_pretrained_file_starts_finetuning_and_probing(
    files: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = f"{files / 'pretrained.pth'}@num_heads=2,pixel_mean=imagenet"
    options = ["--data", colours, "--init", init, *SHORT, "--warmup-epochs", "0"]
    run("finetune", *options, "--out", tmp_path / "finetune", "--image-size", "48")
    assert "absolute positions resized from 4x4 to 6x6" in capsys.readouterr().out
    model: Any = beit.load_model(tmp_path / "finetune")
    assert (model.encoder.config.num_heads, model.encoder.grid) == (2, (6, 6))
    assert model.encoder.config.pixel_mean == (0.485, 0.456, 0.406)
    run("probe", *options, "--out", tmp_path / "probe", "--knn", "3")
    assert describe(tmp_path / "probe")["kind"] == "probe"
    # Continued from its own file, without a word about heads.
    run("finetune", "--config", tmp_path / "finetune" / "config.yaml")


def test_a_classifier_of_others_is_judged_labels_and_is_tuned_further(
    files: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {}
    for name in ("b", "classifier-hf", "classifier.pth"):
        out = tmp_path / f"{name}.json"
        run("evaluate", "--model", files / name, "--data", colours, "--workers", 0, "--out", out)
        figures[name] = {key: value for key, value in json.loads(out.read_text()).items() if key != "model"}
    assert [one["top1"] for one in figures.values()] == pytest.approx([figures["b"]["top1"]] * 3)
    image = colours / "val" / "red" / "00.png"
    capsys.readouterr()
    run("predict", "--model", files / "classifier-hf", "--workers", 0, image)
    assert capsys.readouterr().out.split("\t")[1].split()[0] in ("blue", "green", "red")
    options = ["--data", colours, "--init", files / "classifier-hf", *SHORT, "--warmup-epochs", 0]
    run("finetune", *options, "--out", tmp_path / "tuned")
    assert "head kept: the same 3 classes" in capsys.readouterr().out


def test_a_pretrained_file_starts_segmentation(files: Path, regions: Path, tmp_path: Path) -> None:
    init = [
        "--init",
        f"{files / 'pretrained.pth'}@num_heads=2",
        "--layers",
        *"0011",
        "--channels",
        8,
        "--crop",
        32,
    ]
    run("segment", "--data", regions, *init, *SHORT, "--warmup-steps", 0, "--out", tmp_path / "segment")
    model: Any = beit.load_model(tmp_path / "segment")
    assert (model.encoder.config.num_heads, model.encoder.config.position) == (2, "absolute")


def test_a_segmenter_of_others_is_judged_and_paints(files: Path, regions: Path, tmp_path: Path) -> None:
    small = encoder(patch_size=16, width=32, depth=4, position="block_bias")
    model = SemanticSegmenter(small, 3, decoder="upernet", layers=(0, 1, 2, 3), channels=32)
    description = {
        "resize": 32,
        "crop": [32, 32],
        "stride": [21, 21],
        "reduce_zero_label": True,
        "ignore_value": 255,
    }
    save_model(model, tmp_path / "own", provenance={}, classes=("red", "green", "blue"), extra=description)
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    figures, maps = [], []
    for name in ("own", "hf"):
        out = tmp_path / f"{name}.json"
        run("evaluate", "--model", tmp_path / name, "--data", regions, "--workers", 0, "--out", out)
        figures.append({key: value for key, value in json.loads(out.read_text()).items() if key != "model"})
        image = regions / "images" / "validation" / "0.jpg"
        run("predict", "--model", tmp_path / name, "--workers", 0, "--out", tmp_path / f"{name}-maps", image)
        maps.append([file.read_bytes() for file in sorted((tmp_path / f"{name}-maps").rglob("*.png"))])
    assert figures[0] == figures[1]
    assert maps[0]


def test_a_released_tokenizer_feeds_pretraining(files: Path, images: Path, tmp_path: Path) -> None:
    """What is stated of it stands in config.yaml, where evaluation finds it again."""
    out = tmp_path / "pretrain"
    sizes = ["--image-size", 32, "--patch-size", 8, "--width", 16, "--depth", 1, "--num-heads", 2]
    tokenizer = f"{files / 'dalle'}@grid=4x4"
    run("pretrain", "--data", images, "--tokenizer", tokenizer, "--out", out, *sizes, *SHORT, "--holdout", 0.2)
    assert describe(out)["vocab_size"] == 512
    run("evaluate", "--model", out, "--data", images, "--holdout", 0.2, "--workers", 0, "--batch-size", 8)
    for name in ("pretrained-hf", "pretrained.pth@num_heads=2"):
        arguments = ["--model", files / name, "--tokenizer", tokenizer, "--data", images]
        run("evaluate", *arguments, "--holdout", 0.2, "--workers", 0, "--batch-size", 8)
    run("predict", "--model", files / "dalle", "--workers", 0, "--out", tmp_path / "t.npz", images / "00.jpg")
    run("info", f"{files / 'pretrained.pth'}@num_heads=2")
