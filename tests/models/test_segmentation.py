"""Contracts of segmentation: decoders against transformers and closed forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BeitConfig, BeitForSemanticSegmentation

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.models.decoders import ConvNorm, FeaturePyramid, PupHead
from beit.models.encoder import BeitEncoder
from beit.models.segmentation import SemanticSegmenter, released_layers

pytestmark = pytest.mark.slow

Tiny = Callable[..., EncoderConfig]
Shaken = Callable[[nn.Module], nn.Module]


def segmenter(config: EncoderConfig, **changes: Any) -> SemanticSegmenter:
    options: dict[str, Any] = {"decoder": "upernet", "layers": [0, 1, 1, 2], "channels": 32, "dropout": 0.0}
    return SemanticSegmenter(BeitEncoder(config), 5, **{**options, **changes})


def shaken_norms(model: nn.Module) -> None:
    """Running statistics that are not trivial either."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)


_IN_MEMORY_5 = [
    (r"^fpn\.fpn1\.conv_transpose1", "pyramid.fpn1.0"),
    (r"^fpn\.fpn1\.normalization", "pyramid.fpn1.1"),
    (r"^fpn\.fpn1\.conv_transpose2", "pyramid.fpn1.3"),
    (r"^fpn\.fpn2", "pyramid.fpn2.0"),
    (r"psp_modules\.blocks\.(\d)\.conv", r"psp_modules.\1.1"),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"psp_bottleneck", "bottleneck"),
    (r"classifier", "conv_seg"),
]


@pytest.mark.parametrize("training", [False, True])
def test_upernet_and_its_auxiliary_head_are_those_of_transformers(training: bool, tiny: Tiny, shaken: Shaken) -> None:
    """Outputs, gradients and running statistics, fed with the same features (float64)."""
    config = BeitConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_labels=5, out_indices=[1, 2, 3, 4]
    )
    theirs = shaken(BeitForSemanticSegmentation(config).double())
    assert isinstance(theirs, BeitForSemanticSegmentation)
    shaken_norms(theirs)
    ours = segmenter(tiny(patch_size=16, image_size=(48, 80))).double()
    weights = {}
    for key, tensor in theirs.state_dict().items():
        if not key.startswith("beit."):
            for pattern, name in _IN_MEMORY_5:
                key = re.sub(pattern, name, key)
            weights[key] = tensor.clone()
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith("encoder.") for key in missing)

    features = [torch.randn(2, 32, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    copies = [x.detach().clone().requires_grad_() for x in features]
    ours.train(training)
    theirs.train(training)
    assert ours.pyramid is not None and ours.auxiliary_head is not None
    pyramid, pyramid_of_theirs = ours.pyramid(features), theirs.fpn(tuple(copies))
    results = [ours.decode_head(pyramid), ours.auxiliary_head(pyramid[2])]
    expected = [theirs.decode_head(pyramid_of_theirs), theirs.auxiliary_head(pyramid_of_theirs)]
    for result, reference in zip(results, expected, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(result, reference, rtol=1e-9, atol=1e-9)
    for outputs in (results, expected):
        torch.stack([x.square().mean() for x in outputs]).sum().backward()
    for x, copy in zip(features, copies, strict=True):
        torch.testing.assert_close(x.grad, copy.grad, rtol=1e-9, atol=1e-9)
    own = dict(ours.named_buffers())
    for key, tensor in theirs.named_buffers():
        if key.startswith("decode_head") and "running_var" in key:
            for pattern, name in _IN_MEMORY_5:
                key = re.sub(pattern, name, key)
            torch.testing.assert_close(own[key], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [False, True])
def test_pup_doubles_after_every_convolution(training: bool, shaken: Shaken) -> None:
    """SETR-PUP as it is written: norm, (convolution, norm, ReLU, bilinear x2) four times, classes."""
    head = shaken(PupHead(32, 16, 5, num_stages=4, transposed=False, dropout=0.0, layer_norm_eps=1e-6).double())
    assert isinstance(head, PupHead)
    shaken_norms(head)
    head.train(training)
    features = torch.randn(2, 32, 3, 2, dtype=torch.float64)
    plain = F.layer_norm(features.movedim(1, 3), (32,), head.norm.weight, head.norm.bias, 1e-6).movedim(3, 1)
    for stage in head.up_convs:
        assert isinstance(stage, ConvNorm)
        plain = F.interpolate(stage(plain), scale_factor=2, mode="bilinear")
    plain = head.conv_seg(plain)
    assert plain.shape == (2, 5, 48, 32)
    resized = F.interpolate(head(features), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(resized, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("patch_size", "stages"), [(4, 2), (8, 3), (14, 3), (16, 4)])
@pytest.mark.parametrize("transposed", [False, True])
def test_pup_reaches_the_pixels_from_any_patch(patch_size: int, stages: int, transposed: bool, tiny: Tiny) -> None:
    config = tiny(patch_size=patch_size, image_size=(2 * patch_size, 2 * patch_size))
    model = segmenter(config, decoder="pup", layers=[0, 1, 2], channels=8, transposed=transposed)
    assert len(model.decode_head.up_convs) == stages  # type: ignore[arg-type]
    images = torch.randint(256, (2, 3, 3 * patch_size, patch_size), dtype=torch.uint8)
    outputs = model(images, auxiliary=True)
    assert [x.shape for x in outputs] == [(2, 5, 3 * patch_size, patch_size)] * 3
    # Every weight is trained by the sum of the losses, so a distributed run finds none unused.
    torch.stack([x.square().mean() for x in outputs]).sum().backward()
    assert all(x.grad is not None for x in model.parameters())
    torch.testing.assert_close(model.eval()(images), model(images, auxiliary=True)[0])


@pytest.mark.parametrize(("patch_size", "sides"), [(4, (4, 2, 1, 1)), (8, (8, 4, 2, 1)), (16, (16, 8, 4, 2))])
def test_the_pyramid_begins_at_four_pixels(patch_size: int, sides: tuple[int, ...]) -> None:
    pyramid = FeaturePyramid(8, patch_size)
    levels = pyramid([torch.randn(1, 8, 4, 4) for _ in range(4)])
    assert [x.shape[-1] for x in levels] == list(sides)
    thin = pyramid([torch.randn(1, 8, 4, 1) for _ in range(4)])
    assert thin[3].shape[-1] == 1


@pytest.mark.parametrize("auxiliary", [False, True])
def test_upernet_takes_rectangles_and_gives_logits_of_their_size(auxiliary: bool, tiny: Tiny) -> None:
    model = segmenter(tiny(), auxiliary=auxiliary).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(2, 3, 24, 40).to(memory_format=torch.channels_last)
    outputs = model(images, auxiliary=True)
    assert [x.shape for x in outputs] == [(2, 5, 24, 40)] * (1 + auxiliary)
    torch.stack([x.square().mean() for x in outputs]).sum().backward()
    assert all(x.grad is not None for x in model.parameters())
    with torch.no_grad():
        exact = model.eval()(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    assert model.double()(images.double()).dtype == torch.float64


def test_a_new_decoder_leaves_its_encoder_alone_and_starts_as_mmsegmentation_does(tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny(patch_size=16, image_size=(64, 64)))
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    model = SemanticSegmenter(encoder, 150, decoder="upernet", layers=[0, 1, 2, 2], channels=32)
    SemanticSegmenter(encoder, 150, decoder="pup", layers=[2], channels=32, transposed=True)
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    weights = dict(model.named_parameters())
    for key, std in {
        "decode_head.fpn_bottleneck.conv.weight": (2 / (32 * 9)) ** 0.5,
        "decode_head.psp_modules.0.1.conv.weight": (2 / 32) ** 0.5,
        "auxiliary_head.convs.0.conv.weight": (2 / (256 * 9)) ** 0.5,
        "decode_head.conv_seg.weight": 0.01,
        "pyramid.fpn2.0.weight": 1 / (4 * 32) ** 0.5 / 3**0.5,
    }.items():
        assert weights[key].std().item() == pytest.approx(std, rel=0.15), key
    assert not weights["decode_head.conv_seg.bias"].any()


def test_the_layer_groups_of_a_segmenter_are_the_encoders_and_its_decoder(tiny: Tiny) -> None:
    model = segmenter(tiny())
    groups = [[id(x) for x in group] for group in model.layer_groups()]
    assert groups[:-1] == [[id(x) for x in group] for group in model.encoder.layer_groups()[:-1]]
    assert sorted(x for group in groups for x in group) == sorted(id(x) for x in model.parameters())


def test_the_released_base_model_has_as_many_parameters_as_in_transformers() -> None:
    with torch.device("meta"):
        encoder = BeitEncoder(EncoderConfig(image_size=(640, 640), position="block_bias"))
        layers = released_layers("upernet", 12)
        model = SemanticSegmenter(encoder, 150, decoder="upernet", layers=layers, channels=768)
    assert sum(x.numel() for x in model.parameters()) == 163_407_980


def test_released_layers() -> None:
    assert released_layers("upernet", 12) == (3, 5, 7, 11)
    assert released_layers("upernet", 24) == (7, 11, 15, 23)
    assert released_layers("pup", 12) == (2, 5, 8, 11)
    assert released_layers("pup", 24) == (9, 14, 19, 23)
    for decoder in ("pup", "upernet"):
        for depth in range(1, 40):
            layers = released_layers(decoder, depth)  # type: ignore[arg-type]
            assert list(layers) == sorted(layers) and layers[0] >= 0 and layers[-1] == depth - 1


@pytest.mark.parametrize(
    "changes",
    [{"layers": [0, 1, 2]}, {"layers": [0, 2, 1, 2]}, {"layers": [0, 1, 2, 3]}, {"transposed": True}],
)
def test_a_decoder_that_does_not_fit_is_refused(changes: dict[str, Any], tiny: Tiny) -> None:
    with pytest.raises(UserError):
        segmenter(tiny(), **changes)
