"""The paper's VAE view (equations 2 and 3): both terms of the bound on log p(image | what the encoder sees).

For tokens z of an image x, which the encoder sees corrupted, x~:

    log p(x | x~)  >=  log p(x | z) + log p(z | x~)             z the likeliest tokens: `_reconstruction`, `_prior`
    log p(x | x~)  >=  E_q[log p(x | z)] - KL(q || p(z | x~))   z drawn from q(z | x): the same with `_sampled`

The inequalities need a factor of p(z | x~) for every patch (`--predict all`). All is in nats per image; a density of
pixels mapped to [.1, .9], so that figures compare at equal image size alone.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.tokenizers.base import VisualTokenizer
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.fsq import FiniteScalarVAE
from beit.tokenizers.objective import logit_laplace_nll, map_pixels

SAMPLES = 8
"""Draws of the tokens of each image."""
TERMS = ("elbo_reconstruction", "elbo_reconstruction_sampled", "elbo_prior", "elbo_prior_sampled")


class Bound:
    """The terms for the images of an evaluation, batch by batch; the draws follow from `seed`."""

    def __init__(self, tokenizer: VisualTokenizer, predict: str, seed: int) -> None:
        self.tokenizer = tokenizer if isinstance(tokenizer, DiscreteVAE | FiniteScalarVAE) else None
        """None for a kind without a likelihood of pixels: the prior term is all there is."""
        self.predict = predict
        self.seed = seed
        self.generator: torch.Generator | None = None

    def words(self) -> str:
        """What the terms are, in a line."""
        if self.tokenizer is None:
            return "nats an image; the prior term alone, for the tokenizer gives pixels no likelihood"
        if self.predict == "all":
            return "nats an image; the two terms add up to a lower bound on log p(image | what the encoder sees)"
        return "nats an image; the prior term is of hidden patches alone: what pre-training raises, and no bound"

    @torch.no_grad()
    def sums(self, images: Tensor, tokens: Tensor, logits: Tensor, predict: Tensor) -> dict[str, Tensor]:
        """Sums over images (B, 3, H, W) of each term.

        tokens: the likeliest, (B, h, w). logits: the model's, (M, V), of the patches in `predict`, bool (B, h, w).
        """
        image_of = predict.flatten(1).nonzero()[:, 0].cpu()
        log_p = F.log_softmax(logits.float(), dim=1)

        def per_image(values: Tensor) -> Tensor:
            """Sums (B,) of the predicted patches' values (M,)."""
            return torch.zeros(len(images), dtype=torch.float64).index_add_(0, image_of, values.cpu().double())

        terms = {"elbo_prior": per_image(log_p.gather(1, tokens[predict][:, None])[:, 0])}
        if self.tokenizer is not None:
            terms["elbo_reconstruction"] = _log_likelihood(self.tokenizer, images, tokens)
        if isinstance(self.tokenizer, DiscreteVAE):  # finite scalars have no q(z | x) to draw from
            log_q = F.log_softmax(self.tokenizer.logits(images).float().movedim(1, -1), dim=-1)
            of_patches = log_q[predict]
            gain = of_patches.exp() * (log_p - of_patches)
            drawn = [_log_likelihood(self.tokenizer, images, z) for z in self._draw(log_q)]
            terms |= {
                "elbo_reconstruction_sampled": torch.stack(drawn).mean(0),
                "elbo_prior_sampled": per_image(gain.sum(1)),
            }
        sums = {name: term.sum() for name, term in terms.items()}
        return {"elbo_images": torch.tensor(float(len(images))), **sums}

    def figures(self, totals: Mapping[str, Tensor], vocab_size: int) -> dict[str, float]:
        """Means over images, from sums that hold those over the predicted patches as well."""
        images = float(totals["elbo_images"])
        figures = {"elbo_prior_uniform": -float(totals["count"]) * math.log(vocab_size) / images}
        if "unigram_loss" in totals:
            figures["elbo_prior_unigram"] = -float(totals["unigram_loss"]) / images
        return figures | {name: float(totals[name]) / images for name in TERMS if name in totals}

    def _draw(self, log_q: Tensor) -> Tensor:
        """Tokens (SAMPLES, B, h, w) from log-probabilities (B, h, w, V)."""
        if self.generator is None:
            self.generator = torch.Generator(log_q.device).manual_seed(self.seed)
        drawn = torch.multinomial(log_q.exp().flatten(0, 2), SAMPLES, True, generator=self.generator)
        return drawn.T.reshape(SAMPLES, *log_q.shape[:3])


def _log_likelihood(tokenizer: DiscreteVAE | FiniteScalarVAE, images: Tensor, tokens: Tensor) -> Tensor:
    """log p(x | z) of images (B, 3, H, W), summed over pixels and channels: float64 (B,)."""
    nll = logit_laplace_nll(map_pixels(images), tokenizer.statistics(tokens).float())
    return -nll.flatten(1).cpu().double().sum(dim=1)
