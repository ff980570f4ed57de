"""Contracts of the encoder: shapes, positions, depth, initialisation, and the published sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytest import MonkeyPatch
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.tokenizer import PatchKMeansConfig
from beit.models.encoder import BeitEncoder, init_weights
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.layers import Block, DropPath, PatchEmbed
from beit.tokenizers.kmeans import PatchKMeans

Tiny = Callable[..., EncoderConfig]
Shaken = Callable[[nn.Module], nn.Module]
BASE = EncoderConfig()
LARGE = EncoderConfig(width=1024, depth=24, num_heads=16, layer_scale_init=1e-5)


@pytest.mark.parametrize(
    ("config", "head", "parameters"),
    [
        (BASE, "tokens", 91_965_776),
        (
            dataclasses.replace(BASE, position="absolute", bias="none", layer_scale_init=None),
            "tokens",
            92_089_856,
        ),
        (LARGE, "tokens", 311_534_016),
        (
            dataclasses.replace(LARGE, position="absolute", bias="none", layer_scale_init=None),
            "tokens",
            311_674_880,
        ),
        (dataclasses.replace(BASE, bias="block"), "classes", 86_530_984),
        (dataclasses.replace(LARGE, bias="block"), "classes", 304_430_568),
    ],
)
def test_published_parameter_counts(config: EncoderConfig, head: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = BeitEncoder(config)
        model = MaskedImageModel(encoder, 8192) if head == "tokens" else ImageClassifier(encoder, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint16, torch.bool])
@pytest.mark.parametrize("training", [False, True])
def test_whole_numbers_other_than_bytes_are_refused(tiny: Tiny, dtype: torch.dtype, training: bool) -> None:
    encoder = BeitEncoder(tiny(depth=1)).train(training)
    images = torch.zeros(2, 3, *encoder.config.image_size).to(dtype)
    with pytest.raises(UserError, match=rf"images are of {dtype}; give uint8, or floats in \[0, 1\]"):
        encoder(images)


@pytest.mark.parametrize("value_range", [(0, 4095), (100, 2000, 0, 65535, 40000, 1000)])
@pytest.mark.parametrize("training", [False, True])
def test_sixteen_bits_are_what_the_value_range_says(tiny: Tiny, value_range: Any, training: bool) -> None:
    encoder = BeitEncoder(tiny(depth=1, drop_path_rate=0.0)).train(training)
    encoder.value_range = value_range
    numbers = np.random.default_rng(0).integers(0, 65536, (2, 3, *encoder.config.image_size), dtype=np.uint16)
    black, white = np.array(value_range, dtype=np.float64).reshape(-1, 2).T[:, :, None, None]
    units = np.clip((numbers - black) / (white - black), 0, 1)
    for forward in (encoder, lambda images: encoder.intermediates(images, [0])[0]):
        torch.testing.assert_close(forward(torch.from_numpy(numbers)), forward(torch.from_numpy(units).float()))
    with pytest.raises(UserError, match=r"images are of torch.int32; give uint8"):
        encoder(torch.from_numpy(numbers.astype(np.int32)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_when_judged(tiny: Tiny, value: float) -> None:
    images = torch.zeros(1, 3, *tiny().image_size)
    images[0, 1, 2, 3] = value
    tokenizer = PatchKMeans(PatchKMeansConfig(vocab_size=2, stride=8, image_size=tiny().image_size))
    for forward in (BeitEncoder(tiny(depth=1)).eval(), tokenizer.eval().encode):
        with pytest.raises(UserError, match="images hold numbers that are not finite; give uint8, or floats in"):
            forward(images)


@pytest.mark.parametrize("wrong", [lambda x: 255 * x, lambda x: (x - 0.5) / 0.25, lambda x: x + 0.3])
def test_floats_that_are_no_images_are_refused_when_judged(
    tiny: Tiny, monkeypatch: MonkeyPatch, wrong: Callable[[Tensor], Tensor]
) -> None:
    encoder = BeitEncoder(tiny(depth=1)).eval()
    images = torch.linspace(0, 1, 2 * 3 * math.prod(encoder.config.image_size)).view(2, 3, *encoder.config.image_size)
    for fits in (images, 1.5 * images - 0.25, (255 * images).to(torch.uint8)):
        assert encoder(fits).isfinite().all()
    with pytest.raises(UserError, match=r"images run from .*give uint8, or floats in \[0, 1\]"):
        encoder(wrong(images))
    encoder.train()(wrong(images))  # costs nothing in training
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    encoder.eval()(wrong(images))  # nor in a graph


def test_state_dict_has_the_official_names(tiny: Tiny) -> None:
    keys = set(BeitEncoder(tiny(depth=1)).state_dict())
    block = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "gamma_1", "gamma_2"}
    block |= {"attn.q_bias", "attn.v_bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"}
    block |= {"mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}
    stem = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    blocks = {f"blocks.0.{name}" for name in block}
    assert keys == stem | blocks | {"rel_pos_bias.relative_position_bias_table"}
    keys = set(BeitEncoder(tiny(depth=1, position="block_bias")).state_dict())
    assert keys == stem | blocks | {"blocks.0.attn.relative_position_bias_table"}
    keys = set(BeitEncoder(tiny(depth=1, position="absolute")).state_dict())
    assert keys == stem | blocks | {"pos_embed"}


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ({}, ("none", "shared")),
        ({"position": "block_bias"}, ("none", "block")),
        ({"position": "absolute"}, ("absolute", "none")),
        ({"position": "none"}, ("none", "none")),
        ({"position": "sincos"}, ("sincos", "none")),
        ({"position": "absolute", "bias": "shared"}, ("absolute", "shared")),
        ({"bias": "block"}, ("none", "block")),
        ({"bias": "none"}, ("none", "none")),
    ],
)
def test_two_knobs_of_positions_and_the_older_one(stated: dict[str, Any], meant: tuple[str, str]) -> None:
    config = EncoderConfig(**stated)
    assert (config.position, config.bias) == meant
    assert EncoderConfig(**dataclasses.asdict(config)) == config
    encoder = BeitEncoder(dataclasses.replace(config, width=8, depth=1, num_heads=1))
    assert (encoder.pos_embed is not None) == (meant[0] == "absolute")
    assert (encoder.rel_pos_bias is not None) == (meant[1] == "shared")
    assert (encoder.blocks[0].attn.relative_position_bias_table is not None) == (meant[1] == "block")


@pytest.mark.parametrize("position", ["absolute", "sincos", "none"])
@pytest.mark.parametrize("bias", ["shared", "block", "none"])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_visible_patches_alone_are_all_patches_with_the_hidden_shut_out(
    position: str, bias: str, size: tuple[int, int], tiny: Tiny, shaken: Shaken, monkeypatch: MonkeyPatch
) -> None:
    encoder = shaken(BeitEncoder(tiny(position=position, bias=bias)).double())
    assert isinstance(encoder, BeitEncoder)
    images = torch.rand(3, 3, *size, dtype=torch.float64)
    grid = encoder.grid_of(images)
    places = torch.rand(3, math.prod(grid)).argsort(dim=1)[:, :5]
    seen = encoder.transform(encoder.embed(images, places), grid, places)

    tokens = torch.cat([torch.zeros(3, 1, dtype=torch.int64), 1 + places], dim=1)
    keys = torch.full((3, 1 + math.prod(grid)), -math.inf, dtype=torch.float64).scatter(1, tokens, 0)
    biases = encoder._blocks_and_biases

    def shut(grid: tuple[int, int], places: None) -> Iterator[tuple[Block, Tensor]]:
        for block, bias in biases(grid):
            yield block, keys[:, None, None] + (0 if bias is None else bias)

    monkeypatch.setattr(encoder, "_blocks_and_biases", shut)
    everything = encoder(images)
    expected = everything.gather(1, tokens[..., None].expand(-1, -1, everything.shape[2]))
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-12)


def test_sine_cosine_positions_need_quarters_of_the_width() -> None:
    with pytest.raises(UserError, match="--position sincos needs a --width that is a multiple of 4, not 18"):
        EncoderConfig(position="sincos", width=18, num_heads=1)


@pytest.mark.parametrize("position", ["shared_bias", "block_bias", "absolute", "sincos", "none"])
@pytest.mark.parametrize("size", [(32, 32), (16, 56), (8, 8)])
def test_any_multiple_of_the_patch_size(position: str, size: tuple[int, int], tiny: Tiny, shaken: Shaken) -> None:
    encoder = shaken(BeitEncoder(tiny(position=position)))
    assert isinstance(encoder, BeitEncoder)
    grid = size[0] // 8, size[1] // 8
    images = torch.rand(2, 3, *size)
    tokens = encoder(images)
    assert tokens.shape == (2, encoder.num_prefix_tokens + math.prod(grid), 32)
    torch.testing.assert_close(tokens, encoder.transform(encoder.embed(images), grid))
    last, first = encoder.intermediates(images, [-1, 0])
    assert last.shape == first.shape == (2, 32, *grid)
    torch.testing.assert_close(last.flatten(2).mT, tokens[:, encoder.num_prefix_tokens :])
    assert not torch.equal(first, last)
    attention = encoder.attention(images, 2)
    assert attention.shape == (2, 4, tokens.shape[1], tokens.shape[1])
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))


def test_attention_is_that_of_the_forward_pass(tiny: Tiny, shaken: Shaken) -> None:
    encoder = shaken(BeitEncoder(tiny(depth=2)))
    assert isinstance(encoder, BeitEncoder)
    images = torch.rand(2, 3, 32, 32)
    block: Any = encoder.blocks[1]
    inputs_of = {}
    block.attn.proj.register_forward_pre_hook(lambda _, inputs: inputs_of.update(mixed=inputs[0]))
    block.attn.register_forward_pre_hook(lambda _, inputs: inputs_of.update(tokens=inputs[0]))
    encoder(images)
    value = inputs_of["tokens"] @ block.attn.qkv.weight[64:].T + block.attn.v_bias
    value = value.view(2, 17, 4, 8).transpose(1, 2)
    mixed = encoder.attention(images) @ value
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), inputs_of["mixed"], rtol=1e-4, atol=1e-4)


def test_images_that_do_not_fit_are_refused(tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny())
    for shape in [(2, 3, 30, 32), (2, 1, 32, 32), (3, 32, 32)]:
        with pytest.raises(UserError, match="multiples of 8"):
            encoder(torch.rand(shape))
    with pytest.raises(UserError, match="layer 3"):
        encoder.intermediates(torch.rand(1, 3, 32, 32), [3])


def test_uint8_and_float_images_are_the_same_images(tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(encoder(images), encoder(images.float() / 255), rtol=0, atol=2e-5)


def test_patch_embedding_is_the_strided_convolution() -> None:
    embed = PatchEmbed(4, 7).double()
    images = torch.randn(2, 3, 8, 20, dtype=torch.float64)
    torch.testing.assert_close(embed(images), embed.proj(images).flatten(2).mT, rtol=0, atol=1e-12)


def test_drop_path_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, branch = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = drop(branch, 0)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.04)
    drop.noise = torch.tensor([[0.1, 0.9], [0.3, 0.2]])  # below the rate a sample is dropped
    assert [drop(branch[:2], index)[:, 0, 0].gt(0).tolist() for index in (0, 1)] == [[False, True], [True, False]]
    assert drop.eval()(branch, 0) is branch


@pytest.mark.parametrize("layer_scale_init", [0.1, None])
def test_a_block_dropped_for_a_sample_leaves_it_as_it_was(layer_scale_init: float | None, tiny: Tiny) -> None:
    torch.manual_seed(0)
    encoder = BeitEncoder(tiny(depth=2, drop_path_rate=0.5, layer_scale_init=layer_scale_init))
    rates = [block.drop_path.rate for block in encoder.blocks]
    assert rates == [0.0, 0.5]
    first, second = encoder.intermediates(torch.rand(64, 3, 32, 32), [0, 1])
    unchanged = (first == second).flatten(1).all(1).float().mean().item()
    assert unchanged == pytest.approx(0.25, abs=0.15)


@pytest.mark.parametrize("position", ["shared_bias", "block_bias", "absolute"])
def test_frozen_blocks_get_no_gradient_and_drop_nothing(position: str, tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny(position=position, drop_path_rate=0.5, dropout=0.3))
    images = torch.rand(4, 3, 32, 32)
    encoder.freeze(2)
    encoder.eval().train()
    frozen, last = encoder.states(images, [1, 2])
    assert torch.equal(frozen, encoder.states(images, [1])[0]) and not frozen.requires_grad
    assert not torch.equal(last, encoder(images))
    last.sum().backward()
    stem, *blocks, rest = [{x.grad is not None for x in group} for group in encoder.layer_groups()]
    assert [stem, *blocks] == [{False}, {False}, {False}, {True}]
    # Frozen blocks read a shared bias, so that it is kept as well.
    assert rest == ({False} if position == "shared_bias" else set())
    assert not torch.equal(encoder.eval()(images), encoder.train()(images))


@pytest.mark.parametrize("position", ["shared_bias", "block_bias", "absolute"])
def test_recomputed_activations_change_no_gradient(position: str, tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny(position=position, drop_path_rate=0.5, dropout=0.1))
    images = torch.rand(4, 3, 32, 32)

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        torch.manual_seed(1)
        encoder(images).square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

    plain = gradients()
    encoder.checkpoint_activations = True
    for ours, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("position", ["shared_bias", "block_bias", "absolute"])
def test_layer_groups_hold_every_parameter_once_in_order(position: str, tiny: Tiny) -> None:
    encoder = BeitEncoder(tiny(position=position))
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group] for group in encoder.layer_groups()]
    assert len(groups) == 3 + 2
    assert sorted(name for group in groups for name in group) == sorted(names.values())
    assert set(groups[0]) - {"pos_embed"} == {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert ("pos_embed" in groups[0]) == (position == "absolute")
    for k in range(3):
        assert all(name.startswith(f"blocks.{k}.") for name in groups[k + 1])
    shared = ["rel_pos_bias.relative_position_bias_table"] if position == "shared_bias" else []
    assert groups[-1] == shared


def test_initialisation_as_torch_draws_it(tiny: Tiny) -> None:
    """A deviation of .577 / sqrt(inputs) in every layer, the last of a block too; no bias."""
    model = MaskedImageModel(
        BeitEncoder(tiny(width=128)), 512, encoder_sees="visible", num_masked=9, decoder_width=128
    )
    init_weights(model, "torch")
    matrices = {name: x for name, x in model.named_parameters() if x.dim() > 1 and name.endswith("weight")}
    assert {"token_head.weight", "decoder.blocks.0.mlp.fc2.weight"} < matrices.keys()
    for name, weight in matrices.items():
        inputs = weight[0].numel()
        assert weight.abs().max() <= inputs**-0.5
        assert math.isclose(weight.std().item(), (3 * inputs) ** -0.5, rel_tol=0.03), name
    assert not any(x.any() for name, x in model.named_parameters() if name.endswith("bias"))
    assert math.isclose(model.mask_token.std().item(), 0.0108, rel_tol=0.2)


@pytest.mark.parametrize(("cut", "std"), [(1.0, 0.0108), (None, 0.02)])
def test_initialisation(cut: float | None, std: float, tiny: Tiny) -> None:
    torch.manual_seed(0)
    encoder = BeitEncoder(tiny(width=128, position="absolute", layer_scale_init=0.3))
    init_weights(encoder, cut=cut)
    weights = encoder.state_dict()
    for name in (
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.1.attn.qkv.weight",
        "blocks.1.mlp.fc1.weight",
    ):
        assert weights[name].std().item() == pytest.approx(std, rel=0.06), name
        assert (weights[name].abs().max().item() <= 0.02) == (cut == 1), name
    for block in range(3):
        for name in ("attn.proj", "mlp.fc2"):
            scaled = weights[f"blocks.{block}.{name}.weight"].std().item() * math.sqrt(2 * (block + 1))
            assert scaled == pytest.approx(std, rel=0.06)
        assert torch.all(weights[f"blocks.{block}.gamma_1"] == 0.3)
        assert torch.all(weights[f"blocks.{block}.norm1.weight"] == 1)
    assert not any(x.any() for name, x in weights.items() if name.endswith("bias"))
    assert not BeitEncoder(tiny()).state_dict()["rel_pos_bias.relative_position_bias_table"].any()


def test_bfloat16_autocast(tiny: Tiny, shaken: Shaken) -> None:
    model = MaskedImageModel(BeitEncoder(tiny()), 50).train()
    images, mask = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.rand(8, 4, 4) < 0.5
    expected = model.eval()(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(images, mask)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    logits.float().square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(x is not None and x.dtype == torch.float32 and x.isfinite().all() for x in gradients)
