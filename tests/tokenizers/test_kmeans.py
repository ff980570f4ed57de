"""k-means tokenizers: the codebook against closed forms, tokens against an oracle, what decoding shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.tokenizer import PatchKMeansConfig
from beit.models.encoder import BeitEncoder
from beit.pixels import cut_patches, to_unit
from beit.tokenizers.base import CategoricalTokenizer
from beit.tokenizers.kmeans import FeatureKMeans, PatchKMeans, kmeans
from beit.tokenizers.objective import reconstruction_sums


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(pixel_norm: str = "none", vocab_size: int = 12) -> PatchKMeans:
    """A tokenizer of 4x4 patches, fit to noise."""
    config = PatchKMeansConfig(vocab_size=vocab_size, stride=4, pixel_norm=pixel_norm, image_size=(16, 16))  # type: ignore[arg-type]
    model = PatchKMeans(config)
    images = torch.rand(40, 3, 16, 16, generator=seeded(1))
    model.fit(model.read(images).flatten(0, 1), cut_patches(images, 4).flatten(0, 1), seeded())
    return model


def test_what_is_no_image_is_refused() -> None:
    images = torch.rand(2, 3, 16, 16, generator=seeded(4))
    for wrong in (255 * images, (255 * images).long()):
        with pytest.raises(UserError, match=r"give uint8, or floats in \[0, 1\]"):
            fitted().eval().encode(wrong)


def test_separable_points_are_separated() -> None:
    truth = torch.eye(8)[:5] * 10
    labels = torch.arange(500) % 5
    points = truth[labels] + torch.randn(500, 8, generator=seeded(2)) * 0.1
    centers, tokens = kmeans(points, 5, seeded())
    means = torch.stack([points[labels == label].mean(dim=0) for label in range(5)])
    order = torch.cdist(means, centers).argmin(dim=1)
    torch.testing.assert_close(centers[order], means)
    assert torch.equal(order[labels], tokens)
    assert torch.equal(kmeans(points, 5, seeded())[0], centers)


def test_no_centre_is_left_unused_and_equal_points_are_borne() -> None:
    points = torch.randn(300, 3, generator=seeded(3))
    centers, tokens = kmeans(points, 60, seeded())
    assert len(tokens.unique()) == 60
    assert torch.cdist(points, centers).argmin(dim=1).eq(tokens).float().mean() > 0.99
    same, tokens = kmeans(torch.ones(20, 3), 4, seeded())
    assert torch.isfinite(same).all()
    assert len(tokens.unique()) == 1


@pytest.mark.parametrize("pixel_norm", ["none", "patch"])
def test_a_token_is_the_nearest_centre(pixel_norm: str) -> None:
    model = fitted(pixel_norm)
    images = torch.randint(256, (3, 3, 8, 12), dtype=torch.uint8, generator=seeded(4))
    vectors = model.scale(cut_patches(to_unit(images), 4).flatten(2).double())
    distances = torch.cdist(vectors, model.centers.double()).square()
    tokens = model.encode(images)
    assert torch.equal(tokens, distances.argmin(dim=2).view(3, 2, 3))
    assert torch.equal(model.encode(images / 255), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(images), tokens)


def test_decoding_shows_the_mean_patch_of_a_token() -> None:
    for pixel_norm in ("none", "patch"):
        model = fitted(pixel_norm)
        images = torch.rand(40, 3, 16, 16, generator=seeded(1))
        tokens, patches = model.encode(images).flatten(), cut_patches(to_unit(images), 4).flatten(0, 1)
        decoded = cut_patches(model.decode(model.encode(images)), 4).flatten(0, 1)
        first = int(tokens[0])
        torch.testing.assert_close(decoded[0], patches[tokens == first].mean(dim=0))


def test_what_is_no_probability_is_never_taken_for_one() -> None:
    model = fitted()
    assert not isinstance(model, CategoricalTokenizer)
    assert reconstruction_sums(model, torch.rand(2, 3, 16, 16)).keys() == {
        *("count", "reconstruction_mae", "cell_mean_mae", "codes")
    }


def test_more_codes_than_patches_are_refused() -> None:
    with pytest.raises(UserError, match="--vocab-size 1000 is more than the 640 patches"):
        fitted(vocab_size=1000)


def test_features_are_compared_by_angle_whatever_the_scale_of_their_channels() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(width=8, depth=3, num_heads=2, patch_size=4, image_size=(16, 16))
    encoder = BeitEncoder(config).eval()
    model = FeatureKMeans(encoder, vocab_size=6, layer=1)
    images = torch.rand(30, 3, 16, 16)
    with torch.no_grad():
        vectors = model.read(images)
    model.fit(vectors.flatten(0, 1), cut_patches(images, 4).flatten(0, 1), seeded())
    scaled: Tensor = (vectors - vectors.mean(dim=(0, 1))) / vectors.std(dim=(0, 1), correction=0)
    cosine = torch.nn.functional.normalize(scaled, dim=2)
    expected = torch.cdist(cosine, model.centers).argmin(dim=2).view(30, 4, 4)
    assert torch.equal(model.encode(images), expected)
    assert model.stride == 4
    assert len(expected.unique()) == 6
