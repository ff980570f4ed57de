"""Models at rest: what is saved is what is loaded, and anything else is refused in one clear line."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from beit.atomic import replace_folder
from beit.checkpoints import own
from beit.checkpoints.adapt import expand_shared_bias, resize_encoder
from beit.checkpoints.own import read_description
from beit.checkpoints.store import load_encoder, load_model, load_tokenizer, save_model, weights_sha256
from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.position import resize_bias_table
from beit.models.segmentation import SemanticSegmenter
from beit.tokenizers.dvae import DiscreteVAE


def encoder(**changes: Any) -> BeitEncoder:
    small: dict[str, Any] = {"image_size": (32, 48), "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
    return BeitEncoder(EncoderConfig(**{**small, **changes}))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tokenizer": lambda: DiscreteVAE(
        DiscreteVAEConfig(vocab_size=16, width=8, stride=4, blocks_per_group=1, code_width=8, image_size=(32, 48))
    ),
    "pretrained": lambda: MaskedImageModel(encoder(pixel_mean=(0.1, 0.2, 0.3)), 16),
    "visible": lambda: MaskedImageModel(
        encoder(position="sincos", bias="block", pixel_mean=(0.1, 0.2, 0.3)),
        16,
        encoder_sees="visible",
        num_masked=18,
        decoder_depth=2,
        decoder_width=64,
    ),
    "classifier": lambda: ImageClassifier(encoder(position="block_bias", layer_scale_init=None), 3, "cls"),
    "probe": lambda: LinearProbe(encoder(), 3, 1, "cls_mean"),
    "segmenter": lambda: SemanticSegmenter(
        encoder(), 3, decoder="pup", layers=[0, 1], channels=8, transposed=True, auxiliary=True
    ),
    "UPerNet": lambda: SemanticSegmenter(
        encoder(position="absolute"), 3, decoder="upernet", layers=[0, 0, 1, 1], channels=8, auxiliary=False
    ),
}

CLASSES = ["ü", "b", "c"]
KIND_OF = {"UPerNet": "segmenter", "visible": "pretrained"}


@pytest.fixture(params=list(MODELS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, nn.Module, Path]:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    save_model(model, tmp_path / "run" / "model", provenance={"run": "a test"}, tokenizer_hash="t", classes=CLASSES)
    return KIND_OF.get(request.param, request.param), model, tmp_path / "run"


def test_what_is_saved_is_loaded(saved: tuple[str, nn.Module, Path]) -> None:
    kind, model, run = saved
    for path in (run, run / "model", str(run)):
        loaded = load_model(path)
        assert type(loaded) is type(model)
        assert not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(x, model.state_dict()[key]) for key, x in loaded.state_dict().items())
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    images = torch.rand(2, 3, 32, 48)
    if kind == "tokenizer":
        assert torch.equal(load_tokenizer(run).encode(images), model.eval().encode(images))  # type: ignore[operator]
    elif kind == "pretrained":
        mask = torch.rand(2, 24).argsort(dim=1) < 18
        torch.testing.assert_close(loaded(images, mask), model.eval()(images, mask))
    else:
        torch.testing.assert_close(loaded(images), model.eval()(images))
    assert sorted(file.name for file in (run / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_the_description_tells_what_it_is(saved: tuple[str, nn.Module, Path]) -> None:
    kind, model, run = saved
    description = read_description(run)
    assert description["kind"] == kind
    assert description["image_size"] == [32, 48]
    assert description["classes"] == CLASSES
    assert description["tokenizer"] == "t"
    assert description["weights_sha256"] == weights_sha256(model) == weights_sha256(load_model(run))
    assert description["provenance"]["run"] == "a test"
    assert {"beit", "torch", "date", "command"} <= description["provenance"].keys()
    mean = {"tokenizer": -0.125, "pretrained": 0.1}.get(kind, 0.5)
    assert description["pixel_mean"][0] == mean
    size = {
        "tokenizer": ("architecture", 16),
        "pretrained": ("vocab_size", 16),
        "classifier": ("num_classes", 3),
        "probe": ("num_classes", 3),
        "segmenter": ("num_classes", 3),
    }
    key, value = size[kind]
    assert (description[key]["vocab_size"] if key == "architecture" else description[key]) == value


def test_identity_is_of_values_not_of_layout_or_precision() -> None:
    model = MODELS["tokenizer"]()
    identity = weights_sha256(model)
    assert weights_sha256(model.to(memory_format=torch.channels_last).double()) == identity  # type: ignore[call-overload]
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-3
    assert weights_sha256(model) != identity


def test_the_encoder_of_any_model(saved: tuple[str, nn.Module, Path]) -> None:
    kind, model, run = saved
    if kind == "tokenizer":
        with pytest.raises(UserError, match="is a tokenizer"):
            load_encoder(run)
        return
    loaded = load_encoder(run)
    assert loaded.config == model.encoder.config
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(run)


@pytest.mark.parametrize("position", ["shared_bias", "block_bias", "absolute", "sincos", "none"])
def test_an_encoder_for_another_image_size(position: str, tmp_path: Path) -> None:
    model = MaskedImageModel(encoder(position=position), 16)
    for name, parameter in model.named_parameters():
        if "table" in name or "pos_embed" in name:
            nn.init.normal_(parameter)
    save_model(model, tmp_path, provenance={})
    resized = load_encoder(tmp_path, image_size=(64, 40))
    assert resized.config.image_size == (64, 40)
    assert resized.config.positions == position
    square = load_encoder(str(tmp_path), image_size=48)
    assert square.config.image_size == (48, 48)
    assert square.state_dict().keys() == resized.state_dict().keys()
    # Stored for the new size, it gives what the old one gives when it resizes as it runs.
    images = torch.rand(1, 3, 64, 40)
    torch.testing.assert_close(resized(images), model.eval().encoder(images), rtol=0, atol=1e-5)
    save_model(ImageClassifier(resized, 3), tmp_path / "resized", provenance={})
    assert torch.equal(load_encoder(tmp_path / "resized")(images), resized(images))
    if position == "sincos":
        images = torch.rand(1, 3, 32, 48)
        torch.testing.assert_close(resize_encoder(resized, (32, 48))(images), model.encoder(images))
    if position == "shared_bias":
        table = model.encoder.state_dict()["rel_pos_bias.relative_position_bias_table"]
        expected = resize_bias_table(table, (4, 6), (8, 5))
        assert torch.equal(resized.state_dict()["rel_pos_bias.relative_position_bias_table"], expected)


def test_the_shared_bias_copied_into_blocks_gives_the_same_outputs() -> None:
    shared = encoder(position="shared_bias").eval()
    assert shared.rel_pos_bias is not None
    nn.init.normal_(shared.rel_pos_bias.relative_position_bias_table)
    images = torch.rand(2, 3, 32, 48)
    blocks = expand_shared_bias(shared)
    assert blocks.config.bias == "block"
    torch.testing.assert_close(blocks(images), shared(images))


OWN_ALONE = """
import sys, torch
import beit
from beit.checkpoints import describe, save_model
from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
config = EncoderConfig(image_size=(16, 16), patch_size=8, width=8, depth=1, num_heads=1)
save_model(MaskedImageModel(BeitEncoder(config), 4), sys.argv[1], provenance={})
beit.load_encoder(sys.argv[1], image_size=32)
describe(sys.argv[1])
own = {"adapt", "kinds", "own", "reference", "store"}
rooms = {name.split(".")[2] for name in sys.modules if name.startswith("beit.checkpoints.")}
sys.exit(f"imported {rooms - own}" if rooms - own else 0)
"""


@pytest.mark.slow
def test_a_model_of_ours_needs_no_format_of_others(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OWN_ALONE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def edit(run: Path, **changes: Any) -> None:
    file = run / "model" / "model.json"
    description = {**json.loads(file.read_text()), **changes}
    del description["checksum"]
    file.write_text(json.dumps(description))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_model(MODELS["pretrained"](), tmp_path / "model", provenance={})
    return tmp_path


def test_every_flipped_bit_of_a_description_is_noticed(run: Path) -> None:
    file = run / "model" / "model.json"
    whole, description = file.read_bytes(), read_description(run)
    assert b'"checksum"' in whole
    chance = random.Random(0)
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        with contextlib.suppress(UserError):
            unnoticed = read_description(run)
            assert b'"checksum"' not in flipped or unnoticed == description, "only white space may differ"


def test_a_model_that_is_replaced_while_it_is_read_is_not_damaged(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run replaces it at each save: between model.json and the weights another model takes its place."""
    save_model(MODELS["classifier"](), tmp_path / "other", provenance={})
    replacements = iter([tmp_path / "other"])

    def replace_first(file: Path) -> dict[str, torch.Tensor]:
        for other in replacements:
            replace_folder(run / "model", partial(shutil.copytree, other, dirs_exist_ok=True))
        return load_file(file)

    monkeypatch.setattr(own, "load_file", replace_first)
    assert isinstance(load_model(run), ImageClassifier)


def test_damaged_weights_are_refused(run: Path) -> None:
    file = run / "model" / "model.safetensors"
    whole = file.read_bytes()
    for part in (b"", whole[:100], whole[:-1]):
        file.write_bytes(part)
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            load_model(run)
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(UserError, match="checksum"):
        load_model(run)
    file.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(run)


def test_weights_of_another_model_are_refused(run: Path) -> None:
    file = run / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["surprise"] = tensors.pop("mask_token").clone()
    tensors["norm.weight"] = torch.ones(3)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"mask_token is missing.*norm\.weight is .*\(3,\).*surprise is unknown"):
        load_model(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "surprise"}, "kind is 'surprise'"),
        ({"kind": "tokenizer"}, "architecture.*unknown"),
        ({"architecture": None}, "architecture is missing"),
        ({"image_size": [16, 16]}, "image_size differs"),
    ],
)
def test_descriptions_that_lie_are_refused(changes: dict[str, Any], message: str, run: Path) -> None:
    edit(run, **changes)
    with pytest.raises(UserError, match=message):
        load_model(run)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "nothing")
    foreign = tmp_path / "beit_base.pth"
    foreign.write_bytes(b"PK")
    with pytest.raises(UserError, match="no known format"):
        load_model(foreign)
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(UserError, match="without a finished model"):
        load_model(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json cannot be read"):
        load_model(tmp_path)
    with pytest.raises(TypeError, match="Linear"):
        save_model(nn.Linear(1, 1), tmp_path, provenance={})


def test_a_disk_that_is_full_while_weights_are_written_is_an_oserror(tmp_path: Path) -> None:
    """safetensors raises an error of its own, which a run could not bear as it bears a failed checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written"):
            save_model(MODELS["pretrained"](), tmp_path / "model", provenance={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "model").iterdir()) == []


def test_a_save_that_fails_leaves_the_model_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_sha256(load_model(run))

    def full_disk(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("beit.checkpoints.own.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(MODELS["pretrained"](), run / "model", provenance={})
    assert weights_sha256(load_model(run)) == before
    assert len(list((run / "model").iterdir())) == 2
