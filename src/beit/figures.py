"""What each named figure of a run means, how it is written, and what it is compared with. One table."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

BASELINES = ("unigram_loss", "position_unigram_loss", "copy_neighbour_loss")
"""Losses of what predicts tokens without a model."""
RIVALS = {
    "commonest": "always the commonest class",
    "histogram": "a linear classifier of colour histograms",
    "pixels": "the nearest training images by their pixels",
    "place": "the commonest class of each place",
}
"""What needs no network: its scores are called `commonest_top1` and so on."""
SCORES = {
    "f1": "F1 over all classes is {} on {}",
    "top1": "{} of {} are named right",
    "miou": "Predicted and true regions overlap by {} on average over the classes (mIoU), on {}",
}
HEADLINES = (
    *("reconstruction_mae", "cell_mean_mae", "perplexity", "miou", "aacc", "knn_top1", "f1", "top1", "loss"),
    *("token_accuracy", "copy_neighbour_loss", "effective_rank"),
)
"""What matters most, in order: a terminal shows the first three of them that there are."""
CONSTANT = ("knn_chance", "effective_rank_ceiling", "class_agreement_chance")
"""The same at every evaluation of a run."""


@dataclass(frozen=True)
class Figure:
    """One figure under its name in `metrics.jsonl`; `eval/NAME` is the same figure on held-back images, `test/NAME`
    on the test images."""

    name: str
    title: str
    meaning: str = ""
    """Plain words for a reader who does not know the method."""
    style: Literal["number", "percent", "count"] = "number"
    """`percent` figures are stored as shares in [0, 1]."""
    references: tuple[str, ...] = ()
    """Figures that are drawn with this one, and never alone."""
    group: Literal["result", "process"] = "result"
    """`process`: says how the training went rather than what came of it."""

    def phrase(self, value: float) -> str:
        """Name and value for a line of plain text."""
        text, title = self._digits(value).replace("\u00a0", " "), self.title.removeprefix("Baseline: ")
        if self.name == "images_per_second":
            return f"{text} images/s"
        return f"{title[:1].lower() if title[1:2].islower() else title[:1]}{title[1:]} {text}"

    def format(self, value: float) -> str:
        return self._digits(value).replace("e-0", "e-").replace("-", "\u2212")

    def _digits(self, value: float) -> str:
        if self.style == "percent":
            return f"{100 * value:.1f}\u00a0%"
        if self.style == "count" or value == 0 or abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:#.4g}"

    def order(self) -> tuple[bool, int]:
        """Sorts results before the process, known figures before unknown ones."""
        names = [*FIGURES, self.name]
        return self.group == "process", names.index(self.name)


def _score(name: str, title: str, meaning: str) -> Figure:
    """A figure from 0 to 1, the higher the better, among what needs no network."""
    return Figure(name, title, meaning, "percent", tuple(f"{rival}_{name}" for rival in RIVALS))


_TABLE = (
    Figure("loss", "Loss", "What training makes smaller."),
    Figure("unigram_loss", "Baseline: token frequencies", "The loss of guessing from how frequent tokens are."),
    Figure("position_unigram_loss", "Baseline: frequencies by position", "The same at each place of the grid."),
    Figure(
        "copy_neighbour_loss",
        "Baseline: copying the nearest patch",
        "The loss of the best mixture of the token of the nearest visible patch and the overall frequencies.",
    ),
    _score(
        "token_accuracy",
        "Masked-token accuracy",
        "Share of hidden patches whose visual token is named exactly. Many tokens look alike, so a low share can "
        "still be a good model; compare it with other runs on the same tokenizer.",
    ),
    _score("top1", "Top-1 accuracy", "Share of images whose most likely class is the right one."),
    _score("top5", "Top-5 accuracy", "Share with the right class among the five likeliest, if there are more."),
    _score("f1", "F1 over all classes", "Harmonic mean of precision and recall, a class named from 50 % on."),
    _score(
        "mean_average_precision",
        "Mean average precision (mAP)",
        "How well the images of a class stand before the others, averaged over the classes that occur.",
    ),
    Figure(
        "knn_top1",
        "Top-1 accuracy by k-NN",
        "Share of images that the nearest training images name right, on the best layer.",
        "percent",
        references=("knn_last_block", "knn_chance"),
    ),
    Figure("knn_last_block", "On the last block", style="percent"),
    Figure("knn_chance", "Chance", "One in as many as there are classes.", "percent"),
    Figure("knn_best_block", "Best block by k-NN", "The block that neighbours read best, from 0.", "count"),
    Figure(
        "effective_rank",
        "Effective rank",
        "How many dimensions the features of the last block fill. Near 1 all images look alike to the encoder.",
        references=("effective_rank_ceiling",),
    ),
    Figure("effective_rank_ceiling", "Ceiling: images or width", "The rank cannot be higher."),
    Figure("best_layer", "Best layer", "The layer that linear classifiers read best, from 0.", "count"),
    _score(
        "class_agreement",
        "Agreement of tokens with classes",
        "Share of images whose class those training images name that have the most similar tokens, counted without "
        "their places. Much above chance: tokens carry meaning before any pre-training.",
    ),
    Figure("class_agreement_chance", "Baseline: the commonest class", style="percent"),
    _score("mean_class_accuracy", "Mean accuracy of a class", "Every class counts the same."),
    Figure("elbo_reconstruction", "Bound: reconstruction", "log p(image | its likeliest tokens)."),
    Figure("elbo_reconstruction_sampled", "Bound: reconstruction from drawn tokens", "The mean of 8 draws."),
    Figure("elbo_prior", "Bound: prior", "log p(likeliest tokens | what the encoder sees)."),
    Figure("elbo_prior_sampled", "Bound: prior of drawn tokens", "Minus the divergence from the tokenizer's."),
    Figure("elbo_prior_unigram", "Bound: prior of token frequencies", "What guessing by frequency gives."),
    Figure("elbo_prior_uniform", "Bound: prior of knowing nothing", "What even guessing gives."),
    Figure("chance_loss", "Loss of knowing nothing (ln V)"),
    _score("miou", "Mean intersection over union", "Overlap of true and predicted regions, averaged by class."),
    _score("macc", "Mean pixel accuracy of a class", "Every class counts the same."),
    _score("aacc", "Pixel accuracy", "Share of all pixels that are named right."),
    Figure(
        "reconstruction_mae",
        "Reconstruction error",
        "Mean absolute difference between an image and its reconstruction from tokens, with pixels in [0, 1].",
        references=("cell_mean_mae",),
    ),
    Figure("cell_mean_mae", "Baseline: mean colour of each cell", "Each token's square in its mean colour."),
    Figure(
        "nll",
        "Misfit of the pixels",
        "Negative log-likelihood of a pixel value under the decoder, in nats; below zero once the decoder is sure.",
    ),
    Figure(
        "perplexity",
        "Codebook perplexity",
        "How many tokens are in effective use: 1 means a collapsed codebook, the vocabulary size means all equally.",
        "count",
        references=("codes_used",),
    ),
    Figure(
        "predictability",
        "Predictability of tokens",
        "Share of the surprise at a hidden token that copying the nearest visible one saves. High means that copying "
        "suffices, not that the tokens are good.",
        "percent",
    ),
    Figure("codes_used", "Codes used", "Entries of the codebook that occur at all.", "count"),
    Figure("kl", "Distance from even token use", "Kullback-Leibler divergence from it, in nats."),
    *(
        Figure(f"{rival}_{score}", f"Baseline: {words}", style="percent")
        for rival, words in RIVALS.items()
        for score in SCORES
    ),
    Figure("lr", "Learning rate", group="process"),
    Figure("temperature", "Gumbel-softmax temperature", group="process"),
    Figure("kl_weight", "Weight of the distance from even use", group="process"),
    Figure("grad_norm", "Gradient norm", group="process"),
    Figure("images_per_second", "Images per second", group="process"),
    Figure("data_wait", "Share of time waiting for data", style="percent", group="process"),
    Figure("mfu", "Share of the machine's rate of matrix products", style="percent", group="process"),
)
FIGURES = {figure.name: figure for figure in _TABLE}
MASKED_TOKEN_LOSS = Figure(
    "loss",
    "Masked-token loss",
    "The surprise, in nats, at the true token of a hidden patch. Knowing nothing costs ln V; the baselines know "
    "only frequencies or the nearest visible patch. A model that is under all of them has learned to use context.",
    references=BASELINES,
)


def plain(name: str) -> str:
    """The name of a metric without the images that it is of."""
    return name.removeprefix("eval/").removeprefix("test/")


def figure_of(name: str, present: Container[str] = ()) -> Figure:
    """The figure of a metric, whichever images it is of; an unknown one is shown plainly under its own name.

    `present` holds the names beside it: a loss among the baselines for tokens is that of masked tokens.
    """
    name = plain(name)
    if name == "loss" and any(baseline in present for baseline in BASELINES):
        return MASKED_TOKEN_LOSS
    return FIGURES.get(name) or Figure(name, name)


def headlines(figures: Mapping[str, float]) -> dict[str, float]:
    """The three that matter most: of each that on test images, else on held-back ones, else of training."""
    full_name = {plain(name): name for name in sorted(figures, key=lambda name: ("/" in name, name))}
    return {full_name[name]: figures[full_name[name]] for name in [*filter(full_name.get, HEADLINES)][:3]}


def in_words(figures: Mapping[str, float]) -> str:
    """A line of figures, results first."""
    present = {plain(name) for name in figures}
    pairs = [(figure_of(name, present), value) for name, value in figures.items()]
    return ", ".join(figure.phrase(value) for figure, value in sorted(pairs, key=lambda pair: pair[0].order()))
