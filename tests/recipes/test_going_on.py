"""`--init` of `beit pretrain` and `beit tokenizer`: what is taken over, what is new, and that nothing is lost."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import timm
import torch
from dall_e import Decoder, Encoder
from run_results import log, metrics, same_weights, stopped_in_step, weights
from tiny_runs import (
    SHORT,
    finetune_config,
    going_on,
    pretrain_config,
    probe_config,
    segment_config,
    tokenizer_config,
)

import beit
from beit.checkpoints.adapt import change_channels
from beit.checkpoints.conversion import convert
from beit.checkpoints.own import save_model
from beit.cli.flags import parse
from beit.config.architecture import DiscreteVAEConfig
from beit.config.errors import UserError
from beit.config.pretrain import PretrainConfig
from beit.config.tokenizer import TokenizerConfig
from beit.models.heads import MaskedImageModel
from beit.presets import Facts, resolve
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.segment import segment
from beit.recipes.tokenizer.run import tokenizer
from beit.tokenizers.dvae import DiscreteVAE

pytestmark = pytest.mark.slow


def started(images: Path, out: Path, init: Path | str, **values: Any) -> str:
    """What a run says that goes on from `init`."""
    pretrain(going_on(images, out, init, **values))
    return log(out)


def last(run: Path, figure: str) -> float:
    value: float = json.loads((run / "results.json").read_text())["last"][figure]
    return value


def first(run: Path, figure: str) -> float:
    record = metrics(run)[0]
    assert record["step"] == 0
    value: float = record[figure]
    return value


@pytest.mark.parametrize("sees", ["all", "visible"])
def test_with_the_same_tokenizer_pretraining_goes_on_where_it_stood(
    sees: str, images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    visible = {"encoder_sees": "visible", "decoder_depth": 2, "decoder_width": 32} if sees == "visible" else {}
    given = {"tokenizer": str(trained_tokenizer), "eval_images": 100, "normalization": "imagenet"}
    pretrain(pretrain_config(images, tmp_path / "before", **given, **visible))
    said = started(images, tmp_path / "after", tmp_path / "before", **given)
    assert "norm, mask token and head kept" in said and "Since --init the loss on held-back images" in said
    # Of the same images, masks and weights; a head or a mask token that was lost would show.
    for figure in ("eval/loss", "eval/token_accuracy"):
        assert first(tmp_path / "after", figure) == pytest.approx(last(tmp_path / "before", figure), rel=1e-5)
    before, after = (beit.load_model(tmp_path / run) for run in ("before", "after"))
    assert before.encoder.config == after.encoder.config
    assert not before.token_head.weight.equal(after.token_head.weight)  # it has learned


def test_the_first_loss_from_weights_alone_is_that_of_the_last_evaluation(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"tokenizer": str(trained_tokenizer), "min_crop": 1.0, "color_jitter": 0.0, "lr": 5e-3}
    pretrain(pretrain_config(images, tmp_path / "before", **given, eval_images=100, steps=150))
    evaluated, model = last(tmp_path / "before", "eval/loss"), beit.load_model(tmp_path / "before")

    def first_losses(start: Path) -> list[float]:
        """Of one step for each of eight seeds, which draw images and masks: before it changes the weights."""
        runs = [tmp_path / f"{start.name}-{seed}" for seed in range(8)]
        for seed, run in enumerate(runs):
            started(images, run, start, **given, steps=1, log_every=1, seed=seed, batch_size=16)
        return [next(line["loss"] for line in metrics(run) if "loss" in line) for run in runs]

    kept = first_losses(tmp_path / "before")
    error = stdev(kept) / math.sqrt(len(kept))
    assert abs(mean(kept) - evaluated) < 4 * error
    # A lost mask token shows less, and in the first evaluation, which is compared to 1e-5 above.
    model.token_head.weight.data.zero_()
    save_model(model, tmp_path / "lost", provenance={}, tokenizer_hash=model.description["tokenizer"])
    assert abs(mean(first_losses(tmp_path / "lost")) - evaluated) > 4 * error


def test_a_run_that_goes_on_is_killed_and_continued_as_any_other(
    images: Path, pretrained: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(pretrained, tmp_path / "start")
    given: dict[str, Any] = {"tokenizer": str(trained_tokenizer), "save_every": "1", "steps": 3}
    started(images, tmp_path / "whole", tmp_path / "start", **given)
    with stopped_in_step(3):
        started(images, tmp_path / "run", tmp_path / "start", **given)
    said = started(images, tmp_path / "run", tmp_path / "start", **given)
    assert "continuing after step 2" in said and same_weights(tmp_path / "whole", tmp_path / "run")
    records = [json.loads((tmp_path / run / "results.json").read_text())["first"] for run in ("whole", "run")]
    assert records[0] == records[1] and "eval/loss" in records[0]
    shutil.rmtree(tmp_path / "start")  # which a finished run does without
    started(images, tmp_path / "run", tmp_path / "start", **given)


def test_what_does_not_fit_is_new_and_said(
    images: Path, pretrained: Path, trained_tokenizer: Path, colours: Path, regions: Path, tmp_path: Path
) -> None:
    tokenizer(tokenizer_config(images, tmp_path / "other", seed=1))
    said = started(images, tmp_path / "a", pretrained, tokenizer=str(tmp_path / "other"))
    assert "norm and mask token kept, new head" in said
    given: dict[str, Any] = {"tokenizer": str(trained_tokenizer), "token_image_size": (16, 24)}
    said = started(images, tmp_path / "b", pretrained, image_size=(32, 48), **given)
    assert "shared_bias positions resized from 4x4 to 4x6 patches" in said and "head kept" in said
    said = started(images, tmp_path / "c", pretrained, target="pixels")
    assert "mask token kept, new head" in said
    finetune(finetune_config(colours, tmp_path / "classifier", init=str(pretrained)))
    segment(segment_config(regions, tmp_path / "segmenter", init=str(pretrained)))
    for run in ("classifier", "segmenter"):
        said = started(images, tmp_path / f"from-{run}", tmp_path / run, tokenizer=str(trained_tokenizer))
        assert "new mask token, head and norm" in said
        assert beit.load_encoder(tmp_path / f"from-{run}").config.bias == "block"


def test_an_encoder_goes_on_with_other_channels(pretrained: Path, tmp_path: Path) -> None:
    """What it says of images whose channels are all alike stays; data and model have the channels that are stated."""
    encoder = beit.load_encoder(pretrained)
    gray = torch.rand(2, 1, 32, 32)
    for channels in (1, 2, 5):
        changed = change_channels(encoder, channels)
        assert len(changed.config.pixel_mean) == channels
        torch.testing.assert_close(changed(gray.expand(-1, channels, -1, -1)), encoder(gray.expand(-1, 3, -1, -1)))
    rng = np.random.default_rng(0)
    for index in range(60):
        folder = tmp_path / "bands" / ("dark", "bright")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (40, 40, 5)) + 120 * (index % 2)
        np.save(folder / f"{index:02}.npy", pixels.astype(np.uint8))
    said = started(tmp_path / "bands", tmp_path / "run", pretrained, target="pixels", image_channels=5)
    assert "patches of 5 channels projected as those of 3, summed or in turn" in said
    assert beit.load_encoder(tmp_path / "run").config.channels == 5
    config = finetune_config(tmp_path / "bands", tmp_path / "labels", init=str(pretrained), image_channels=5)
    finetune(config)
    assert beit.load_model(tmp_path / "labels").encoder.config.channels == 5
    with pytest.raises(UserError, match="--image-channels 5: the model takes 3; drop it"):
        probe(probe_config(tmp_path / "bands", tmp_path / "no", pretrained, image_channels=5))


def test_layers_may_learn_the_slower_the_lower_they_are(
    images: Path, pretrained: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    given = {"tokenizer": str(trained_tokenizer), "layer_decay": 1e-6}
    started(images, tmp_path / "run", pretrained, **given)
    before, after = weights(pretrained), weights(tmp_path / "run")
    patches, head = "encoder.patch_embed.proj.weight", "token_head.weight"
    torch.testing.assert_close(after[patches], before[patches], rtol=0, atol=1e-8)
    assert float((after[head] - before[head]).abs().max()) > 1e-5


def test_a_released_file_goes_on_with_the_tokenizer_of_its_kind(
    images: Path, pretrained: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = DiscreteVAE(DiscreteVAEConfig(vocab_size=512, width=64, blocks_per_group=1, image_size=(32, 32)))
    save_model(vae, tmp_path / "vae", provenance={})
    convert(tmp_path / "vae", tmp_path / "dalle", to="dalle")
    model = MaskedImageModel(beit.load_encoder(pretrained), 512)
    save_model(model, tmp_path / "model", provenance={})
    convert(tmp_path / "model", tmp_path / "beit.pth", to="unilm")
    given = {"tokenizer": f"{tmp_path}/dalle@grid=4x4", "lr": 1e-12}
    said = started(images, tmp_path / "run", f"{tmp_path}/beit.pth@num_heads=2", **given)
    assert "norm, mask token and head kept" in said
    loaded = beit.load_model(tmp_path / "run")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    # BEiT v2 has as many tokens, which another tokenizer made.
    contents = torch.load(tmp_path / "beit.pth")
    contents["model"] |= {"cls_pt_layers.0.gamma_1": torch.zeros(16)}
    torch.save(contents, tmp_path / "beit2.pth")
    said = started(images, tmp_path / "second", f"{tmp_path}/beit2.pth@num_heads=2", **given)
    assert "norm and mask token kept, new head" in said and "cls_pt_layers.0.gamma_1: left out" in said
    assert beit.load_encoder(tmp_path / "second").config.pixel_mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch_size": 16}, "--patch-size 16 contradicts --init"),
        ({"position": "absolute"}, "--position absolute contradicts --init"),
        ({"normalization": "imagenet"}, "--normalization imagenet contradicts --init"),
        (
            {"image_size": 64},
            "make it as many with --token-image-size 32 32, or change --image-size or, without",
        ),
        ({"init": "nowhere"}, "--init: nowhere does not exist"),
    ],
    ids=str,
)
def test_what_contradicts_the_start_is_refused(
    given: dict[str, Any],
    message: str,
    images: Path,
    pretrained: Path,
    trained_tokenizer: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=message):
        started(images, tmp_path / "run", **{"init": pretrained, "tokenizer": str(trained_tokenizer), **given})
    assert not (tmp_path / "run").exists()


def test_a_preset_takes_its_network_from_the_start() -> None:
    start = {"patch_size": 8, "width": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "position": "none"}
    network = {
        **start,
        "bias": "shared",
        "layer_scale_init": None,
        "image_size": (32, 32),
        "encoder_sees": "all",
    }
    config = PretrainConfig(data="x", out="y", tokenizer="t", init="i")
    resolved, choices = resolve(config, Facts(side=300, grid=(6, 6), network=network))
    assert {name: getattr(resolved, name) for name in start} == start and resolved.masking == "block"
    assert resolved.image_size == 48  # as many patches as there are tokens
    assert "the network of --init" in {choice.reason for choice in choices}
    # Sides and patches that the preset does not go with are no mistake yet: the start may.
    words = ["--data", "x", "--out", "y", "--tokenizer", "t", "--preset", "base", "--image-size", "518"]
    parsed, _ = parse(PretrainConfig, "beit pretrain", [*words, "--init", "i"])
    resolved, _ = resolve(parsed, Facts(network={**network, "patch_size": 14}))
    assert (resolved.image_size, resolved.patch_size) == (518, 14)
    with pytest.raises(UserError, match="--image-size 518x518 is not a multiple"):
        parse(PretrainConfig, "beit pretrain", words)
    named = PretrainConfig(data="x", out="y", tokenizer="t", init="i", preset="tiny")
    resolved, _ = resolve(named, Facts(network=network))
    assert (resolved.width, resolved.image_size, resolved.batch_size) == (48, (32, 32), 64)


def test_every_verb_starts_from_a_plain_vit(
    images: Path, trained_tokenizer: Path, colours: Path, regions: Path, tmp_path: Path
) -> None:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    theirs = timm.create_model("vit_tiny_patch16_224", **small, reg_tokens=2, init_values=0.1)
    torch.save({"model": theirs.state_dict()}, tmp_path / "dino.pth")
    source = f"{tmp_path}/dino.pth@num_heads=2"
    norm = theirs.state_dict()["norm.weight"]
    said = started(images, tmp_path / "pretrain", source, tokenizer=str(trained_tokenizer), lr=1e-9)
    assert "its final norm is kept" in said and "new mask token, head and norm, as far" in said
    torch.testing.assert_close(beit.load_model(tmp_path / "pretrain").norm.weight, norm)
    visible = {"encoder_sees": "visible", "decoder_width": 32, "tokenizer": str(trained_tokenizer)}
    started(images, tmp_path / "visible", source, **visible)
    finetune(finetune_config(colours, tmp_path / "finetune", init=source))
    segment(segment_config(regions, tmp_path / "segment", init=source))
    probe(probe_config(colours, tmp_path / "probe", Path(source), steps=2))
    for run in ("finetune", "probe"):
        assert beit.load_encoder(tmp_path / run).norm is not None
    for run in ("pretrain", "visible", "finetune", "segment", "probe"):
        assert beit.load_encoder(tmp_path / run).num_prefix_tokens == 3


@pytest.mark.parametrize("kind", ["dvae", "fsq"])
def test_a_tokenizer_goes_on_where_it_stood(kind: str, images: Path, tmp_path: Path) -> None:
    codes = {"vocab_size": 240 if kind == "fsq" else 16, "ema_decay": None, "eval_images": 100}
    tokenizer(tokenizer_config(images, tmp_path / "before", kind=kind, **codes))
    values = {**SHORT, "steps": 2, "eval_images": 100, "init": str(tmp_path / "before")}
    config = TokenizerConfig(data=str(images), out=str(tmp_path / "after"), **values)
    tokenizer(config)
    assert first(tmp_path / "after", "eval/reconstruction_mae") == pytest.approx(
        last(tmp_path / "before", "eval/reconstruction_mae"), rel=1e-5
    )
    assert f"({kind}), whose weights are all kept" in log(tmp_path / "after")
    with pytest.raises(UserError, match="--vocab-size 512 contradicts --init"):
        tokenizer(TokenizerConfig(**{**config.typed, "out": str(tmp_path / "no"), "vocab_size": 512, "kind": kind}))


def test_a_tokenizer_of_openai_goes_on(images: Path, tmp_path: Path) -> None:
    sizes, place = {"n_hid": 8, "n_blk_per_group": 1, "vocab_size": 16}, tmp_path / "openai"
    place.mkdir()
    for half, network in (("encoder", Encoder(**sizes)), ("decoder", Decoder(n_init=8, **sizes))):
        torch.save(network.state_dict(), place / f"{half}.pkl")
    values: dict[str, Any] = {
        **SHORT,
        "preset": "auto",
        "image_size": 32,
        "steps": 2,
        "min_lr": 0.0,
        "init": str(place),
    }
    for run, rate in (("still", 1e-12), ("moved", 1e-2)):
        tokenizer(TokenizerConfig(data=str(images), out=str(tmp_path / run), lr=rate, **values))
        assert "(dvae), whose weights are all kept" in log(tmp_path / run)
    start, moved = beit.load_tokenizer(place).state_dict(), weights(tmp_path / "moved")
    for name, tensor in weights(tmp_path / "still").items():
        torch.testing.assert_close(tensor, start[name], rtol=1e-5, atol=1e-8)
    assert all(moved[name].dtype == start[name].dtype for name in start)
    assert any(not moved[name].equal(start[name]) for name in start)
    errors = [first(tmp_path / run, "eval/reconstruction_mae") for run in ("still", "moved")]
    assert errors[0] == errors[1]  # both began as the files are


def dalle_pytorch(file: Path) -> None:
    """Its vae.pt: two strides, a residual block, 16 codes of width 8."""
    blocks = {
        f"{half}.{place}.net.{i}": (8, 8, 1 if i == 4 else 3)
        for half, place in (("encoder", 2), ("decoder", 1))
        for i in (0, 2, 4)
    }
    layers = {"encoder.0.0": (8, 3, 4), "encoder.1.0": (8, 8, 4), "encoder.3": (16, 8, 1), "decoder.0": (8, 8, 1)}
    layers |= {"decoder.2.0": (8, 8, 4), "decoder.3.0": (8, 8, 4), "decoder.4": (3, 8, 1), **blocks}
    weights = {f"{name}.weight": 0.3 * torch.randn(n_out, n_in, k, k) for name, (n_out, n_in, k) in layers.items()}
    weights |= {f"{name}.bias": torch.zeros(n_out) for name, (n_out, *_) in layers.items()}
    weights["codebook.weight"] = torch.randn(16, 8)
    torch.save({"hparams": {"image_size": 16, "num_layers": 2}, "weights": weights}, file)


def test_a_tokenizer_of_dalle_pytorch_goes_on(images: Path, tmp_path: Path) -> None:
    dalle_pytorch(tmp_path / "vae.pt")
    values = {
        **SHORT,
        "preset": "auto",
        "steps": 30,
        "evaluations": 1,
        "log_every": 1,
        "lr": 3e-3,
        "out": str(tmp_path / "a"),
    }
    config = TokenizerConfig(data=str(images), init=str(tmp_path / "vae.pt"), **values)
    with stopped_in_step(20):
        tokenizer(config)
    tokenizer(config)
    assert "(plain), whose weights are all kept" in log(tmp_path / "a")
    losses = [line["loss"] for line in metrics(tmp_path / "a") if "loss" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    figure = "eval/reconstruction_mae"
    assert last(tmp_path / "a", figure) < first(tmp_path / "a", figure)
    model = beit.load_tokenizer(tmp_path / "a")
    assert (model.kind, model.stride, model.image_size) == ("plain", 4, (16, 16))
    again = {**values, "out": str(tmp_path / "b"), "init": str(tmp_path / "a"), "steps": 2, "lr": 1e-9}
    tokenizer(TokenizerConfig(data=str(images), **again))  # from a run of ours
    assert first(tmp_path / "b", figure) == pytest.approx(last(tmp_path / "a", figure), rel=1e-5)
    with pytest.raises(UserError, match="--stride 8 contradicts --init"):
        tokenizer(TokenizerConfig(data=str(images), **{**again, "out": str(tmp_path / "c"), "stride": 8}))
