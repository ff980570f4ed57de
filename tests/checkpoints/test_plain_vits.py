"""Plain vision transformers of timm and Hugging Face: features and logits as theirs, and every verb's start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from tiny_models import shaken
from torch import Tensor, nn

import beit
from beit import UserError, load_encoder, load_model
from beit.checkpoints import convert
from beit.checkpoints.store import describe
from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel

pytestmark = pytest.mark.slow

TIMM: dict[str, dict[str, Any]] = {
    "vit": {},
    "registers": {"reg_tokens": 3},
    "dinov2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    "mean": {"global_pool": "avg"},
    "mean of normed": {"global_pool": "avg", "fc_norm": False},
    "patch 14": {"patch_size": 14, "img_size": (28, 28)},
    "no query, key and value bias": {"qkv_bias": False},
    "features alone": {"num_classes": 0, "init_values": 0.1},
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
UNTOLD = ("mean of normed", "no query, key and value bias")
"""Of which the weights alone do not tell the pooling, or that they are no BEiT's."""
SMALL_TIMM: dict[str, Any] = {"img_size": (32, 32), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
"""The knobs of a ViT of timm."""


@torch.no_grad()
def coarse(model: nn.Module) -> nn.Module:
    """With random weights of few digits, so that the sum of a token and its position is exact in float32."""
    for parameter in shaken(model).parameters():
        parameter.copy_(parameter.bfloat16())
    return model


def timm_model(folder: Path, **changes: Any) -> nn.Module:
    """A small ViT of timm, saved by timm."""
    arguments = {**SMALL_TIMM, "num_classes": 5, **changes}
    model = coarse(timm.create_model("vit_tiny_patch16_224", **arguments))
    save_for_hf(model, str(folder), model_args=arguments)
    return model


def transformers_model(name: str, folder: Path, **changes: Any) -> Any:
    family = name.removesuffix("ForImageClassification").removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model = coarse(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    return model


def images_of(encoder: BeitEncoder) -> tuple[Tensor, Tensor]:
    """Images, and as the encoder normalises them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *encoder.config.image_size, dtype=torch.float64, generator=generator)
    return images, encoder.double().normalize(images)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "bare"),
    [(name, bare) for name in TIMM for bare in (False, True) if not (bare and name in UNTOLD)],
)
@torch.no_grad()
def test_features_and_logits_of_timm(name: str, bare: bool, tmp_path: Path) -> None:
    theirs = timm_model(tmp_path, **TIMM[name]).double()
    path = str(tmp_path)
    if bare:
        weights = {name: x.float() for name, x in theirs.state_dict().items()}
        torch.save({"model": weights}, tmp_path / "weights.pth")
        path = f"{tmp_path}/weights.pth@num_heads=4"
    encoder = load_encoder(path)
    images, normalised = images_of(encoder)
    assert_same(encoder.normed(encoder(images)), theirs.forward_features(normalised))  # type: ignore[operator]
    if TIMM[name].get("num_classes") == 0:
        assert describe(path)["kind"] == "encoder"
        return
    assert_same(load_model(path).double()(images), theirs(normalised))


def test_averaged_weights_are_read_where_they_are_asked_for_or_alone(tmp_path: Path) -> None:
    weights = timm_model(tmp_path / "a").state_dict()
    average = {name: x + 1 for name, x in weights.items()}
    torch.save({"model": weights, "model_ema": average}, tmp_path / "both.pth")
    torch.save({"state_dict_ema": average}, tmp_path / "alone.pth")
    torch.save({"model": weights}, tmp_path / "none.pth")
    for name, expected in (("both", weights), ("both@weights=ema", average), ("alone", average)):
        place, _, stated = name.partition("@")
        path = f"{tmp_path}/{place}.pth@{stated or 'strict=yes'}"
        path += ",num_heads=4"
        assert load_model(path).head.bias.equal(expected["head.bias"])
    assert (
        "model_ema: the averaged weights are read"
        in describe(f"{tmp_path}/both.pth@num_heads=4,weights=ema")["notes"]
    )
    with pytest.raises(UserError, match="holds no averaged weights; drop weights=ema"):
        load_model(f"{tmp_path}/none.pth@weights=ema")


@torch.no_grad()
def test_the_bias_of_keys_cancels(tmp_path: Path) -> None:
    theirs = timm_model(tmp_path).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    before = theirs(images)
    for block in theirs.blocks:  # type: ignore[union-attr]
        block.attn.qkv.bias[32:64] += 3.0
    assert_same(theirs(images), before)


@torch.no_grad()
def test_what_the_layout_allows_is_converted_back(tmp_path: Path) -> None:
    theirs = timm_model(tmp_path / "a").double()
    convert(tmp_path / "a", tmp_path / "b", to="timm")
    convert(tmp_path / "a", tmp_path / "own", to="beit")
    back = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval().double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert_same(back(images), theirs(images))
    own = load_model(tmp_path / "own").double()
    assert_same(own(images), theirs(own.encoder.normalize(images)))
    timm_model(tmp_path / "c", reg_tokens=2)
    with pytest.raises(UserError, match="register_tokens"):
        convert(tmp_path / "c", tmp_path / "d", to="timm")


STRANGE: list[tuple[str, dict[str, Any], str]] = [
    ("vit_giant_patch14_dinov2", {"mlp_ratio": 4}, "SwiGLU"),
    ("eva02_base_patch16_clip_224", {}, "SwiGLU"),
    ("vit_base_patch16_rope_224", {}, "rotary positions"),
    ("vit_base_patch16_rope_mixed_224", {}, "rotary positions"),
    ("vit_base_patch16_dinov3", {}, "rotary positions"),
    ("vit_base_patch16_224", {"qk_norm": True}, "norms of queries and keys"),
    ("vit_base_patch16_clip_224", {}, "a norm before the blocks"),
    ("vit_base_patch16_224", {"global_pool": "map"}, "pooling by attention"),
    ("samvit_base_patch16", {}, "windows"),
    ("deit_tiny_distilled_patch16_224", {}, "a second head, of distillation"),
]


@pytest.mark.parametrize(("name", "changes", "word"), STRANGE)
def test_what_no_encoder_here_has_is_refused_by_name(
    name: str, changes: dict[str, Any], word: str, tmp_path: Path
) -> None:
    """Whether timm's configuration lies beside the weights or not."""
    arguments = {**SMALL_TIMM, "num_classes": 5, **changes}
    theirs = timm.create_model(name, **arguments)
    save_for_hf(theirs, str(tmp_path), model_args=arguments)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    for path in (tmp_path, f"{tmp_path}/weights.pth@num_heads=4"):
        with pytest.raises(UserError, match=f"{word} .*which no encoder here has; give a plain ViT or BEiT"):
            load_model(path)


def test_rotary_positions_beside_others_are_known_by_the_name_of_their_model(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_base_patch16_rope_ape_224", **SMALL_TIMM)
    save_for_hf(theirs, str(tmp_path), model_args=SMALL_TIMM)
    with pytest.raises(UserError, match="has rotary positions"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Dinov2Model", {"use_swiglu_ffn": True}, "has SwiGLU"),
        ("DINOv3ViTModel", {"intermediate_size": 64}, "has rotary positions"),
        ("CLIPVisionModel", {"intermediate_size": 64}, "has a norm before the blocks"),
        ("VitDetModel", {"window_size": 2, "use_relative_position_embeddings": True}, "has windows"),
        ("ViTMSNModel", {"intermediate_size": 64}, "is a vit_msn of Hugging Face; give a BEiT or a plain ViT"),
    ],
)
def test_models_of_transformers_that_are_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    transformers_model(name, tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("inner", [False, True])
def test_a_whole_model_is_refused_with_the_remedy(inner: bool, tmp_path: Path) -> None:
    """Nothing of it is executed, whichever library it is of."""
    for number, model in enumerate([timm_model(tmp_path / "a"), transformers_model("ViTModel", tmp_path / "b")]):
        torch.save({"model": model} if inner else model, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=r"save its weights alone, torch\.save\(model\.state_dict\(\), FILE\)"):
            load_model(f"{tmp_path}/{number}.pth")


def test_a_distilled_deit_is_refused_by_name_and_its_encoder_is_read(tmp_path: Path) -> None:
    two_heads = transformers_model("DeiTForImageClassification", tmp_path / "one", intermediate_size=64)
    config = two_heads.config
    transformers.DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="a second head, of distillation"):
        load_model(tmp_path / "two")
    encoder = load_encoder(tmp_path / "one")
    assert encoder.num_prefix_tokens == 2 and encoder.config.num_registers == 1


def test_pixel_constants_are_told_taken_or_warned_of(tmp_path: Path) -> None:
    weights = timm_model(tmp_path).state_dict()
    torch.save(weights, tmp_path / "classifier.pth")
    torch.save({key: x for key, x in weights.items() if "head" not in key}, tmp_path / "mae.pth")
    classifier, features = (describe(f"{tmp_path}/{name}.pth@num_heads=4") for name in ("classifier", "mae"))
    assert classifier["pixel_mean"] == (0.5,) * 3 and "@pixel_mean=imagenet" in " ".join(classifier["notes"])
    assert features["pixel_mean"] == (0.485, 0.456, 0.406)
    transformers_model("ViTModel", tmp_path / "vit", intermediate_size=64)
    assert "@pixel_mean=imagenet" in " ".join(describe(tmp_path / "vit")["notes"])


@torch.no_grad()
def test_registers_and_the_norm_take_part_wherever_tokens_are_read(tmp_path: Path) -> None:
    config = EncoderConfig(
        **{"image_size": (32, 32), "patch_size": 8, "width": 32, "depth": 2, "num_heads": 4, "bias": "none"},
        position="absolute",
        num_registers=2,
        final_norm=True,
    )
    encoder: BeitEncoder = shaken(BeitEncoder(config))
    images = torch.rand(2, 3, 32, 32)
    tokens = encoder.normed(encoder(images))
    assert tokens.shape == (2, 3 + 16, 32)
    classifier: ImageClassifier = shaken(ImageClassifier(encoder, 5, "mean"), seed=1)
    tokens = encoder.normed(encoder(images))
    torch.testing.assert_close(classifier(images), classifier.head(tokens[:, 3:].mean(dim=1)))
    assert beit.load_model  # the public name
    everything = torch.ones(2, 16, dtype=torch.bool)
    for sees in ({}, {"encoder_sees": "visible", "num_masked": 8, "decoder_width": 32}):
        model = shaken(MaskedImageModel(BeitEncoder(config), 7, **sees))
        mask = everything.clone()
        mask[:, ::2] = False
        rows = model(images, mask, everything).view(2, 16, 7)
        torch.testing.assert_close(model(images, mask), rows[mask])
