"""What each named figure of a run means, how it is written, and what it is compared with. One table."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from beit.config.values import field_docs

BASELINES = ("unigram_loss", "position_unigram_loss", "copy_neighbour_loss")
"""Losses of what predicts tokens without a model."""
RIVALS = {
    "commonest": "naming always the commonest class",
    "histogram": "a linear classifier of colour histograms",
    "pixels": "the nearest training images by their pixels",
    "place": "naming the commonest class of each place",
}
"""What needs no network: its scores are called `commonest_top1` and so on."""
SCORES = {
    "f1": "F1 over all classes is {} on {}",
    "top1": "{} of {} {are} named right",
    "miou": "Predicted and true regions overlap by {} on average over the classes (mIoU), on {}",
}
HEADLINES = (
    *("reconstruction_mae", "cell_mean_mae", "perplexity", "miou", "aacc", "knn_top1", "f1", "top1", "loss"),
    *("token_accuracy", "copy_neighbour_loss", "effective_rank"),
)
"""What matters most, in order: a terminal shows the first three of them that there are."""
CONSTANT = ("knn_chance", "effective_rank_ceiling", "class_agreement_chance")
"""The same at every evaluation of a run."""
BESIDE = tuple(f"{rival}_{{}}" for rival in RIVALS)
"""The references of a score from 0 to 1, the higher the better, that stands among what needs no network."""


@dataclass(frozen=True)
class Figure:
    """One figure under its name in `metrics.jsonl`; `eval/NAME` is the same figure on held-back images, `test/NAME`
    on the test images."""

    title: str
    style: Literal["number", "percent", "count"] = "number"
    """`percent` figures are stored as shares in [0, 1]."""
    references: tuple[str, ...] = ()
    """Figures that are drawn with this one, and never alone; {} in their names stands for its own."""
    group: Literal["result", "process"] = "result"
    """`process`: says how the training went rather than what came of it."""
    name: str = ""

    def named(self, name: str) -> "Figure":
        """This figure under its name."""
        return replace(self, name=name, references=tuple(other.format(name) for other in self.references))

    @property
    def meaning(self) -> str:
        """Plain words for a reader who does not know the method; none for some."""
        return {getattr(Known, name).title: text for name, text in field_docs(Known).items()}.get(self.title, "")

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


class Known:
    """The figures that have titles, in their order; below each, what it means."""

    loss = Figure("Loss")
    """What training makes smaller."""
    unigram_loss = Figure("Baseline: token frequencies")
    """The loss of guessing from how frequent tokens are."""
    position_unigram_loss = Figure("Baseline: frequencies by position")
    """The same at each place of the grid."""
    copy_neighbour_loss = Figure("Baseline: copying the nearest patch")
    """The loss of the best mixture of the token of the nearest visible patch and the overall frequencies."""
    token_accuracy = Figure("Masked-token accuracy", "percent", BESIDE)
    """Share of hidden patches whose visual token is named exactly. Many tokens look alike, so a low share can still
    be a good model; compare it with other runs on the same tokenizer."""
    top1 = Figure("Top-1 accuracy", "percent", BESIDE)
    """Share of images whose most likely class is the right one."""
    top5 = Figure("Top-5 accuracy", "percent", BESIDE)
    """Share with the right class among the five likeliest, if there are more."""
    f1 = Figure("F1 over all classes", "percent", BESIDE)
    """Harmonic mean of precision and recall, a class named from 50 % on."""
    mean_average_precision = Figure("Mean average precision (mAP)", "percent", BESIDE)
    """How well the images of a class stand before the others, averaged over the classes that occur."""
    knn_top1 = Figure("Top-1 accuracy by k-NN", "percent", ("knn_last_block", "knn_chance"))
    """Share of images that the nearest training images name right, on the best layer."""
    knn_last_block = Figure("On the last block", "percent")
    knn_chance = Figure("Chance", "percent")
    """One in as many as there are classes."""
    knn_best_block = Figure("Best block by k-NN", "count")
    """The block that neighbours read best, from 0."""
    effective_rank = Figure("Effective rank", references=("effective_rank_ceiling",))
    """How many dimensions the features of the last block fill. Near 1 all images look alike to the encoder."""
    effective_rank_ceiling = Figure("Highest rank possible")
    """The rank cannot be higher."""
    best_layer = Figure("Best layer", "count")
    """The layer that linear classifiers read best, from 0."""
    class_agreement = Figure("Classes told by tokens alone", "percent", BESIDE)
    """Share of images whose class those training images name that have the most similar tokens, counted without their
    places. Much above chance: tokens carry meaning before any pre-training."""
    class_agreement_chance = Figure("Baseline: the commonest class", "percent")
    mean_class_accuracy = Figure("Mean accuracy of a class", "percent", BESIDE)
    """Every class counts the same."""
    elbo_reconstruction = Figure("Bound: reconstruction")
    """log p(image | its likeliest tokens)."""
    elbo_reconstruction_sampled = Figure("Bound: reconstruction from drawn tokens")
    """The mean of 8 draws."""
    elbo_prior = Figure("Bound: prior")
    """log p(likeliest tokens | what the encoder sees)."""
    elbo_prior_sampled = Figure("Bound: prior of drawn tokens")
    """Minus the divergence from the tokenizer's."""
    elbo_prior_unigram = Figure("Bound: prior of token frequencies")
    """What guessing by frequency gives."""
    elbo_prior_uniform = Figure("Bound: prior of knowing nothing")
    """What even guessing gives."""
    chance_loss = Figure("Loss of knowing nothing (ln V)")
    miou = Figure("Mean intersection over union", "percent", BESIDE)
    """Overlap of true and predicted regions, averaged by class."""
    macc = Figure("Mean pixel accuracy of a class", "percent", BESIDE)
    """Every class counts the same."""
    aacc = Figure("Pixel accuracy", "percent", BESIDE)
    """Share of all pixels that are named right."""
    reconstruction_mae = Figure("Reconstruction error", references=("cell_mean_mae",))
    """Mean absolute difference between an image and its reconstruction from tokens, with pixels in [0, 1]."""
    cell_mean_mae = Figure("Baseline: mean colour of each cell")
    """Each token's square in its mean colour."""
    nll = Figure("Misfit of the pixels")
    """Negative log-likelihood of a pixel value under the decoder, in nats; below zero once the decoder is sure."""
    perplexity = Figure("Codebook perplexity", "count", ("codes_used",))
    """How many tokens are in effective use: 1 means a collapsed codebook, the vocabulary size means all equally."""
    predictability = Figure("Predictability of tokens", "percent")
    """Share of the surprise at a hidden token that copying the nearest visible one saves. High means that copying
    suffices, not that the tokens are good."""
    codes_used = Figure("Codes used", "count")
    """Entries of the codebook that occur at all."""
    kl = Figure("Distance from even token use")
    """Kullback-Leibler divergence from it, in nats."""
    lr = Figure("Learning rate", group="process")
    temperature = Figure("Gumbel-softmax temperature", group="process")
    kl_weight = Figure("Weight of the distance from even use", group="process")
    grad_norm = Figure("Gradient norm", group="process")
    images_per_second = Figure("Images per second", group="process")
    data_wait = Figure("Waiting for data", "percent", group="process")
    mfu = Figure("Share of the machine's peak rate", "percent", group="process")
    masked_token_loss = Figure("Masked-token loss", references=BASELINES)
    """The surprise, in nats, at the true token of a hidden patch. Knowing nothing costs ln V; the baselines know only
    frequencies or the nearest visible patch. A model that is under all of them has learned to use context."""


FIGURES = {name: figure.named(name) for name, figure in vars(Known).items() if isinstance(figure, Figure)}
MASKED_TOKEN_LOSS = FIGURES.pop("masked_token_loss").named("loss")
_TITLES = {f"{rival}_{score}": f"Baseline: {words}" for rival, words in RIVALS.items() for score in SCORES}
FIGURES |= {name: Figure(title, "percent", name=name) for name, title in _TITLES.items()}


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
    return FIGURES.get(name) or Figure(name, name=name)


def headlines(figures: Mapping[str, float]) -> dict[str, float]:
    """The three that matter most: of each that on test images, else on held-back ones, else of training."""
    full_name = {plain(name): name for name in sorted(figures, key=lambda name: ("/" in name, name))}
    return {full_name[name]: figures[full_name[name]] for name in [*filter(full_name.get, HEADLINES)][:3]}


def in_words(figures: Mapping[str, float]) -> str:
    """A line of figures, results first."""
    present = {plain(name) for name in figures}
    pairs = [(figure_of(name, present), value) for name, value in figures.items()]
    return ", ".join(figure.phrase(value) for figure, value in sorted(pairs, key=lambda pair: pair[0].order()))
