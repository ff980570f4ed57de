"""Every kind of tokenizer is made, saved, identified, judged and used in pre-training by the same commands."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import pretrain_config, tokenizer_config

import beit
import beit.recipes.tokenizer.run as recipe
from beit import presets
from beit.checkpoints.conversion import convert
from beit.checkpoints.store import describe, weights_sha256
from beit.cli.flags import parse
from beit.config.errors import Interrupted, UserError
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import EvaluateConfig, PredictConfig
from beit.recipes.evaluate.run import evaluate
from beit.recipes.predict.run import predict
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer.run import tokenizer
from beit.tokenizers import kmeans

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "kmeans": {"pixel_norm": "patch"},
    "fsq": {"vocab_size": 25},
    "features": {"image_size": 32},
}


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


@pytest.fixture(scope="module")
def made(colours: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of each kind, made once: images of three classes."""
    runs: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in runs:
            runs[kind] = tmp_path_factory.mktemp("runs") / kind
            values = KINDS[kind] | ({"teacher": str(pretrained)} if kind == "features" else {})
            tokenizer(tokenizer_config(colours, runs[kind], kind=kind, **values))
        return runs[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_saved_judged_and_used(
    kind: str, made: Any, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(kind)
    assert describe(run)["tokenizer_kind"] == kind
    assert describe(run)["kind"] == "tokenizer"
    results, model = read(run, "results.json"), beit.load_tokenizer(run)
    assert (run / "model-best").exists() == (kind in ("dvae", "fsq"))  # a codebook is judged once
    assert describe(run)["weights_sha256"] == weights_sha256(model)
    assert results["steps"] == (4 if kind == "fsq" else 0)
    assert list((run / "samples").glob("*.webp"))
    log = (run / "log.txt").read_text()
    following = f"next: beit pretrain --data {colours} --tokenizer {run} --out {run.parent / 'pretrain'}\n"
    collapsed = kind == "fsq"  # in four steps
    assert (following in log, "to mend first: --overwrite with --kind kmeans" in log) == (
        not collapsed,
        collapsed,
    )
    assert ("--teacher" in log and " was trained on " in log) == (kind == "features")

    figures = evaluate(
        EvaluateConfig(model=str(run), data=str(colours), holdout=0.2, workers=0, precision="float32")
    ).results
    names = {"reconstruction_mae", "codes_used", "copy_neighbour_loss", "class_agreement"}
    assert names <= figures.keys()
    assert {f"eval/{name}" for name in names} <= results["last"].keys()
    assert "kl" not in figures  # of no distribution

    grid = 4 if kind != "features" else 32 // 8
    predict(PredictConfig(images=(str(colours),), model=str(run), out=str(tmp_path / "tokens.jsonl"), workers=0))
    row = json.loads((tmp_path / "tokens.jsonl").read_text().splitlines()[0])
    assert torch.tensor(row["tokens"]).shape == (grid, grid)

    out = tmp_path / "pretrain"
    pretrain(pretrain_config(colours, out, tokenizer=str(run)))
    assert read(out, "model/model.json")["tokenizer"] == weights_sha256(model)
    with pytest.raises(UserError, match=r"a discrete VAE's: it cannot hold a .*; choose --to beit"):
        convert(run, tmp_path / "dalle", "dalle")
    convert(run, tmp_path / "copy", "beit")
    assert weights_sha256(beit.load_tokenizer(tmp_path / "copy")) == weights_sha256(model)


def test_classes_in_a_file_are_agreed_with_like_folders(colours: Path, tmp_path: Path) -> None:
    files = {f"{file.parent.name}-{file.name}": file for file in sorted(colours.rglob("*.png"))}
    (tmp_path / "flat").mkdir()
    for name, file in files.items():
        shutil.copy(file, tmp_path / "flat" / name)
    rows = [f"{name},{file.parent.name}" for name, file in files.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["image,class", *rows]) + "\n")
    values = {"kind": "kmeans", "labels": str(tmp_path / "labels.csv")}
    tokenizer(tokenizer_config(tmp_path / "flat", tmp_path / "run", **values))
    assert read(tmp_path / "run", "results.json")["last"]["eval/class_agreement"] == 1
    config = EvaluateConfig(
        model=str(tmp_path / "run"),
        data=str(tmp_path / "flat"),
        labels=values["labels"],
        holdout=0.2,
        workers=0,
    )
    assert evaluate(config).results["class_agreement"] == 1


def test_features_belong_to_their_teacher(made: Any, pretrained: Path, colours: Path, tmp_path: Path) -> None:
    """Its weights are in the model; a run with another teacher is refused; the encoder of a first round teaches the
    second."""
    model, encoder = beit.load_tokenizer(made("features")), beit.load_encoder(pretrained)
    weights = model.state_dict()
    assert all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in encoder.state_dict().items())
    assert describe(made("features"))["layer"] == 1  # of two
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(pretrained / "model", teacher)
    config = tokenizer_config(colours, run, kind="features", image_size=32, teacher=str(teacher))
    tokenizer(config)
    first = weights_sha256(beit.load_tokenizer(run))
    pretrain(pretrain_config(colours, tmp_path / "round", tokenizer=str(run), seed=1))
    shutil.rmtree(teacher)
    shutil.copytree(tmp_path / "round" / "model", teacher)
    status = read(run, "status.json") | {"state": "interrupted"}
    (run / "status.json").write_text(json.dumps(status))
    with pytest.raises(UserError, match="began with other teacher"):
        tokenizer(config)
    tokenizer(config, overwrite=True)
    assert weights_sha256(beit.load_tokenizer(run)) != first


@pytest.mark.parametrize("place", ["sample", "kmeans", "measure"])
def test_a_codebook_that_was_stopped_is_made_again_to_the_bit(
    place: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    tokenizer(tokenizer_config(colours, whole, kind="kmeans"))
    module, name = {
        "sample": (recipe, "cut_patches"),
        "kmeans": (kmeans, "first_centers"),
        "measure": (kmeans, "means_of"),
    }[place]
    work = getattr(module, name)

    def interrupted(*values: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return work(*values, **named)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(module, name, interrupted)
        tokenizer(tokenizer_config(colours, run, kind="kmeans"))
    assert read(run, "status.json")["state"] == "interrupted"
    tokenizer(tokenizer_config(colours, run, kind="kmeans"))
    assert (run / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    last = [read(path, "results.json")["last"] for path in (whole, run)]
    assert last[0] == last[1]
    tokenizer(tokenizer_config(colours, run, kind="kmeans"))  # finished: nothing to do


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind kmeans --lr 0.1", "--kind kmeans has no use for --lr; drop it"),
        ("--kind features --teacher x --stride 4", "--kind features has no use for --stride; drop it"),
        ("--kind fsq --vocab-size 240 --kl-weight 1", "--kind fsq has no use for --kl-weight; drop it"),
        ("--kind dvae --pixel-norm patch", "--kind dvae has no use for --pixel-norm; drop it"),
        ("--kind features", "--kind features needs --teacher"),
        ("--kind plain", "--kind plain goes on from a tokenizer of its kind; give it as --init"),
        ("--kind plain --init x --kl-weight 1", "--kind plain has no use for --kl-weight; drop it"),
    ],
)
def test_flags_that_a_kind_has_no_use_for_are_refused(words: str, message: str) -> None:
    base = ["--data", "demo", "--out", "run"]
    with pytest.raises(UserError, match=re.escape(message)):
        parse(TokenizerConfig, "beit tokenizer", [*base, *words.split()])


def test_what_a_preset_says_for_other_kinds_is_not_typed() -> None:
    base = ["--data", "demo", "--out", "run", "--preset", "tiny", "--kind"]
    assert parse(TokenizerConfig, "beit tokenizer", [*base, "kmeans"])[0].vocab_size == 512
    assert presets.configure(TokenizerConfig, "tiny", data="demo", out="run", kind="kmeans").kind == "kmeans"
    with pytest.raises(UserError, match="has no use for --steps"):
        presets.configure(TokenizerConfig, "tiny", data="demo", out="run", kind="kmeans", steps=3)
