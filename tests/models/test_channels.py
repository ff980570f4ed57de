"""Models and tokenizers of images with other channels than RGB: shapes, what they learn from, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import beit
from beit.checkpoints.own import read_description, save_model
from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
from beit.config.errors import UserError
from beit.config.tokenizer import FiniteScalarVAEConfig, PatchKMeansConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.models.windows import whole_image
from beit.pixels import cut_patches, to_unit
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.fsq import FiniteScalarVAE
from beit.tokenizers.kmeans import FeatureKMeans, PatchKMeans
from beit.tokenizers.objective import cell_mean_mae, elbo_loss, reconstruction_mae

BANDS = 13


def images(count: int = 2, channels: int = BANDS) -> torch.Tensor:
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def encoder(channels: int = BANDS) -> BeitEncoder:
    mean = tuple(0.1 + 0.8 * index / channels for index in range(channels))
    return BeitEncoder(
        EncoderConfig(
            patch_size=4, image_size=(16, 16), width=16, depth=2, num_heads=2, pixel_mean=mean, pixel_std=mean
        )
    )


def tokenizers() -> list[VisualTokenizer]:
    small = {"stride": 4, "width": 8, "blocks_per_group": 1, "code_width": 8, "image_size": (16, 16)}
    by_patch = PatchKMeans(PatchKMeansConfig(vocab_size=6, stride=4, image_size=(16, 16), channels=BANDS))
    by_feature = FeatureKMeans(encoder().eval(), 6, 1)
    for model in (by_patch, by_feature):
        with torch.no_grad():
            both = model.read(images(8)), cut_patches(to_unit(images(8)), 4)
        vectors, patches = (x.flatten(0, 1) for x in both)
        model.fit(vectors, patches, torch.Generator().manual_seed(0))
    return [
        by_patch,
        by_feature,
        DiscreteVAE(DiscreteVAEConfig(vocab_size=6, channels=BANDS, **small)),  # type: ignore[arg-type]
        FiniteScalarVAE(FiniteScalarVAEConfig(vocab_size=6, levels=(3, 2), channels=BANDS, **small)),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("kind", range(4), ids=["kmeans", "features", "dvae", "fsq"])
def test_every_kind_of_tokenizer_takes_any_channels_and_is_kept(kind: int, tmp_path: Path) -> None:
    model = tokenizers()[kind].eval()
    save_model(model, tmp_path, provenance={})
    loaded = beit.load_tokenizer(tmp_path)
    tokens = model.encode(images())
    assert torch.equal(loaded.encode(images()), tokens) and tokens.shape == (2, 4, 4)
    assert loaded.decode(tokens).shape == (2, BANDS, 16, 16)
    assert len(read_description(tmp_path)["pixel_mean"]) == BANDS


def test_the_likelihood_is_that_of_every_channel() -> None:
    model = tokenizers()[2]
    assert isinstance(model, DiscreteVAE)
    logits, statistics = model(images(), 1.0)
    assert statistics.shape == (2, 2 * BANDS, 16, 16)
    loss = elbo_loss(images(), logits, statistics, 0.0)
    assert float(loss.loss.detach()) == pytest.approx(float(loss.nll.detach()) / (BANDS * 16 * 16))
    loss.loss.backward()
    weight = model.encoder.blocks.get_submodule("input").weight
    assert isinstance(weight, nn.Parameter) and weight.grad is not None
    assert weight.grad.abs().sum(dim=(0, 2, 3)).min() > 0
    assert reconstruction_mae(images(), model.decode(model.encode(images()))) < 1
    assert cell_mean_mae(images(), 4) > 0


def test_models_take_any_channels_and_are_kept(tmp_path: Path) -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    pixels = MaskedImageModel(encoder(), BANDS * 16).eval()
    assert pixels(images(), mask).shape == pixels.pixel_targets(images(), mask).shape == (16, BANDS * 16)
    segmenter = SemanticSegmenter(encoder(), 3, decoder="pup", layers=[1], channels=8, auxiliary=False).eval()
    assert whole_image(segmenter, images()[..., :15, :13]).shape == (2, 3, 15, 13)
    classifier = ImageClassifier(encoder(), 3, "mean").eval()
    for number, model in enumerate((segmenter, classifier)):
        save_model(model, tmp_path / str(number), provenance={})
        assert torch.equal(beit.load_model(tmp_path / str(number))(images()), model(images()))
    changed = images()
    changed[:, 12] = 0
    assert not torch.equal(classifier(changed), classifier(images()))


def test_other_channels_than_a_models_are_refused() -> None:
    with pytest.raises(UserError, match=r"give \(batch, 13, height, width\)"):
        encoder()(images(channels=3))
    with pytest.raises(UserError, match="--pixel-mean has 2 channels, --pixel-std 3"):
        EncoderConfig(pixel_mean=(0.5, 0.5))


@pytest.mark.parametrize("to", ["unilm", "timm", "huggingface"])
def test_formats_of_rgb_models_refuse_others(to: str, tmp_path: Path) -> None:
    save_model(ImageClassifier(encoder(), 3, "mean"), tmp_path / "model", provenance={})
    with pytest.raises(UserError, match=r"13 channels.*choose --to beit"):
        beit.checkpoints.convert(tmp_path / "model", tmp_path / "out", to=to)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
