"""The discrete VAE: parity with OpenAI's package, tokens, and the objective against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import DiscreteVAEConfig
from beit.config.errors import UserError
from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.dvae import DiscreteVAE, ResidualBlock
from beit.tokenizers.objective import (
    Anneal,
    cell_mean_mae,
    count_codes,
    elbo_loss,
    gumbel_softmax,
    kl_to_uniform,
    logit_laplace_nll,
    map_pixels,
    median_images,
    reconstruction_mae,
    unmap_pixels,
    with_codebook_usage,
)

TINY = DiscreteVAEConfig(vocab_size=37, width=8, stride=4, blocks_per_group=1, code_width=12, image_size=(16, 16))


@pytest.fixture
def tiny() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(TINY)


def one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    return F.one_hot(tokens, vocab_size).movedim(-1, 1).float()


def openai_names(module: nn.Module) -> dict[str, Tensor]:
    return {name.removesuffix("eight").removesuffix("ias"): tensor for name, tensor in module.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------
# Architecture.


def test_equals_the_dall_e_package() -> None:
    dall_e = pytest.importorskip("dall_e")
    torch.manual_seed(0)
    config = DiscreteVAEConfig(vocab_size=512, width=64, blocks_per_group=2, code_width=16)
    ours = DiscreteVAE(config)
    for parameter in ours.parameters():  # larger residual branches and biases than at the start
        nn.init.normal_(parameter, std=3 / math.sqrt(max(parameter[0].numel(), 9)))
    encoder = dall_e.Encoder(n_hid=64, vocab_size=512)
    decoder = dall_e.Decoder(n_hid=64, vocab_size=512, n_init=16)
    encoder.load_state_dict(openai_names(ours.encoder))
    decoder.load_state_dict(openai_names(ours.decoder))

    images = torch.rand(2, 3, 48, 32)
    weights = torch.randn(2, 512, 6, 4).softmax(dim=1)
    with torch.no_grad():
        for mine, theirs in [
            (ours.logits(images), encoder(dall_e.map_pixels(images))),
            (ours.decoder(weights), decoder(weights)),
        ]:
            scale = theirs.abs().max()
            torch.testing.assert_close(mine / scale, theirs / scale, atol=1e-5, rtol=0)
            assert theirs.std() / scale > 0.05
        statistics = decoder(one_hot(ours.encode(images), 512))
        expected = dall_e.unmap_pixels(statistics[:, :3].sigmoid())
        torch.testing.assert_close(ours.decode(ours.encode(images)), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_default_has_the_sizes_of_openai() -> None:
    with torch.device("meta"):
        model = DiscreteVAE(DiscreteVAEConfig())
    for network, parameters, tensors in [(model.encoder, 53_786_240, 74), (model.decoder, 43_829_766, 76)]:
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert len(network.state_dict()) == tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["encoder.blocks.group_1.block_1.res_path.conv_1.weight"] == (64, 256, 3, 3)
    assert shapes["encoder.blocks.group_4.block_1.id_path.weight"] == (2048, 1024, 1, 1)
    assert shapes["decoder.blocks.group_1.block_1.id_path.weight"] == (2048, 128, 1, 1)
    assert shapes["decoder.blocks.output.conv.weight"] == (6, 256, 1, 1)
    gains = [module.gain for module in model.modules() if isinstance(module, ResidualBlock)]
    assert gains == [1 / 64] * 16


def test_initialisation_keeps_the_variance() -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(DiscreteVAEConfig(vocab_size=512, width=64, stride=4))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            expected = 1 / math.sqrt(parameter[0].numel())
            assert parameter.std().item() == pytest.approx(expected, rel=5 / math.sqrt(parameter.numel())), name


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_any_stride(stride: int) -> None:
    config = DiscreteVAEConfig(
        vocab_size=11, width=4, stride=stride, blocks_per_group=1, code_width=3, image_size=(stride, stride)
    )
    tokenizer = DiscreteVAE(config)
    assert isinstance(tokenizer, VisualTokenizer)
    assert len([name for name, _ in tokenizer.encoder.blocks.named_children() if "group" in name]) == math.log2(
        2 * stride
    )
    tokens = tokenizer.encode(torch.rand(2, 3, 3 * stride, 2 * stride))
    assert tokens.shape == (2, 3, 2)
    assert tokens.dtype == torch.int64
    assert tokenizer.decode(tokens).shape == (2, 3, 3 * stride, 2 * stride)


# ------------------------------------------------------------------------------------------------------------
# Tokens and pixels.


def test_tokens_decode_as_their_one_hot_vectors(tiny: DiscreteVAE) -> None:
    nn.init.normal_(tiny.decoder.blocks.input.bias)
    tokens = torch.randint(37, (2, 4, 3))
    assert tiny.codebook.shape == (37, 12)
    torch.testing.assert_close(tiny.decode(tokens), median_images(tiny.decoder(one_hot(tokens, 37))))
    assert 0 <= tiny.decode(tokens).min() < tiny.decode(tokens).max() <= 1


def test_encode_is_the_argmax_of_the_logits_for_bytes_and_floats(tiny: DiscreteVAE) -> None:
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    logits = tiny.logits(images)
    assert logits.shape == (2, 37, 4, 6)
    assert (tiny.encode(images) == logits.argmax(dim=1)).all()
    torch.testing.assert_close(logits, tiny.logits(images / 255))
    assert tiny.double().logits(images).dtype == torch.float64


def test_autocast_leaves_the_layers_beside_tokens_and_pixels_in_float32(tiny: DiscreteVAE) -> None:
    images = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = tiny(images, temperature=1.0)
        logits = tiny.logits(images)
    assert outputs[0].dtype == outputs[1].dtype == torch.float32
    assert (logits != logits.bfloat16()).any()
    torch.testing.assert_close(logits, tiny.logits(images), atol=0.1, rtol=0)


def test_training_pass_reaches_every_parameter(tiny: DiscreteVAE) -> None:
    images = torch.rand(4, 3, 16, 16)
    elbo_loss(images, *tiny(images, temperature=0.5), kl_weight=1.0).loss.backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_images_that_do_not_divide_into_tokens_are_refused(tiny: DiscreteVAE) -> None:
    with pytest.raises(UserError, match="30x32 pixels do not divide into tokens of 4x4"):
        tiny.encode(torch.rand(1, 3, 30, 32))


def test_pixel_map_is_that_of_dall_e() -> None:
    assert map_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])
    images = torch.arange(256, dtype=torch.uint8)
    # The same map as a mean of -31.875 and a standard deviation of 318.75 on bytes.
    torch.testing.assert_close(map_pixels(images), (images.float() + 31.875) / 318.75)
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images / 255)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


# ------------------------------------------------------------------------------------------------------------
# Objective.


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -1.5), (-2.0, 0.7)])
def test_logit_laplace_is_a_density(mean: float, log_scale: float) -> None:
    """Integrated over the logit t of x, in which the density has no poles: dx = x (1 - x) dt."""
    t = torch.linspace(-30, 30, 400_001, dtype=torch.float64)
    pixels = t.sigmoid()
    statistics = torch.tensor([mean, log_scale], dtype=torch.float64)[None, :, None, None].expand(1, 2, 1, t.numel())
    density = (-logit_laplace_nll(pixels[None, None, None], statistics)).exp().flatten()
    assert torch.trapezoid(density * pixels * (1 - pixels), t).item() == pytest.approx(1, abs=1e-5)
    # The decoded pixel sigmoid(mean) is the median.
    below = t <= mean
    half = torch.trapezoid((density * pixels * (1 - pixels))[below], t[below]).item()
    assert half == pytest.approx(0.5, abs=1e-3)


def test_kl_has_its_closed_forms() -> None:
    vocab_size = 64
    uniform = torch.full((2, vocab_size, 3, 4), 7.0)
    assert kl_to_uniform(uniform).shape == (2, 3, 4)
    torch.testing.assert_close(kl_to_uniform(uniform), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    certain = 200 * one_hot(torch.randint(vocab_size, (2, 3, 4)), vocab_size)
    torch.testing.assert_close(kl_to_uniform(certain), torch.full((2, 3, 4), math.log(vocab_size)))
    logits = torch.randn(2, vocab_size, 3, 4)
    categorical = torch.distributions.Categorical(logits=logits.movedim(1, -1))
    expected = math.log(vocab_size) - categorical.entropy()
    torch.testing.assert_close(kl_to_uniform(logits), expected)
    # Half of the codes, equally likely: one bit.
    half = torch.zeros(1, vocab_size, 1, 1)
    half[:, ::2] = -torch.inf
    half = half.clamp_min(-1e4)
    assert kl_to_uniform(half).item() == pytest.approx(math.log(2), rel=1e-5)


def test_beta_means_the_same_at_any_batch_size_and_is_beta_over_192_at_stride_8() -> None:
    """The known bug: `F.kl_div(..., "batchmean")` against a prior of shape (1,) multiplies the KL by the batch."""
    torch.manual_seed(0)
    images, logits = torch.rand(1, 3, 16, 24), torch.randn(1, 50, 2, 3)
    statistics = torch.randn(1, 6, 16, 24)
    one = elbo_loss(images, logits, statistics, kl_weight=6.6)
    eight = elbo_loss(*(x.repeat(8, 1, 1, 1) for x in (images, logits, statistics)), kl_weight=6.6)
    for single, repeated in zip(one, eight, strict=True):
        torch.testing.assert_close(single, repeated)

    pixels = logit_laplace_nll(map_pixels(images), statistics).mean()
    torch.testing.assert_close(one.loss, pixels + 6.6 / 192 * kl_to_uniform(logits).mean())
    torch.testing.assert_close(one.kl, kl_to_uniform(logits).sum())
    assert elbo_loss(images, logits, statistics, kl_weight=0.0).loss.item() == pytest.approx(pixels.item())


def test_elbo_identity_of_the_second_stage() -> None:
    """Paper equations 2 and 3: for a one-hot q, KL(q(z | x), p(z | x~)) = -log p(z^ | x~), the BEiT loss."""
    torch.manual_seed(0)
    tokens, prior = torch.randint(50, (2, 3, 4)), torch.randn(2, 50, 3, 4).log_softmax(dim=1)
    posterior = one_hot(tokens, 50)
    divergence = F.kl_div(prior, posterior, reduction="none").sum(dim=1)
    torch.testing.assert_close(divergence, F.cross_entropy(prior, tokens, reduction="none"))
    # With the uniform prior of the first stage it is ln V, the most that `kl_to_uniform` can be.
    torch.testing.assert_close(kl_to_uniform(300 * posterior), torch.full((2, 3, 4), math.log(50)))


def test_gumbel_softmax_samples_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])[None, :, None, None].expand(1, -1, 200, 200).bfloat16()
    sample = gumbel_softmax(logits, temperature=0.05)
    assert sample.dtype == torch.float32
    torch.testing.assert_close(sample.sum(dim=1), torch.ones(1, 200, 200))
    frequency = torch.bincount(sample.argmax(dim=1).flatten(), minlength=4) / 40_000
    torch.testing.assert_close(frequency, logits[0, :, 0, 0].float().softmax(0), atol=0.01, rtol=0)
    assert sample.amax(dim=1).mean() > 0.95  # nearly one-hot
    assert gumbel_softmax(logits, temperature=100.0).amax(dim=1).mean() < 0.3  # nearly uniform


def test_schedules_are_cosines_of_the_step() -> None:
    for start, end, steps in [(1.0, 1 / 16, 150_000), (0.0, 6.6, 5_000)]:
        schedule = Anneal(start, end, steps)
        assert schedule(0) == start
        assert schedule(steps // 2) == pytest.approx((start + end) / 2)
        assert schedule(steps // 4) == pytest.approx(end + (start - end) * (2 + math.sqrt(2)) / 4)
        assert schedule(steps) == schedule(10 * steps) == pytest.approx(end)
    assert Anneal(1.0, 1 / 16, 0)(0) == 1 / 16


# ------------------------------------------------------------------------------------------------------------
# Yardsticks.


def test_cell_mean_is_perfect_on_flat_cells_and_half_on_a_chessboard() -> None:
    images = torch.rand(2, 3, 4, 5)
    assert cell_mean_mae(F.interpolate(images, scale_factor=4), stride=4).item() == pytest.approx(0, abs=1e-6)
    chessboard = (255 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)).byte().expand(1, 3, 8, 8)
    assert cell_mean_mae(chessboard, stride=4).item() == pytest.approx(0.5)
    assert reconstruction_mae(chessboard, torch.zeros(1, 3, 8, 8)).item() == pytest.approx(0.5)


def test_codebook_usage() -> None:
    counts = count_codes(torch.tensor([[0, 0, 3, 3], [1, 1, 5, 5]]), vocab_size=8)
    assert counts.tolist() == [2, 2, 0, 2, 0, 2, 0, 0]
    assert with_codebook_usage({"codes": counts}) == {"perplexity": pytest.approx(4), "codes_used": 4}
    assert with_codebook_usage({"codes": torch.tensor([9, 0, 0])})["perplexity"] == pytest.approx(1)
