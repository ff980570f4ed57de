"""Contracts of the heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LayerProbes, MaskedImageModel, layer_features, pool_tokens

Tiny = Callable[..., EncoderConfig]
Shaken = Callable[[nn.Module], nn.Module]


@pytest.fixture(params=["all", "visible"])
def model(request: pytest.FixtureRequest, tiny: Tiny, shaken: Shaken) -> MaskedImageModel:
    options = {} if request.param == "all" else {"encoder_sees": "visible", "num_masked": 18}
    model = shaken(MaskedImageModel(BeitEncoder(tiny(image_size=(32, 48))), 20, **options).double())
    assert isinstance(model, MaskedImageModel)
    return model


def masks(batch: int) -> torch.Tensor:
    """18 of 24 patches hidden."""
    return (torch.rand(batch, 24).argsort(dim=1) < 18).view(batch, 4, 6)


def test_rows_are_the_predicted_patches_in_flat_order(model: MaskedImageModel) -> None:
    images = torch.rand(3, 3, 32, 48, dtype=torch.float64)
    mask, predict = masks(3), torch.rand(3, 4, 6) < 0.5
    everywhere = model(images, mask, torch.ones_like(mask))
    assert everywhere.shape == (3 * 24, 20)
    torch.testing.assert_close(model(images, mask), model(images, mask, mask))
    torch.testing.assert_close(model(images, mask, predict), everywhere[predict.flatten()])
    torch.testing.assert_close(model(images, mask.flatten(1), predict.flatten(1)), everywhere[predict.flatten()])
    assert model(images, mask, torch.zeros_like(mask)).shape == (0, 20)


def test_nothing_behind_the_mask_reaches_the_output(model: MaskedImageModel) -> None:
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    mask = masks(2)
    other_mask = mask.roll(1, dims=1)
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    others = torch.where(pixels, torch.rand_like(images), images)
    everywhere = torch.ones_like(mask)
    logits = model(images, mask, everywhere)
    assert torch.equal(logits, model(others, mask, everywhere))
    assert not torch.equal(model(images, other_mask, everywhere), model(others, other_mask, everywhere))
    with torch.no_grad():
        model.mask_token += 1
    assert not torch.equal(logits, model(images, mask, everywhere))


@pytest.mark.parametrize("mask", [torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 6)])
def test_masks_that_do_not_fit_are_refused(mask: torch.Tensor, model: MaskedImageModel) -> None:
    with pytest.raises(ValueError, match="mask is"):
        model(torch.rand(2, 3, 32, 48, dtype=torch.float64), mask)


def test_visible_patches_need_masks_of_one_count(tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny())
    model = MaskedImageModel(encoder, 20, encoder_sees="visible", num_masked=12)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :12] = mask[1, :11] = True
    with pytest.raises(ValueError, match=r"has 11 patches .* num_masked is 12"):
        model(torch.rand(2, 3, 32, 32), mask)
    for options, fault in (
        ({"num_masked": 16}, "num_masked 16 is not between 1 and 15"),
        ({"num_masked": None}, "num_masked None"),
        ({"num_masked": 12, "decoder_width": 48}, "decoder-width 48 is not a multiple of 32"),
    ):
        with pytest.raises(UserError, match=fault):
            MaskedImageModel(encoder, 20, encoder_sees="visible", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("sees", ["all", "visible"])
def test_a_count_of_patches_changes_no_logit_and_is_held_to(sees: Literal["all", "visible"], tiny: Tiny) -> None:
    model = MaskedImageModel(BeitEncoder(tiny()), 20, encoder_sees=sees, num_masked=6).eval()
    mask = torch.rand(3, 16).argsort(dim=1) < 6
    images = torch.rand(3, 3, 32, 32)
    everything = torch.ones_like(mask)
    assert torch.equal(model(images, mask), model(images, mask, count=6))
    assert torch.equal(model(images, mask, everything), model(images, mask, everything, count=16))
    with pytest.raises(ValueError, match="has 6 patches of an image, but count is 7"):
        model(images, mask, count=7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sees", ["all", "visible"])
def test_a_pass_with_a_count_waits_for_no_gpu(sees: Literal["all", "visible"], tiny: Tiny) -> None:
    model = MaskedImageModel(BeitEncoder(tiny()), 20, encoder_sees=sees, num_masked=6).cuda()
    mask, images = (torch.rand(3, 16).argsort(dim=1) < 6).cuda(), torch.rand(3, 3, 32, 32).cuda()
    tokens = torch.randint(20, (3, 4, 4)).cuda()
    model(images, mask, mask, tokens, 6)  # which fills what is kept on the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(images, mask, mask, tokens, 6)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_parameter_has_a_part_in_visible_predictions(tiny: Tiny) -> None:
    """What DistributedDataParallel asks for; in bfloat16 and with recomputation too."""
    encoder = BeitEncoder(tiny(position="absolute", bias="block", drop_path_rate=0.0))
    encoder.checkpoint_activations = True
    model = MaskedImageModel(encoder, 20, encoder_sees="visible", num_masked=12, decoder_depth=2)
    mask = (torch.rand(4, 16).argsort(dim=1) < 12).view(4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(4, 3, 32, 32), mask).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pixel_targets_are_the_normalised_pixels_of_the_predicted_patches(tiny: Tiny) -> None:
    config = tiny(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6))
    model = MaskedImageModel(BeitEncoder(config), 3 * 8**2)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    predict = torch.zeros(2, 4, 4, dtype=torch.bool)
    predict[1, 2, 3] = True
    targets = model.pixel_targets(images, predict)
    assert targets.shape == model(images, predict).shape == (1, 192)
    patch = images[1, :, 16:24, 24:32].float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.pixel_mean, config.pixel_std))
    expected = ((patch - mean) / std).flatten()
    torch.testing.assert_close(targets[0], expected)
    by_patch = model.pixel_targets(images, predict, "patch")[0]
    torch.testing.assert_close(by_patch, (expected - expected.mean()) / (expected.var() + 1e-6).sqrt())
    assert not model.pixel_targets(torch.full_like(images, 50), ~predict, "patch").isnan().any()


def test_a_new_head_leaves_its_encoder_alone_and_starts_small(tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny())
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    classifier = ImageClassifier(encoder, 5)
    MaskedImageModel(encoder, 5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert 0 < classifier.head.weight.abs().max() < 2e-4
    assert classifier(torch.rand(2, 3, 32, 32)).abs().max() < 0.01


def test_the_layer_groups_of_a_classifier_are_the_encoders_and_its_head(tiny: Tiny) -> None:
    classifier = ImageClassifier(BeitEncoder(tiny()), 5)
    groups = [[id(x) for x in group] for group in classifier.layer_groups()]
    encoder = [[id(x) for x in group] for group in classifier.encoder.layer_groups()]
    assert groups[:-1] == encoder[:-1]
    assert sorted(x for group in groups for x in group) == sorted(id(x) for x in classifier.parameters())


def test_a_classifier_decides_in_evaluation_nearly_as_float32_does(tiny: Tiny) -> None:
    """Under autocast the head's product is in float32, for in bfloat16 near classes tie."""
    torch.manual_seed(0)
    encoder = BeitEncoder(tiny(depth=1, drop_path_rate=0.0, layer_scale_init=1e-5))
    classifier = ImageClassifier(encoder, 100, init_scale=50).eval()
    images = torch.rand(2000, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def ties_and_changes(logits: Tensor) -> tuple[int, int]:
        first, second = logits.topk(2).values.unbind(1)
        return int((first == second).sum()), int((logits.argmax(1) != decisions).sum())

    with torch.no_grad():
        decisions = classifier(images).argmax(1)
        with torch.autocast("cpu", torch.bfloat16):
            assert classifier.fc_norm is not None
            pooled = classifier.fc_norm(pool_tokens(encoder, encoder(images), "mean"))
            coarse = classifier.head(pooled)
            ties, changes = ties_and_changes(classifier(images))
        assert ties == 0
        assert min(ties_and_changes(coarse)) > changes


@pytest.mark.parametrize("pool", ["mean", "cls_mean"])
def test_a_probed_layer_becomes_the_classifier_that_it_was(
    pool: Literal["mean", "cls_mean"], tiny: Tiny, shaken: Shaken
) -> None:
    """Features are the encoder's own after each block, and the standardisation is taken into the linear layer."""
    encoder = shaken(BeitEncoder(tiny()).double())
    assert isinstance(encoder, BeitEncoder)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    features = layer_features(encoder, images, range(3), pool)
    assert features.shape == (2, 3, 32 if pool == "mean" else 64)
    for layer, patches in enumerate(encoder.intermediates(images, [0, 1, 2])):
        torch.testing.assert_close(features[:, layer, -32:], patches.mean(dim=(2, 3)))
    if pool == "cls_mean":
        torch.testing.assert_close(features[:, 2, :32], encoder(images)[:, 0])

    probes = LayerProbes(3, features.shape[2], 5).double()
    probes.mean.copy_(torch.randn_like(probes.mean))
    probes.std.copy_(torch.rand_like(probes.std) + 0.5)
    torch.testing.assert_close(probes.probe(encoder, 1, pool)(images), probes(features)[:, 1])
