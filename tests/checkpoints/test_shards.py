"""Weights in several files: read as one, as Hugging Face's libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_model, split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from transformers import BeitConfig, BeitForImageClassification

from beit import UserError, load_model
from beit.checkpoints import convert
from beit.checkpoints.store import describe, save_model


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder of Hugging Face with one file."""
    save_model(tiny("mean", position="block_bias"), tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    return tmp_path / "hf"


def in_shards(folder: Path, ending: str) -> Path:
    """The same folder with its weights in files of 10 kB, and its index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "model{suffix}.safetensors" if ending == "safetensors" else "pytorch_model{suffix}.bin"
    split = split_torch_state_dict_into_shards(weights, filename_pattern=name, max_shard_size="10kB")
    assert len(split.filename_to_tensors) > 2
    for file, keys in split.filename_to_tensors.items():
        part = {key: weights[key] for key in keys}
        if ending == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    index = folder / f"{name.format(suffix='')}.index.json"
    index.write_text(json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_as_one_file(ending: str, whole: Path) -> None:
    expected, about = load_model(whole), describe(whole)
    index = in_shards(whole, ending)
    for path in (whole, index):
        loaded = load_model(path).state_dict()
        assert all(torch.equal(loaded[key], x) for key, x in expected.state_dict().items())
        assert describe(path) == about


def test_the_shards_of_the_libraries_themselves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        use_relative_position_bias=True, num_labels=5,
    )  # fmt: skip
    theirs = BeitForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "a", max_shard_size="20kB")
    assert (tmp_path / "a" / "model.safetensors.index.json").exists()
    (tmp_path / "b").mkdir()
    save_torch_model(theirs, tmp_path / "b", max_shard_size="20kB", safe_serialization=False)
    config.save_pretrained(tmp_path / "b")
    images = torch.rand(2, 3, 32, 32)
    for folder in ("a", "b"):
        ours: Any = load_model(tmp_path / folder)
        with torch.no_grad():
            expected = theirs((images - 0.5) / 0.5).logits
            torch.testing.assert_close(ours(images), expected, rtol=0, atol=2e-5)


def test_indices_that_lie_are_refused(whole: Path) -> None:
    index = in_shards(whole, "bin")
    good = json.loads(index.read_text())["weight_map"]
    first, *others = sorted({*good.values()})
    keys = [key for key, file in good.items() if file == first]
    for named, message in [
        ({**good, keys[0]: "../../etc/passwd"}, "no file beside it"),
        ({**good, keys[0]: index.name}, "no file beside it"),
        ({**good, keys[0]: 3}, "no weight_map"),
        ([], "no weight_map"),
        ({**good, keys[0]: "absent.bin"}, "absent.bin cannot be read"),
        ({**good, "ghost": first}, "names ghost, which its files do not have"),
        ({key: file for key, file in good.items() if file != others[-1]}, "lacks classifier.weight"),
        ({f"k{number}": f"f{number}.bin" for number in range(2000)}, "names 2,000 files"),
    ]:
        index.write_text(json.dumps({"weight_map": named}))
        with pytest.raises(UserError, match=message) as error:
            load_model(whole)
        assert "\n" not in str(error.value)
    torch.save(torch.load(whole / first) | {"twice": torch.zeros(2)}, whole / first)
    torch.save(torch.load(whole / others[0]) | {"twice": torch.zeros(2)}, whole / others[0])
    index.write_text(json.dumps({"weight_map": good}))
    with pytest.raises(UserError, match="has twice, which another file"):
        load_model(whole)
