"""The training objective of the discrete VAE as pure functions, its schedules, and yardsticks of a tokenizer.

Every constant is that of DALL-E (arXiv 2102.12092, appendix A.2-A.3) unless a line says otherwise.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.pixels import to_unit, white
from beit.tokenizers.base import CategoricalTokenizer, VisualTokenizer

LOGIT_LAPLACE_EPS = 0.1
"""Pixels are mapped to [eps, 1 - eps], because the logit of 0 and 1 is infinite."""


class Anneal(NamedTuple):
    """A cosine from `start` to `end` over `steps` optimiser steps, constant afterwards; a function of the step alone.

    >>> Anneal(1.0, 1 / 16, 150_000)(75_000)
    0.53125
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        share = min(step / self.steps, 1.0) if self.steps else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * share))


class ElboLoss(NamedTuple):
    """Means over the batch, in nats."""

    loss: Tensor
    """(nll + kl_weight * kl) / (C H W): what is minimised."""
    nll: Tensor
    """-log p(x | z), summed over the pixels of an image."""
    kl: Tensor
    """KL(q(z | x) || uniform), summed over the positions of an image."""


def map_pixels(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images, float in [0, 1] or uint8, to [eps, 1 - eps] = [0.1, 0.9] in `dtype`."""
    return images.to(dtype) * ((1 - 2 * LOGIT_LAPLACE_EPS) / white(images)) + LOGIT_LAPLACE_EPS


def unmap_pixels(pixels: Tensor) -> Tensor:
    """The inverse of :func:`map_pixels` for floats, clamped to [0, 1]."""
    return ((pixels - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)).clamp(0, 1)


def median_images(statistics: Tensor) -> Tensor:
    """The median of the pixel distribution as images in [0, 1]: (B, 2 C, H, W) -> (B, C, H, W)."""
    return unmap_pixels(statistics.chunk(2, dim=1)[0].sigmoid())


def gumbel_softmax(logits: Tensor, temperature: float | Tensor, uniform: Tensor | None = None) -> Tensor:
    """A relaxed sample of softmax(logits) over dimension 1, always in float32 or wider: (B, V, h, w).

    At temperature 0+ it is a one-hot sample of the exact distribution (Gumbel-max). `uniform`: (B, h, w, V) in
    [0, 1), what it is drawn by; None: torch's generator.
    """
    # Channels last: a softmax along contiguous memory is several times faster on CPU.
    logits = _at_least_float32(logits).movedim(1, -1)
    noise = -torch.log(-torch.log(torch.rand_like(logits) if uniform is None else uniform))
    return F.softmax((logits + noise) / temperature, dim=-1).movedim(-1, 1)


def logit_laplace_nll(pixels: Tensor, statistics: Tensor) -> Tensor:
    """-log p of each mapped pixel (B, C, H, W) in (0, 1) under `statistics` (B, 2 C, H, W): means, then log-scales.

    f(x | mu, b) = exp(-|logit x - mu| / b) / (2 b x (1 - x)), DALL-E equation 4.
    """
    mean, log_scale = statistics.chunk(2, dim=1)
    distance = (torch.logit(pixels) - mean).abs()
    return math.log(2) + log_scale + torch.log(pixels * (1 - pixels)) + distance * torch.exp(-log_scale)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) over dimension 1: (B, V, h, w) -> (B, h, w), between 0 and ln V."""
    log_q = F.log_softmax(_at_least_float32(logits).movedim(1, -1), dim=-1)
    return math.log(logits.shape[1]) + (log_q.exp() * log_q).sum(dim=-1)


def reconstruction_nll(images: Tensor, statistics: Tensor) -> Tensor:
    """-log p(x | z) of images (B, C, H, W), float in [0, 1] or uint8, under `statistics` (B, 2 C, H, W): the sum over
    the pixels of an image, the mean over the batch, in nats."""
    return logit_laplace_nll(map_pixels(images), statistics).flatten(1).sum(dim=1).mean()


def elbo_loss(images: Tensor, logits: Tensor, statistics: Tensor, kl_weight: float) -> ElboLoss:
    """The negative evidence lower bound with a weighted KL, divided by the number of pixel values of an image.

    Args:
        images: (B, C, H, W), float in [0, 1] or uint8.
        logits: (B, V, h, w).
        statistics: (B, 2 C, H, W).
        kl_weight: beta; 6.6 was found at 8x8 pixels per token.

    Both terms are sums over one image and means over the batch, so that `kl_weight` means the same at any batch size.
    """
    nll = reconstruction_nll(images, statistics)
    kl = kl_to_uniform(logits).flatten(1).sum(dim=1).mean()
    return ElboLoss((nll + kl_weight * kl) / images[0].numel(), nll, kl)


def reconstruction_mae(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean absolute error of images in [0, 1] against `images` (float in [0, 1] or uint8), a scalar."""
    return (to_unit(images) - reconstructions).abs().mean()


def cell_mean_mae(images: Tensor, stride: int) -> Tensor:
    """Mean absolute error of showing every stride x stride cell as its mean colour, a scalar.

    The yardstick of a tokenizer: one whose error is larger stores less than one colour per token.
    """
    images = to_unit(images)
    return (images - F.interpolate(F.avg_pool2d(images, stride), scale_factor=stride)).abs().mean()


def count_codes(tokens: Tensor, vocab_size: int) -> Tensor:
    """How often each token occurs, int64 (V,); add the counts of several batches before judging them."""
    return torch.bincount(tokens.flatten(), minlength=vocab_size)


def reconstruction_sums(model: VisualTokenizer, images: Tensor) -> dict[str, Tensor]:
    """What a tokenizer keeps of images (B, C, H, W), as sums over them."""
    logits = model.logits(images) if isinstance(model, CategoricalTokenizer) else None
    tokens = model.encode(images) if logits is None else logits.argmax(dim=1)
    count = torch.tensor(float(len(tokens)), device=tokens.device)
    return {
        "count": count,
        "reconstruction_mae": count * reconstruction_mae(images, model.decode(tokens)),
        "cell_mean_mae": count * cell_mean_mae(images, model.stride),
        **({} if logits is None else {"kl": count * kl_to_uniform(logits).mean()}),
        "codes": count_codes(tokens, model.vocab_size).float(),
    }


def reconstruction_figures(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The sums over many batches as means over images, and as the use of the codebook."""
    return with_codebook_usage({name: value / totals["count"] for name, value in totals.items() if name != "count"})


def with_codebook_usage(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Named figures, with what the (mean) counts of `codes` say about the codebook in their place: how many codes
    occur at all, and the perplexity, exp of the entropy of their frequencies, the number of equally used ones that
    they amount to."""
    figures = {name: float(value) for name, value in means.items() if name != "codes"}
    frequency = means["codes"].double() / means["codes"].sum()
    perplexity = float(torch.special.entr(frequency).sum().exp())
    return figures | {"perplexity": perplexity, "codes_used": int((frequency > 0).sum())}


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
