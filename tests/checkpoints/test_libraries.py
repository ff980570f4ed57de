"""Files of timm, transformers and the DALL-E package give the same outputs here, and ours the same there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from dall_e import Decoder, Encoder
from dall_e.utils import map_pixels, unmap_pixels
from PIL import Image
from safetensors.torch import load_file
from tiny_models import shaken, tiny
from torch import Tensor, nn
from transformers import AutoImageProcessor, BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling

from beit import UserError, load_model, load_tokenizer
from beit.checkpoints import convert
from beit.checkpoints.store import describe, save_model
from beit.config.architecture import DiscreteVAEConfig
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.stages.inference import classifier_view
from beit.tokenizers.dvae import DiscreteVAE

pytestmark = pytest.mark.slow

IMAGES = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(32).view(2, 16) % 3 == 0
REAL = os.environ.get("BEIT_REAL_DATA")
POSITIONS = {"shared_bias": 0.1, "block_bias": 0.1, "absolute": None}


def assert_equal_outputs(ours: nn.Module, theirs: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """In float64 within 1e-9, in float32 within 2e-5. `call` gives their logits of normalised images."""
    inputs: tuple[Tensor, ...] = (MASK,) if hasattr(ours, "mask_token") else ()
    with torch.no_grad():
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
            expected = call(theirs.to(dtype), ((IMAGES - 0.5) / 0.5).to(dtype))
            logits = ours.to(dtype)(IMAGES.to(dtype), *inputs)
            assert logits.abs().max() > 0.1
            torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


def masked_logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images, bool_masked_pos=MASK).logits[MASK]
    return logits


def class_logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images).logits
    return logits


def transformers_model(kind: Any, position: str, **changes: Any) -> Any:
    scale = POSITIONS.get(position, 0.1)
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-5,
        use_mask_token=kind is BeitForMaskedImageModeling,
        use_absolute_position_embeddings="absolute" in position,
        use_shared_relative_position_bias="shared_bias" in position,
        use_relative_position_bias="block_bias" in position,
        layer_scale_init_value=scale or 0.0,
        **changes,
    )
    return shaken(kind(config))


@pytest.mark.parametrize("position", POSITIONS)
def test_masked_image_models_of_transformers(position: str, tmp_path: Path) -> None:
    theirs = transformers_model(BeitForMaskedImageModeling, position, vocab_size=50)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_equal_outputs(load_model(tmp_path / "theirs"), theirs, masked_logits)
    convert(tmp_path / "theirs", tmp_path / "ours", "huggingface")
    back, report = BeitForMaskedImageModeling.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert_equal_outputs(load_model(tmp_path / "theirs"), back.eval(), masked_logits)
    # The names of 5.x, which it has in memory alone.
    folder = tmp_path / "memory"
    folder.mkdir()
    torch.save(theirs.float().state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text((tmp_path / "theirs/config.json").read_text())
    assert_equal_outputs(load_model(folder), theirs, masked_logits)
    # 4.x names on disk, whatever the library has in memory.
    assert (
        load_file(tmp_path / "ours/model.safetensors").keys()
        == load_file(tmp_path / "theirs/model.safetensors").keys()
    )


@pytest.mark.parametrize(
    ("position", "mean"),
    [
        ("block_bias", True),
        ("absolute", False),
        ("shared_bias", False),
        ("absolute and block_bias", True),
        ("shared_bias and block_bias", False),  # read as block_bias, the tables added
    ],
)
def test_classifiers_of_transformers(position: str, mean: bool, tmp_path: Path) -> None:
    theirs = transformers_model(BeitForImageClassification, position, num_labels=5, use_mean_pooling=mean)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert_equal_outputs(ours, theirs, class_logits)
    # The names of 5.x, which it has in memory alone; a file beside no configuration knows no LayerNorm eps.
    folder = tmp_path / "memory"
    folder.mkdir()
    torch.save(theirs.float().state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text((tmp_path / "theirs/config.json").read_text())
    weights = load_model(folder).state_dict()
    assert all(torch.equal(weights[key], x) for key, x in ours.float().state_dict().items())
    save_model(load_model(folder), tmp_path / "own", provenance={}, classes=["a", "b", "c", "d", "ü"])
    convert(tmp_path / "own", tmp_path / "ours", "huggingface")
    back = BeitForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert back.config.id2label[4] == "ü"
    assert_equal_outputs(load_model(folder), back, class_logits)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]
    assert processor.size["shortest_edge"] == 32


def photograph() -> Tensor:
    """The first of the real ones where there are any, else noise, which is harder; 2:3, so that margins are even.

    Odd ones are cut by timm and here as torchvision does, and by transformers one pixel further up or left.
    """
    if not REAL:
        return torch.randint(256, (3, 98, 147), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = open_splits([f"{REAL}/flowers5/flowers5_val.tar"], holdout=Holdout(0))["val"].image(0)
    part = min(image.shape[1] // 2, image.shape[2] // 3)
    return image[:, : 2 * part, : 3 * part]


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_transformers_and_timm_show_images_as_we_do(
    interpolation: str, crop_pct: float, crop_mode: str, tmp_path: Path
) -> None:
    """One image through their own preparation, by the folders that we write, and through ours of all three."""
    prepared = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    save_model(tiny("mean"), tmp_path / "own", provenance={}, extra=prepared)
    pixels = photograph()
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    ours = classifier_view((32, 32), describe(tmp_path / "own"))(pixels, np.random.default_rng(0)).image
    for to in ("huggingface", "timm"):
        assert convert(tmp_path / "own", tmp_path / to, to) == []  # type: ignore[arg-type]
        again = classifier_view((32, 32), describe(tmp_path / to))(pixels, np.random.default_rng(0)).image
        assert torch.equal(again, ours)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "huggingface")
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(theirs, (ours / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
    network = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    # timm resizes with Pillow, whose rounding is its own.
    assert (transform(picture) - theirs).abs().max() < 3 / 127.5


def test_a_second_final_norm_is_refused(tmp_path: Path) -> None:
    theirs = transformers_model(BeitForMaskedImageModeling, "absolute", vocab_size=50, use_mean_pooling=False)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"unknown beit\.layernorm\.bias, beit\.layernorm\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(("position", "pool"), [("block_bias", "avg"), ("shared_bias", "token"), ("absolute", "avg")])
def test_classifiers_of_timm(position: str, pool: str, tmp_path: Path) -> None:
    theirs = timm.create_model(
        "beit_base_patch16_224",
        num_classes=5,
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        global_pool=pool,
        use_abs_pos_emb=position == "absolute",
        use_rel_pos_bias=position == "block_bias",
        use_shared_rel_pos_bias=position == "shared_bias",
        init_values=POSITIONS[position],
    )
    call = lambda model, images: model(images)  # noqa: E731
    theirs = shaken(theirs).float()
    timm.models.save_for_hf(theirs, tmp_path / "theirs", safe_serialization=True)
    assert_equal_outputs(load_model(tmp_path / "theirs"), theirs, call)
    torch.save({"state_dict": theirs.float().state_dict(), "arch": "beit"}, tmp_path / "alone.pth")
    assert_equal_outputs(load_model(tmp_path / "alone.pth", num_heads=4), theirs, call)
    # What we write in the released layout goes into timm through its own filter for released files.
    convert(tmp_path / "theirs", tmp_path / "ours.pth", "unilm")
    released = torch.load(tmp_path / "ours.pth")
    assert ("blocks.1.attn.relative_position_index" in released["model"]) == (position == "block_bias")
    theirs.load_state_dict(timm.models.beit.checkpoint_filter_fn(released, theirs))
    assert_equal_outputs(load_model(tmp_path / "theirs"), theirs, call)
    convert(tmp_path / "theirs", tmp_path / "ours", "timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert_equal_outputs(load_model(tmp_path / "theirs"), back, call)
    assert back.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]


def test_timm_takes_a_rectangle(tmp_path: Path) -> None:
    model = tiny("mean", image_size=(16, 24), position="block_bias")
    save_model(model, tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "timm", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs((images - 0.5) / 0.5), model(images), rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def dalle() -> tuple[Any, Any]:
    sizes = {"n_hid": 64, "n_blk_per_group": 1, "vocab_size": 512}
    halves = shaken(nn.ModuleList([Encoder(**sizes), Decoder(n_init=16, **sizes)]))
    return halves[0], halves[1]


def save_dalle(dalle: tuple[Any, Any], folder: Path, what: str) -> None:
    folder.mkdir()
    for half, name in zip(dalle, ("encoder.pkl", "decoder.pkl"), strict=True):
        content = half.state_dict() if what == "state dict" else half
        with warnings.catch_warnings():  # the older container keeps the source code, where it finds it
            warnings.simplefilter("ignore")
            torch.save(content, folder / name, _use_new_zipfile_serialization=what != "legacy")


@pytest.mark.parametrize("what", ["zip", "legacy", "state dict"])
def test_tokenizers_of_the_dalle_package(what: str, dalle: tuple[Any, Any], tmp_path: Path) -> None:
    encoder, decoder = dalle
    save_dalle(dalle, tmp_path / "dalle", what)
    ours: Any = load_tokenizer(tmp_path / "dalle")
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = encoder(map_pixels(images))
        tokens = logits.argmax(dim=1)
        assert tokens.unique().numel() > 1
        one_hot = nn.functional.one_hot(tokens, 512).permute(0, 3, 1, 2).float()
        expected = unmap_pixels(decoder(one_hot).float()[:, :3].sigmoid())
        scale = float(logits.abs().max())
        # The contract's bound for float32 logits, here of their scale: the order of sums, hence the last digits, is
        # that of the number of threads.
        torch.testing.assert_close(ours.logits(images) / scale, logits / scale, rtol=0, atol=2e-5)
        assert torch.equal(ours.encode(images), tokens)
        torch.testing.assert_close(ours.decode(tokens), expected, rtol=0, atol=2e-5)
    about = describe(tmp_path / "dalle")
    assert (about["format"], about["vocab_size"], about["architecture"]["code_width"]) == ("dalle", 512, 16)
    # What we write goes into the package's modules.
    convert(tmp_path / "dalle", tmp_path / "ours", "dalle")
    encoder.load_state_dict(torch.load(tmp_path / "ours/encoder.pkl"))
    decoder.load_state_dict(torch.load(tmp_path / "ours/decoder.pkl"))


def test_a_tokenizer_of_ours_runs_in_the_dalle_package(tmp_path: Path) -> None:
    model = shaken(DiscreteVAE(DiscreteVAEConfig(vocab_size=512, width=64, blocks_per_group=1)))
    save_model(model, tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "dalle", "dalle")
    encoder = Encoder(n_hid=64, n_blk_per_group=1, vocab_size=512)
    encoder.load_state_dict(torch.load(tmp_path / "dalle/encoder.pkl"))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = encoder(map_pixels(images))
        torch.testing.assert_close(model.logits(images), logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))


def plain(layout: str) -> tuple[nn.Sequential, nn.Sequential, nn.Embedding]:
    """The two published orders of layers: 3 strides of width 8, 32 codes of 16."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
                nn.Conv2d(8, 8, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + x  # type: ignore[no-any-return]

    def down(n_in: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(n_in, 8, 4, stride=2, padding=1), nn.ReLU())

    def up(n_in: int) -> nn.Sequential:
        return nn.Sequential(nn.ConvTranspose2d(n_in, 8, 4, stride=2, padding=1), nn.ReLU())

    if layout == "unilm":
        encoder = [layer for n_in in (3, 8, 8) for layer in (down(n_in), Residual())]
        decoder = [layer for n_in in (16, 8, 8) for layer in (up(n_in), Residual())]
    else:
        encoder = [*(down(n_in) for n_in in (3, 8, 8)), Residual(), Residual()]
        decoder = [nn.Conv2d(16, 8, 1), Residual(), Residual(), *(up(8) for _ in range(3))]
    return (
        nn.Sequential(*encoder, nn.Conv2d(8, 32, 1)),
        nn.Sequential(*decoder, nn.Conv2d(8, 3, 1)),
        nn.Embedding(32, 16),
    )


@pytest.mark.parametrize("layout", ["unilm", "dalle-pytorch"])
def test_plain_tokenizers(layout: str, tmp_path: Path) -> None:
    encoder, decoder, codebook = plain(layout)
    theirs = shaken(nn.ModuleDict({"encoder": encoder, "decoder": decoder, "codebook": codebook}))
    file = tmp_path / ("pytorch_model.bin" if layout == "unilm" else "vae.pt")
    extra = {} if layout == "unilm" else {"hparams": {"image_size": 64, "num_layers": 3}}
    torch.save({"weights": theirs.state_dict(), **extra}, file)
    ours: Any = load_tokenizer(tmp_path if layout == "unilm" else file)
    assert (ours.vocab_size, ours.stride) == (32, 8)
    assert ours.image_size == ((112, 112) if layout == "unilm" else (64, 64))
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = encoder((images - 0.5) / 0.5)
        torch.testing.assert_close(ours.logits(images), logits)
        tokens = logits.argmax(1)
        assert torch.equal(ours.encode(images), tokens)
        assert torch.equal(ours.encode((images * 255).byte()), ours.encode((images * 255).byte() / 255))
        expected = decoder(codebook(tokens).permute(0, 3, 1, 2)) * 0.5 + 0.5
        torch.testing.assert_close(ours.decode(tokens), expected.clamp(0, 1))
    with pytest.raises(UserError, match="cannot hold a PlainDVAE"):
        convert(file, tmp_path / "x", "dalle")
    assert (describe(file)["format"], describe(file)["tokenizer_kind"]) == ("plain_dvae", "plain")
    convert(file, tmp_path / "own", "beit")
    own: Any = load_tokenizer(tmp_path / "own")
    assert (own.config, own.image_size) == (ours.config, ours.image_size)
    torch.testing.assert_close(own.logits(images), ours.logits(images), rtol=0, atol=0)
    with torch.no_grad():  # DALLE-pytorch's own training pass, of the same noise
        uniform = torch.rand(2, 2, 3, 32)
        relaxed = ((logits.movedim(1, -1) - torch.log(-torch.log(uniform))) / 0.5).softmax(-1).movedim(-1, 1)
        sampled = torch.einsum("bnhw,nd->bdhw", relaxed, codebook.weight)
        assert all(map(torch.allclose, ours(images, 0.5, uniform), (logits, decoder(sampled))))
