"""`beit finetune` end to end on a CPU, from every kind of start, and what it says and refuses."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import as_two_ranks
from run_results import log, metrics, same_weights, stopped_in_step, weights
from tiny_runs import finetune_config, pretrain_config

import beit
from beit.checkpoints.own import read_description
from beit.checkpoints.store import save_model
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.files import overlaid
from beit.config.finetune import FinetuneConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.training.optim import parameter_groups

pytestmark = pytest.mark.slow

COLORS = {"blue": (40, 60, 220), "green": (60, 200, 80), "red": (220, 40, 40)}


def plant(root: Path, names: dict[str, str], each: int = 16, split: str = "") -> Path:
    """A folder of `each` noisy images for every class in `names`, of the colour it stands for."""
    rng = np.random.default_rng(len(split))
    for name, color in names.items():
        (root / split / name).mkdir(parents=True)
        for index in range(each):
            pixels = np.array(COLORS[color]) + rng.normal(0, 25, (36, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = plant(tmp_path_factory.mktemp("colors"), {name: name for name in COLORS}, split="train")
    return plant(root, {name: name for name in COLORS}, each=6, split="val")


@pytest.fixture(scope="module")
def pretrained(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    pretrain(pretrain_config(colors, run, target="pixels", steps=2))
    return run


@pytest.fixture(scope="module")
def classifier(colors: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough steps to tell three colours apart."""
    run = tmp_path_factory.mktemp("runs") / "classifier"
    plain = {
        "mixup": 0,
        "cutmix": 0,
        "randaugment": 0,
        "erasing": 0,
        "eval_images": 100,
        "lr_scaling": "none",
    }
    finetune(finetune_config(colors, run, init=str(pretrained), steps=30, lr=1e-2, **plain))
    return run


def test_a_run_learns_and_leaves_what_it_promises(classifier: Path, pretrained: Path) -> None:
    last = metrics(classifier)[-1]
    assert last["eval/top1"] > 0.9 and "eval/top5" not in last and last["eval/loss"] < 1
    assert {"top1", "loss", "lr", "grad_norm"} <= metrics(classifier)[1].keys()
    results = json.loads((classifier / "results.json").read_text())
    assert results["best"]["monitor"] == "eval/top1" and results["best"]["eval/top1"] >= last["eval/top1"]
    said = read_description(classifier)
    assert said["kind"] == "classifier" and said["classes"] == ["blue", "green", "red"]
    assert said["image_size"] == [32, 32] and said["multilabel"] is False
    assert (said["interpolation"], said["crop_pct"]) == ("bicubic", 1.0)
    assert said["architecture"]["bias"] == "block"
    model = beit.load_model(classifier)
    colours = torch.tensor([COLORS[name] for name in said["classes"]], dtype=torch.uint8)
    assert model(colours[:, :, None, None].expand(-1, -1, 32, 32)).argmax(1).tolist() == [0, 1, 2]
    assert list((classifier / "samples").glob("step-000030-predictions.*"))
    text = log(classifier)
    assert f"from {pretrained} (pretrained): 2 blocks of width 16" in text
    assert "the shared position bias copied into 2 blocks" in text
    assert "new norm and head for 3 classes, on the mean of the patches" in text


def test_the_first_step_starts_from_the_pretrained_encoder(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    start = weights(pretrained)
    table = start["encoder.rel_pos_bias.relative_position_bias_table"]
    run = tmp_path / "run"
    finetune(finetune_config(colors, run, init=str(pretrained), steps=1, lr=1e-12))
    now = weights(run)
    for layer in range(2):
        torch.testing.assert_close(now[f"encoder.blocks.{layer}.attn.relative_position_bias_table"], table)
    shared = {name for name in start if name.startswith("encoder.") and "rel_pos" not in name}
    assert shared == {n for n in now if n.startswith("encoder.") and "relative_position" not in n}
    assert all(torch.allclose(now[name], start[name], atol=1e-8) for name in shared)
    shared_run = tmp_path / "shared"
    finetune(finetune_config(colors, shared_run, init=str(pretrained), steps=1, position="shared_bias", pool="cls"))
    assert read_description(shared_run)["architecture"]["bias"] == "shared"
    assert "norm kept, new head for 3 classes, on the class token" in log(shared_run)


def test_frozen_layers_end_as_they_began(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    """And are left out of the averages, the optimiser and the estimate of memory; a restart freezes them again."""
    values = {"init": str(pretrained), "freeze": 1, "lr": 0.1, "weight_decay": 0.5, "ema_decay": 0.9}
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    finetune(finetune_config(colors, run, **values))
    with stopped_in_step(3):
        finetune(finetune_config(colors, stopped, **values))
    finetune(finetune_config(colors, stopped, **values))
    assert same_weights(run, stopped)

    start, now = weights(pretrained), weights(run)
    kept = {name for name in start.keys() & now.keys() if torch.equal(start[name], now[name])}
    layers = {name for name in start.keys() & now.keys() if name.startswith("encoder.")}
    assert kept == {name for name in layers if not name.startswith("encoder.blocks.1.")}
    learning = sum(now[name].numel() for name in now.keys() - kept if ".blocks.0." not in name)
    text = log(run)
    assert "patches, positions and 1 of 2 blocks are frozen" in text
    assert f"parameters, of which {learning:,} learn" in text
    assert "layers learn at 0.65 of the rate (block 1) to 1 (head)" in text


def test_two_ranks_teach_a_head_alone(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = finetune_config(colors, run, init=str(pretrained), freeze="all", position="shared_bias", lr=0.1)
    as_two_ranks(finetune, config)
    start, now = weights(pretrained), weights(run)
    assert all(torch.equal(now[name], start[name]) for name in now if name.startswith("encoder."))
    assert now["head.weight"].abs().max() > 0.01
    assert "the head alone learns, at the full rate" in log(run)


def test_what_cannot_be_frozen_is_refused(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--freeze 2 keeps what --init brings"):
        finetune_config(colors, tmp_path, freeze=2)
    with pytest.raises(UserError, match=r"--freeze 3 of the 2 blocks of .*; choose 0 to 2, or all"):
        finetune(finetune_config(colors, tmp_path / "run", init=str(pretrained), freeze=3))


def test_another_size_resizes_positions_and_says_so(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(finetune_config(colors, run, init=str(pretrained), image_size=48, steps=1, drop_path_rate=0.2))
    assert read_description(run)["image_size"] == [48, 48] and read_description(run)["crop_pct"] == 0.875
    assert "shared_bias positions resized from 4x4 to 6x6 patches" in log(run)
    assert "drop path rate 0.2 instead of 0.1" in log(run)
    oblong = tmp_path / "oblong"
    finetune(finetune_config(colors, oblong, init=str(pretrained), image_size=(24, 40), steps=1))
    assert read_description(oblong)["image_size"] == [24, 40]
    assert "resized from 4x4 to 3x5 patches" in log(oblong)


def test_other_classes_replace_the_head_and_the_same_keep_it(
    colors: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, same = tmp_path / "other", tmp_path / "same"
    two = plant(tmp_path / "two", {"cold": "blue", "warm": "red"})
    finetune(finetune_config(two, other, init=str(classifier), steps=1, lr=1e-12))
    assert "head for 3 other classes replaced by a new one for 2" in log(other)
    before, after = weights(classifier), weights(other)
    kept = [name for name in before if not name.startswith("head.")]
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in kept)
    assert after["head.weight"].shape == (2, 16) and after["head.weight"].abs().max() < 1e-3
    finetune(finetune_config(colors, same, init=str(classifier), image_size=48, steps=1, lr=1e-12))
    assert "head kept: the same 3 classes" in log(same)
    assert torch.allclose(weights(same)["head.weight"], before["head.weight"], atol=1e-8)


def test_a_larger_image_keeps_the_whole_classifier(colors: Path, classifier: Path, tmp_path: Path) -> None:
    """The paper's last step, 224 to 384 px (section 3.1): all but the position tables starts as it was, and the class
    token stays what is classified where it was."""
    from_cls, larger, again = (tmp_path / name for name in ("cls", "larger", "again"))
    finetune(finetune_config(colors, from_cls, pool="cls", steps=2))
    still = {"steps": 1, "lr": 1e-12, "image_size": 64}
    for init, run in ((classifier, larger), (from_cls, again)):
        finetune(finetune_config(colors, run, init=str(init), **still))
        assert "head kept: the same 3 classes" in log(run)
        assert "block_bias positions resized from 4x4 to 8x8 patches" in log(run)
        before, after = weights(init), weights(run)
        assert before.keys() == after.keys()
        for name in before:
            if "relative_position" not in name:
                assert torch.allclose(before[name], after[name], atol=1e-8), name
    assert read_description(again)["pool"] == "cls" and read_description(larger)["pool"] == "mean"


def test_a_head_of_another_library_is_kept_by_its_names(colors: Path, classifier: Path, tmp_path: Path) -> None:
    """Hugging Face's files name their classes, in an order of their own."""
    model, order = beit.load_model(classifier), [2, 0, 1]
    assert isinstance(model, ImageClassifier)
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
    save_model(model, tmp_path / "own", provenance={}, classes=[sorted(COLORS)[row] for row in order])
    beit.checkpoints.convert(tmp_path / "own", tmp_path / "theirs", to="huggingface")
    run = tmp_path / "run"
    finetune(finetune_config(colors, run, init=str(tmp_path / "theirs"), steps=1, lr=1e-12))
    assert "head kept: the same 3 classes" in log(run)
    for name in ("head.weight", "head.bias"):
        assert torch.allclose(weights(run)[name], weights(classifier)[name], atol=1e-8)


def test_one_way_to_few_labels_silences_the_other_of_a_lower_layer() -> None:
    assert overlaid([{"labels_per_class": 5}, {"label_share": 0.1}]) == {"labels_per_class": None, "label_share": 0.1}


@pytest.mark.parametrize("init", ["run", "run/", "./run/model", "run/model/model.safetensors"])
def test_a_run_does_not_start_from_itself(init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --overwrite it would delete what it starts from."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out is the run of --init"):
        FinetuneConfig(data="x", out="run", init=init)
    FinetuneConfig(data="x", out="run", init="run-2/model")


def test_from_scratch_with_few_labels(colors: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(finetune_config(colors, run, labels_per_class=2, pool="cls", layer_scale_init=0.0))
    assert "6 chosen of 48 images" in log(run) and "from scratch: 2 blocks of width 16" in log(run)
    assert "every layer learns at the full rate" in log(run)
    assert not any("gamma" in name for name in weights(run))
    share = tmp_path / "share"
    finetune(finetune_config(colors, share, label_share=0.25, steps=1, dropout=0.1), dry_run=True)
    assert not share.exists()


def test_several_labels_for_each_image(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    lines = []
    for split in ("train", "val"):
        for path in sorted((colors / split).rglob("*.png")):
            classes = {"blue": "cold", "green": "cold;warm", "red": "warm"}[path.parent.name]
            lines.append(f"{path.relative_to(colors)},{classes}")
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(lines))
    run = tmp_path / "run"
    plain = {
        "mixup": 0,
        "cutmix": 0,
        "randaugment": 0,
        "erasing": 0,
        "eval_images": 100,
        "lr_scaling": "none",
    }
    wanted = {"labels": str(file), "multilabel": True, "init": str(pretrained), "steps": 40, "lr": 1e-2}
    finetune(finetune_config(colors, run, **wanted, **plain))
    said = read_description(run)
    assert said["classes"] == ["cold", "warm"] and said["multilabel"] is True
    assert metrics(run)[-1]["eval/f1"] > 0.8
    assert json.loads((run / "results.json").read_text())["best"]["monitor"] == "eval/f1"
    logits = beit.load_model(run)(
        torch.tensor(COLORS["green"], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 32, 32)
    )
    assert (logits > 0).all()


def test_a_stopped_run_continues_to_the_same_weights(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    values = {
        "init": str(pretrained),
        "save_every": "1",
        "ema_decay": 0.9,
        "drop_path_rate": 0.5,
        "accumulate": 2,
    }
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finetune(finetune_config(colors, whole, **values))
    with stopped_in_step(3):
        finetune(finetune_config(colors, stopped, **values))
    finetune(finetune_config(colors, stopped, **{**values, "workers": 1}))
    assert same_weights(whole, stopped)
    assert [line.get("loss") for line in metrics(whole)] == [line.get("loss") for line in metrics(stopped)]


def test_a_run_goes_on_without_the_weights_it_started_from_but_not_with_another_network(
    colors: Path, pretrained: Path, tmp_path: Path
) -> None:
    init, run = tmp_path / "init", tmp_path / "run"
    shutil.copytree(pretrained, init)
    config = finetune_config(colors, run, init=str(init), save_every="1")
    with stopped_in_step(3):
        finetune(config)
    model = beit.load_model(init)
    wider = MaskedImageModel(BeitEncoder(replace(model.encoder.config, width=32)), model.vocab_size)  # type: ignore[arg-type]
    save_model(wider, init / "model", provenance={})
    with pytest.raises(UserError, match=r"began with other encoder \(2 blocks of width 16.*, now .* width 32"):
        finetune(config)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)  # type: ignore[operator, union-attr]
    save_model(model, init / "model", provenance={})
    finetune(config)
    whole = tmp_path / "whole"
    finetune(finetune_config(colors, whole, init=str(pretrained), save_every="1"))
    assert same_weights(run, whole)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"width": 32}, r"--width 32 contradicts --init .* whose network has width 16; drop --width"),
        ({"position": "absolute"}, "--position absolute contradicts --init"),
        ({"layer_scale_init": 0.0}, "--layer-scale-init 0.0 contradicts --init"),
        ({"normalization": "imagenet"}, "--normalization imagenet contradicts --init"),
        ({"image_size": 36}, "--image-size 36x36 is not a multiple"),
    ],
)
def test_knobs_that_contradict_the_start_are_refused(
    values: dict[str, Any], expected: str, colors: Path, pretrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        finetune(finetune_config(colors, tmp_path / "run", init=str(pretrained), **values))
    assert not (tmp_path / "run").exists()


def test_knobs_that_agree_with_the_start_are_not(colors: Path, pretrained: Path, tmp_path: Path) -> None:
    agreeing = {"width": 16, "depth": 2, "patch_size": 8, "position": "block_bias", "normalization": "half"}
    config = finetune_config(colors, tmp_path / "run", init=str(pretrained), layer_scale_init=0.1, **agreeing)
    finetune(config, dry_run=True)


def test_data_without_enough_classes_is_refused(images: Path, colors: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no class folders; put the images of each class in a folder"):
        finetune(finetune_config(images, tmp_path / "run"))
    one = plant(tmp_path / "one", {"red": "red"})
    with pytest.raises(UserError, match=r"one class only \('red'\)"):
        finetune(finetune_config(one, tmp_path / "run"))
    unknown = plant(plant(tmp_path / "more", {"a": "red", "b": "blue"}, split="train"), {"c": "red"}, split="val")
    with pytest.raises(UserError, match="unknown to the training split: 'c'"):
        finetune(finetune_config(unknown, tmp_path / "run"))
    with pytest.raises(UserError, match=r"nowhere.* does not exist"):
        finetune(finetune_config(colors, tmp_path / "run", init=str(tmp_path / "nowhere")))


def test_a_start_that_saw_visible_patches_gives_its_encoder(images: Path, colors: Path, tmp_path: Path) -> None:
    visible = {"encoder_sees": "visible", "target": "pixels", "position": "sincos", "bias": "shared"}
    pretrain(pretrain_config(images, tmp_path / "start", **visible, steps=1))
    run = tmp_path / "run"
    finetune(finetune_config(colors, run, init=str(tmp_path / "start"), steps=1, pool="cls"))
    said = read_description(run)["architecture"]
    assert (said["position"], said["bias"]) == ("sincos", "block")
    assert "norm kept, new head for 3 classes, on the class token" in log(run)


@pytest.mark.parametrize("position", ["block_bias", "shared_bias", "absolute"])
def test_layer_decay_and_weight_decay_of_beit_base(position: Any) -> None:
    """The released rule: scale 0.65 ** (13 - id), with id 0 for the patches and 13 for the head and a shared bias."""
    with torch.device("meta"):
        model = ImageClassifier(BeitEncoder(EncoderConfig(position=position)), 1000)
    if position == "block_bias":
        assert sum(parameter.numel() for parameter in model.parameters()) == 86_530_984
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.65, layer_groups=model.layer_groups())
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        parts = name.removeprefix("encoder.").split(".")
        layer = 0 if parts[0] in ("cls_token", "pos_embed", "patch_embed") else 13
        layer = int(parts[1]) + 1 if parts[0] == "blocks" else layer
        group = group_of[id(parameter)]
        assert math.isclose(group["lr_scale"], 0.65 ** (13 - layer), rel_tol=1e-12), name
        spared = parameter.dim() == 1 or parts[-1] in ("bias", "pos_embed", "cls_token")
        assert group["weight_decay"] == (0.0 if spared else 0.05), name
    assert group_of[id(model.head.weight)]["lr_scale"] == 1
