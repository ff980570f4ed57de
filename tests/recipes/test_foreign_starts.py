"""Start from anything: each source, saved by its own library, gives that library's outputs and starts every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from tiny_runs import finetune_config, going_on, probe_config, segment_config
from torch import Tensor, nn

import beit
from beit.checkpoints import convert
from beit.config.use import TrainConfig
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.segment import segment
from beit.recipes.train.run import train
from beit.stages import train as train_stage
from beit.training.plan import Pace

pytestmark = pytest.mark.slow


class Source(NamedTuple):
    """Where a model of another library lies, and what that library makes of normalised images."""

    path: Path | str
    tokens: Callable[[Tensor], Tensor]
    """(B, P + N, D), after the norm where `beit predict --features` reads it."""
    network: nn.Module
    logits: Callable[[Tensor], Tensor] | None = None
    """Of a classifier."""


@torch.no_grad()
def random(model: nn.Module) -> Any:
    """With weights that leave no part of the network at zero, of few digits: a register and its position, which are
    added in float32, have an exact sum."""
    for parameter in model.parameters():
        parameter.copy_((0.3 * torch.randn(parameter.shape) + 0.5 * (parameter.dim() == 1)).bfloat16())
    return model.eval()


# ------------------------------------------------------------------------------------------------------------
# Files, as each library writes them


def of_timm(folder: Path, name: str, bare: bool = False, **changes: Any) -> Source:
    """Saved by `save_for_hf`, or its state dict alone."""
    patch = changes.get("patch_size", 8)
    sizes = {"img_size": 4 * patch, "patch_size": patch, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    arguments = {**sizes, "num_classes": 3, **changes}
    network = random(timm.create_model(name, **arguments))
    save_for_hf(network, str(folder), model_args=arguments)
    path: Path | str = folder
    if bare:
        torch.save(network.state_dict(), folder / "weights.pth")
        path = f"{folder}/weights.pth@num_heads=2"
    classifies = arguments["num_classes"] > 0
    return Source(path, network.forward_features, network, network if classifies else None)


def of_transformers(folder: Path, name: str, shards: bool = False, **changes: Any) -> Source:
    """Saved by `save_pretrained`, in one file or, `shards`, in several beside an index."""
    family = name.partition("For")[0].removesuffix("Model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    inner = {"mlp_ratio": 2} if "Dinov2" in name else {"intermediate_size": 32}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **inner, "num_labels": 3, **changes})
    network = random(getattr(transformers, name)(config))
    network.save_pretrained(folder, **({"max_shard_size": "10kB"} if shards else {}))
    encoder = network if name.endswith("Model") else getattr(network, network.base_model_prefix)
    # MAE shuffles the patches by this noise; in this order they stay where they are.
    order = {"noise": torch.arange(16.0)} if "MAE" in name else {}

    def tokens(images: Tensor) -> Tensor:
        given = {key: x.expand(len(images), -1) for key, x in order.items()}
        states: Tensor = encoder(images, **given).last_hidden_state
        return states

    logits = (lambda images: network(images).logits) if "ImageClassification" in name else None
    return Source(folder, tokens, network, logits)


def index_of(folder: Path, name: str, **changes: Any) -> Source:
    source = of_transformers(folder, name, shards=True, **changes)
    return source._replace(path=folder / "model.safetensors.index.json")


def with_average(folder: Path, alone: bool) -> Source:
    """A training checkpoint with averaged weights beside others, which are zero; or with these alone."""
    source = of_timm(folder, "beit_base_patch16_224")
    average = source.network.state_dict()
    others = {name: torch.zeros_like(x) for name, x in average.items()}
    torch.save({"model_ema": average} if alone else {"model": others, "model_ema": average}, folder / "run.pth")
    return source._replace(path=f"{folder}/run.pth" if alone else f"{folder}/run.pth@weights=ema")


def of_mae(folder: Path) -> Source:
    """MAE's own file: fixed sine-cosine positions, and a decoder."""
    source = of_timm(folder, "vit_base_patch16_224", bare=True, num_classes=0)
    weights = source.network.state_dict()
    decoder = {"decoder_embed.weight": torch.zeros(8, 16), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    torch.save({"model": {**weights, **decoder}}, folder / "weights.pth")
    return source


def of_unilm(folder: Path, second: bool, **changes: Any) -> Source:
    """The released pre-training file, by the table of names; of BEiT v2 with the layers for its class token."""
    given = {
        "use_mask_token": True,
        "use_shared_relative_position_bias": True,
        "layer_norm_eps": 1e-6,
        "vocab_size": 16,
    }
    source = of_transformers(folder / "hf", "BeitForMaskedImageModeling", **{**given, **changes})
    convert(folder / "hf", folder / "released.pth", to="unilm")
    if second:
        contents = torch.load(folder / "released.pth")
        block = {k: x for k, x in contents["model"].items() if k.startswith("blocks.0.")}
        contents["model"] |= {k.replace("blocks", "cls_pt_layers"): torch.zeros_like(x) for k, x in block.items()}
        torch.save(contents, folder / "released.pth")
    return source._replace(path=f"{folder}/released.pth@num_heads=2")


BLOCK = {"use_relative_position_bias": True}
BOTH = {**BLOCK, "use_absolute_position_embeddings": True}
NO_CLASSES = {"num_classes": 0}
SOURCES: dict[str, Callable[[Path], Source]] = {
    "ViT, timm": lambda folder: of_timm(folder, "vit_tiny_patch16_224"),
    "ViT, transformers": lambda folder: of_transformers(folder, "ViTForImageClassification"),
    "DeiT, timm": lambda folder: of_timm(folder, "deit_tiny_patch16_224"),
    "DeiT III, timm": lambda folder: of_timm(folder, "deit3_small_patch16_224"),
    "DeiT III, .pth": lambda folder: of_timm(folder, "deit3_small_patch16_224", bare=True),
    "DeiT, transformers": lambda folder: of_transformers(folder, "DeiTForImageClassification"),
    "MAE, timm": lambda folder: of_timm(folder, "vit_base_patch16_224.mae", **NO_CLASSES),
    "MAE, .pth": of_mae,
    "MAE, transformers": lambda folder: of_transformers(folder, "ViTMAEForPreTraining", mask_ratio=0.0),
    "DINO, timm": lambda folder: of_timm(folder, "vit_small_patch16_224.dino", **NO_CLASSES),
    "DINO, .pth": lambda folder: of_timm(folder, "vit_small_patch16_224.dino", bare=True, **NO_CLASSES),
    "DINO, transformers": lambda folder: of_transformers(folder, "ViTModel"),
    "DINOv2, timm": lambda folder: of_timm(folder, "vit_small_patch14_dinov2", patch_size=14, **NO_CLASSES),
    "DINOv2, transformers": lambda folder: of_transformers(folder, "Dinov2Model"),
    "DINOv2 without biases, transformers": lambda folder: of_transformers(
        folder, "Dinov2ForImageClassification", qkv_bias=False
    ),
    "DINOv2 with registers, timm": lambda folder: of_timm(folder, "vit_small_patch14_reg4_dinov2", **NO_CLASSES),
    "DINOv2 with registers, .pth": lambda folder: of_timm(
        folder, "vit_small_patch14_reg4_dinov2", bare=True, **NO_CLASSES
    ),
    "DINOv2 with registers, transformers": lambda folder: of_transformers(
        folder, "Dinov2WithRegistersForImageClassification", num_register_tokens=2
    ),
    "BEiT pre-trained, released": lambda folder: of_unilm(folder, second=False),
    "BEiT pre-trained, transformers": lambda folder: of_unilm(folder, second=False)._replace(path=folder / "hf"),
    "BEiT, timm": lambda folder: of_timm(folder, "beit_base_patch16_224"),
    "BEiT, transformers": lambda folder: of_transformers(folder, "BeitForImageClassification", **BLOCK),
    "BEiT v2 pre-trained, released": lambda folder: of_unilm(folder, second=True),
    "BEiT v2, timm": lambda folder: of_timm(folder, "beitv2_base_patch16_224"),
    "both kinds of positions, timm": lambda folder: of_timm(folder, "beit_base_patch16_224", use_abs_pos_emb=True),
    "both kinds of positions, transformers": lambda folder: of_transformers(
        folder, "BeitForImageClassification", **BOTH
    ),
    "both kinds of positions, released": lambda folder: of_unilm(
        folder, second=False, use_absolute_position_embeddings=True
    ),
    "no query and value bias, timm": lambda folder: of_timm(folder, "beit_base_patch16_224", qkv_bias=False),
    "no query and value bias, .pth": lambda folder: of_timm(
        folder, "beit_base_patch16_224", bare=True, qkv_bias=False
    ),
    "averaged weights beside others": lambda folder: with_average(folder, alone=False),
    "averaged weights alone": lambda folder: with_average(folder, alone=True),
    "several files": lambda folder: of_transformers(folder, "BeitForImageClassification", shards=True, **BLOCK),
    "an index of files": lambda folder: index_of(folder, "BeitForImageClassification", **BLOCK),
}


# ------------------------------------------------------------------------------------------------------------
# What they give, and what starts from them


def assert_same(ours: Any, theirs: Tensor, within: float) -> None:
    assert theirs.abs().max() > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=0, atol=within)


def assert_equal_outputs(source: Source, data: Path, out: Path) -> None:
    """`beit predict --features` and a classifier's logits are the library's, in float64 and float32."""
    model: Any = beit.load_model(source.path)
    encoder = beit.load_encoder(source.path)
    size, prefix = encoder.config.image_size, encoder.num_prefix_tokens
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    for dtype, within in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model.to(dtype), encoder.to(dtype), source.network.to(dtype)
        images = torch.from_numpy(pixels).movedim(-1, 1).to(dtype) / 255
        with torch.no_grad():
            normalised = encoder.normalize(images)
            tokens = source.tokens(normalised)
            if source.logits is not None:
                assert_same(model(images), source.logits(normalised), within)
        for row, one in enumerate(beit.predict(model, [*pixels], features=True)):
            assert_same(one.mean, tokens[row, prefix:].mean(dim=0), within)
            assert_same(one.cls, tokens[row, 0], within)
    config = beit.PredictConfig(
        images=(str(data),), model=str(source.path), out=str(out), features=True, precision="float32", workers=0
    )
    beit.predict(config)
    features = dict(np.load(out))
    assert features["image"].tolist() == sorted(str(file) for file in data.iterdir())
    given = beit.predict(model, data, features=True)
    assert_same(features["mean"], torch.from_numpy(np.stack([one.mean for one in given])), 1e-4)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_its_librarys_outputs_and_starts_every_verb(
    name: str, images: Path, trained_tokenizer: Path, colours: Path, regions: Path, tmp_path: Path
) -> None:
    source = SOURCES[name](tmp_path / "source")
    assert_equal_outputs(source, colours / "val" / "blue", tmp_path / "features.npz")
    start = beit.load_encoder(source.path)
    side = start.config.image_size[0]
    given: dict[str, Any] = {"init": str(source.path), "steps": 2, "evaluations": 1, "lr": 1e-4, "limit": 20}
    pretrain(going_on(images, tmp_path / "pretrain", **given, tokenizer=str(trained_tokenizer)))
    finetune(finetune_config(colours, tmp_path / "finetune", **given))
    segment(segment_config(regions, tmp_path / "segment", crop=side, **given))
    probe(probe_config(colours, tmp_path / "probe", **{**given, "init": Path(source.path)}))
    view = torch.rand(2, 3, side, side)
    with torch.no_grad():
        before = start(view)
        for verb in ("pretrain", "finetune", "segment", "probe"):
            learned = beit.load_encoder(tmp_path / verb)
            assert learned.num_prefix_tokens == start.num_prefix_tokens
            # It began with the weights of the source, and learned unless it was only read.
            moved = float((learned(view) - before).norm() / before.norm())
            assert moved < 0.02 and (moved > 0) == (verb != "probe"), verb


def test_the_journey_starts_from_a_released_encoder(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`beit train --init`: pre-training is left out, and the classifier begins at the source's weights."""
    monkeypatch.setattr(train_stage, "measure", lambda *arguments, **options: Pace(60.0, 1.0, 0.0))
    source = of_timm(tmp_path / "source", "vit_tiny_patch16_224")
    out = tmp_path / "run"
    train(TrainConfig(data=str(colours), init=str(source.path), out=str(out), budget="6m", workers=0))
    assert sorted(file.parent.name for file in out.glob("*/config.yaml")) == ["classifier"]
    start, end = beit.load_encoder(source.path), beit.load_encoder(out)
    assert start.config.width == end.config.width and end.config.final_norm
    for name, weights in start.state_dict().items():
        if "blocks" in name:  # a few steps at a small rate, and no other weights
            torch.testing.assert_close(end.state_dict()[name], weights, rtol=0, atol=0.1)
