"""What a configuration promises and the weights beside it do not hold is noticed, whatever it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import segmenter, tiny
from torch import Tensor

from beit import UserError, load_model
from beit.checkpoints import convert
from beit.checkpoints.own import save_model

pytestmark = pytest.mark.slow

MODELS = {
    "masked": lambda: tiny(position="shared_bias"),
    "mean": lambda: tiny("mean", position="block_bias"),
    "cls": lambda: tiny("cls", position="absolute"),
    "none": lambda: tiny("mean", position="none", layer_scale_init=0.1),
    "segmenter": lambda: segmenter(
        image_size=(32, 32), num_classes=3, position="block_bias", pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3
    ),
}
FOLDERS = [*((name, "huggingface") for name in MODELS if name != "none"), ("mean", "timm"), ("cls", "timm")]


def written(name: str, to: Any, folder: Path) -> Path:
    save_model(MODELS[name](), folder / "own", provenance={})
    convert(folder / "own", folder / to, to)
    return folder / to


def groups(weights: Mapping[str, Tensor]) -> set[frozenset[str]]:
    """Every module, those of blocks for one of them, and every weight in all blocks at once."""
    ones = [key for key in weights if not re.search(r"(layer|blocks)\.(?!1\.)", key)]
    prefixes = {key[: match.end()] for key in ones for match in re.finditer(r"\w+(\.|$)", key)}
    found = {frozenset(key for key in weights if key.startswith(prefix)) for prefix in prefixes}
    parts = {re.sub(r"^.*?\.\d+\.", "", key) for key in weights}
    return found | {frozenset(key for key in weights if key.endswith(part)) for part in parts}


@pytest.mark.parametrize(("name", "to"), FOLDERS)
def test_nothing_can_be_gone_unnoticed(name: str, to: str, tmp_path: Path) -> None:
    folder = written(name, to, tmp_path)
    file = folder / "model.safetensors"
    weights = load_file(file)
    load_model(folder)
    # Block 4 of the segmenter is never read, see huggingface_segmentation.
    for gone in groups({key: x for key, x in weights.items() if "layer.4." not in key}):
        save_file({key: x.clone() for key, x in weights.items() if key not in gone}, file)
        with pytest.raises(UserError, match=r"missing|lacks|no BEiT encoder|no known format|says [bs]") as error:
            load_model(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "to", "changes", "message"),
    [
        ("mean", "huggingface", {"num_hidden_layers": 7}, r"missing encoder\.blocks\.2"),
        ("mean", "huggingface", {"num_hidden_layers": 1}, r"unknown beit\.encoder\.layer\.1"),
        ("mean", "huggingface", {"num_hidden_layers": 10**6}, "depth must be positive and at most 512"),
        ("mean", "huggingface", {"num_hidden_layers": "2"}, "not one of BEiT's"),
        ("mean", "huggingface", {"hidden_size": 99}, "width is 99 by one account and 32"),
        ("mean", "huggingface", {"intermediate_size": 5}, "hidden is 5 by one account and 128"),
        (
            "mean",
            "huggingface",
            {"use_relative_position_bias": False},
            "has block position bias, and its configuration says no",
        ),
        ("mean", "huggingface", {"use_absolute_position_embeddings": True}, r"missing encoder\.pos_embed"),
        (
            "mean",
            "huggingface",
            {"use_shared_relative_position_bias": True},
            "says block and shared",
        ),
        ("mean", "huggingface", {"layer_scale_init_value": 0}, "unknown .*lambda_1"),
        ("none", "huggingface", {"use_absolute_position_embeddings": True}, r"missing encoder\.pos_embed"),
        ("mean", "huggingface", {"drop_path_rate": 2}, r"safetensors: drop_path_rate must be"),
        ("mean", "huggingface", {"image_size": [2**62, 2**62]}, "grid|cannot be"),
        ("mean", "huggingface", {"architectures": ["BeitForMaskedImageModeling"]}, "lacks lm_head"),
        ("mean", "huggingface", {"num_attention_heads": 2}, "num_heads is 2 by one account and 4"),
        ("mean", "huggingface", {"num_attention_heads": True}, "num_heads is True, but must be a whole number"),
        ("mean", "huggingface", {"image_size": 64}, "a grid of 8x8 patches needs 228"),
        ("mean", "huggingface", {"image_size": "big"}, "image_size is 'big', but must be 2 values"),
        ("mean", "huggingface", {"patch_size": 16}, "patch_size is 16 by one account and 8"),
        ("mean", "huggingface", {"model_type": "data2vec-vision"}, "data2vec-vision of Hugging Face"),
        ("mean", "huggingface", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("mean", "huggingface", {"id2label": {"0": "a", "1": "b"}}, "names 2 classes, and its head has 5"),
        (
            "mean",
            "huggingface",
            {"layer_norm_eps": float("nan")},
            "layer_norm_eps must be at least 0, not nan",
        ),
        (
            "mean",
            "huggingface",
            {"drop_path_rate": -1},
            "drop_path_rate must be at least 0 and below 1, not -1",
        ),
        ("mean", "huggingface", {"use_mean_pooling": False}, r"unknown beit\.pooler.*missing norm"),
        ("segmenter", "huggingface", {"use_auxiliary_head": False}, "unknown auxiliary_head"),
        ("segmenter", "huggingface", {"pool_scales": [1, 2]}, r"pool_scales is \[1, 2\]"),
        (
            "segmenter",
            "huggingface",
            {"out_indices": [1, 2, 3, 4]},
            r"\[1, 2, 3, 4\]; only states after a block",
        ),
        ("segmenter", "huggingface", {"out_indices": [2, 3, 4]}, "but UPerNet reads four"),
        ("segmenter", "huggingface", {"out_indices": [2, 3, 4, 9]}, "give ascending numbers from 0 to 3"),
        ("segmenter", "huggingface", {"out_indices": "all"}, "out_indices is all"),
        ("segmenter", "huggingface", {"id2label": {"0": "x"}}, "names 1 class, and its head has 3"),
        ("mean", "timm", {"architecture": "beit3_base_patch16_224"}, "a beit3_base_patch16_224 of timm"),
        ("mean", "timm", {"architecture": "vit_base_patch16_224"}, r"unknown blocks\.0\.attn\.q_bias"),
        ("mean", "timm", {"label_names": [{"a": 1}, 2, 3, 4, 5]}, "not one of BEiT's"),
        ("mean", "timm", {"model_args": [1]}, "not one of BEiT's"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    name: str, to: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = written(name, to, tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)
    assert str(error.value).count("not one of BEiT's") == message.count("not one of BEiT's"), "what is wrong is said"


def test_a_statement_against_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grid is \(2, 8\) by one account"):
        load_model(written("mean", "huggingface", tmp_path), grid=(2, 8))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("depth", 3, r"missing encoder\.blocks\.2"),
        ("init_values", None, r"unknown blocks\.0\.gamma_1"),
        ("use_rel_pos_bias", False, "has block position bias, and its configuration says no"),
        ("mlp_ratio", 2, "hidden is 64 by one account and 128"),
        ("mlp_ratio", float("inf"), "cannot be"),
        ("patch_size", 4, "patch_size is 4 by one account and 8"),
    ],
)
def test_arguments_of_timm_for_another_model_are_refused(
    argument: str, value: Any, message: str, tmp_path: Path
) -> None:
    folder = written("mean", "timm", tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["model_args"][argument] = value
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_arguments_of_timm_may_be_a_few(tmp_path: Path) -> None:
    """Those that `save_for_hf` was given; the name says the rest."""
    folder = written("mean", "timm", tmp_path)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"model_args": {"use_abs_pos_emb": False, "num_heads": 4}}))
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_model(folder)(images), load_model(tmp_path / "own")(images))


def test_beit_v2_of_timm_is_read(tmp_path: Path) -> None:
    folder = written("mean", "timm", tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architecture": "beitv2_base_patch16_224"}))
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_model(folder)(images), load_model(tmp_path / "own")(images))
