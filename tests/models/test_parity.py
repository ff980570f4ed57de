"""Weights in the official layout give the outputs of transformers and timm."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling
from transformers.models.beit.modeling_beit import BeitEmbeddings

from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.position import resize_position_embedding

Tiny = Callable[..., EncoderConfig]
Shaken = Callable[[nn.Module], nn.Module]

# transformers 5 name -> ours, once "beit." is gone.
NAMES = [
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.cls_token", "encoder.cls_token"),
    (r"embeddings\.position_embeddings", "encoder.pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "encoder.patch_embed.proj"),
    (r"shared_position_bias", "encoder.rel_pos_bias"),
    (r"^layers\.", "encoder.blocks."),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.(q|v)_proj\.bias", r"attn.\1_bias"),
    (r"lambda_", "gamma_"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"(\d)\.relative_position_bias\.relative", r"\1.attn.relative"),
    (r"pooler\.layernorm", "fc_norm"),
    (r"^layernorm", "norm"),
    (r"lm_head", "token_head"),
    (r"classifier", "head"),
]


def from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        key = key.removeprefix("beit.")
        for theirs, name in NAMES:
            key = re.sub(theirs, name, key)
        ours[key] = tensor
    for key in [key for key in ours if key.endswith("q_proj.weight")]:
        parts = [ours.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        ours[key.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return ours


def transformers_config(config: EncoderConfig, **more: Any) -> BeitConfig:
    return BeitConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.width,
        layer_norm_eps=config.layer_norm_eps,
        image_size=config.image_size[0],
        patch_size=config.patch_size,
        use_mask_token=True,
        use_absolute_position_embeddings=config.position == "absolute",
        use_shared_relative_position_bias=config.bias == "shared",
        use_relative_position_bias=config.bias == "block",
        layer_scale_init_value=config.layer_scale_init or 0.0,
        **more,
    )


ARCHITECTURES = [
    {"position": "shared_bias"},
    {"position": "absolute", "layer_scale_init": None},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_image_model_equals_transformers(architecture: dict[str, Any], tiny: Tiny, shaken: Shaken) -> None:
    config = tiny(**architecture)
    oracle = shaken(BeitForMaskedImageModeling(transformers_config(config, vocab_size=50)).double())
    model = MaskedImageModel(BeitEncoder(config), 50).double().eval()
    model.load_state_dict(from_transformers(oracle.state_dict()))
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    mask = torch.rand(3, 4, 4) < 0.4
    tokens = torch.randint(50, (int(mask.sum()),))
    with torch.no_grad():
        expected = oracle((images - 0.5) / 0.5, bool_masked_pos=mask.flatten(1), labels=tokens)
        logits = model(images, mask)
        everywhere = model(images, mask.flatten(1), predict=torch.ones_like(mask))
    torch.testing.assert_close(logits, expected.logits[mask.flatten(1)], rtol=0, atol=1e-9)
    torch.testing.assert_close(everywhere, expected.logits.flatten(0, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(F.cross_entropy(logits, tokens), expected.loss, rtol=0, atol=1e-9)
    # The same gradients, also where the forward pass in training takes another kernel for attention.
    oracle((images - 0.5) / 0.5, bool_masked_pos=mask.flatten(1), labels=tokens).loss.backward()
    F.cross_entropy(model(images, mask), tokens).backward()
    gradients = from_transformers({key: x.grad for key, x in oracle.named_parameters() if x.grad is not None})
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=0, atol=1e-9)
    with torch.no_grad():
        single = model.float()(images.float(), mask)
    torch.testing.assert_close(single.double(), logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("position", ["block_bias", "absolute"])
def test_classifier_equals_transformers(position: str, tiny: Tiny, shaken: Shaken) -> None:
    config = tiny(position=position, pixel_mean=(0.48, 0.45, 0.40), pixel_std=(0.23, 0.22, 0.24))
    oracle = shaken(BeitForImageClassification(transformers_config(config, num_labels=7)).double())
    model = ImageClassifier(BeitEncoder(config), 7).double().eval()
    weights = from_transformers(oracle.state_dict())
    weights.pop("mask_token")
    model.load_state_dict(weights)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
    with torch.no_grad():
        expected = oracle((images.double() / 255 - mean) / std).logits
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(model(images.double() / 255), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("position", ["shared_bias", "block_bias"])
def test_classifier_equals_timm(position: str, pool: Any, tiny: Tiny, shaken: Shaken) -> None:
    # Rectangular, which transformers cannot do.
    config = tiny(position=position, image_size=(32, 48))
    oracle = shaken(
        Beit(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=7,
            global_pool="avg" if pool == "mean" else "token",
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            qkv_bias=True,
            use_abs_pos_emb=False,
            init_values=config.layer_scale_init,
            use_rel_pos_bias=position == "block_bias",
            use_shared_rel_pos_bias=position == "shared_bias",
        ).double()
    )
    model = ImageClassifier(BeitEncoder(config), 7, pool).double().eval()
    heads = ("fc_norm", "norm.", "head.")
    model.load_state_dict(
        {key if key.startswith(heads) else f"encoder.{key}": x for key, x in oracle.state_dict().items()}
    )
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle((images - 0.5) / 0.5), rtol=0, atol=1e-9)


def test_position_embedding_equals_transformers(tiny: Tiny) -> None:
    embeddings = BeitEmbeddings(transformers_config(tiny(position="absolute"))).double()
    torch.nn.init.normal_(embeddings.position_embeddings)
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 6 * 7, 32), 48, 56)
    ours = resize_position_embedding(embeddings.position_embeddings, (4, 4), (6, 7))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
