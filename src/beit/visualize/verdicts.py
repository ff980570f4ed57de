"""What the figures of a run say, in sentences for a reader who does not know the method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from beit.figures import BASELINES, figure_of
from beit.training.run.record import RunRecord, regions

LEVEL = 0.01
"""Relative difference below which two figures count as equal."""


Tone = Literal["good", "open", "bad", "plain"]
"""`open`: not there yet."""


class Verdict(NamedTuple):
    tone: Tone
    text: str


def verdicts(run: RunRecord) -> list[Verdict]:
    """State first, then what was learned."""
    topics = (_state, _context, _features, _reconstruction, _codebook, _accuracy, _overlap, _overfitting)
    return [verdict for topic in topics for verdict in topic(run)]


def latest(run: RunRecord, name: str) -> float | None:
    """A figure now: on the test images, else its last evaluation, else the mean of its last training steps."""
    if (curve := run.curves.get(f"test/{name}") or run.curves.get(f"eval/{name}")) is not None:
        return curve.last
    return curve.recent if (curve := run.curves.get(name)) is not None else None


def _state(run: RunRecord) -> Iterator[Verdict]:
    step, steps = run.status.get("step"), run.status.get("steps")
    where = ""
    if isinstance(step, int) and isinstance(steps, int) and steps > 0:
        where = f" at step {step:,} of {steps:,} ({100 * step / steps:.0f}\u00a0%)"
    reason = run.status.get("reason")
    because = f": {str(reason).rstrip('.')}" if reason else ""
    if run.state == "running":
        yield Verdict("plain", f"Still running{where}. All figures here are those reached so far.")
    elif run.state == "interrupted":
        yield Verdict("open", f"Interrupted{where}{because}. The same command continues it.")
    elif run.state in ("failed", "killed"):
        yield Verdict("bad", f"{run.state.capitalize()}{where}{because}.")
    if not run.curves:
        yield Verdict("plain", "No figures have been logged yet.")


def _context(run: RunRecord) -> Iterator[Verdict]:
    """The masked-token loss beside what needs no model: only below all of them has context been used."""
    for prefix in ("eval/", ""):
        baselines = {name: run.curves[prefix + name] for name in BASELINES if prefix + name in run.curves}
        if prefix + "loss" in run.curves and baselines:
            break
    else:
        return
    curve = run.curves[prefix + "loss"]
    loss = curve.last if prefix else curve.recent
    hardest = min(baselines, key=lambda name: baselines[name].recent)
    best = baselines[hardest].recent
    title = figure_of(hardest).title.removeprefix("Baseline: ")
    figures = f"masked-token loss {loss:.2f} against {best:.2f} for the best baseline ({title})"
    if run.vocab_size:
        figures += f" and ln V = {math.log(run.vocab_size):.2f} for knowing nothing"
    yield _beside(
        loss / best,
        "The model uses context: {} below the best baseline",
        "Level with the best baseline, so not yet using context",
        "Not yet using context: {} above the best baseline",
        figures,
    )


def _features(run: RunRecord) -> Iterator[Verdict]:
    """k-NN beside that of the network before its first step, where a run has measured it."""
    curve, chance = run.curves.get("eval/knn_top1"), run.curves.get("eval/knn_chance")
    if curve is None or chance is None or curve.steps[0] != 0 or len(curve.steps) < 2:
        return
    first, now = float(curve.values[0]), curve.last
    yield Verdict(
        "good" if now > first else "open",
        f"Neighbours name {100 * now:.1f}\u00a0% of the held-back images right, {100 * first:.1f}\u00a0% before "
        f"training; guessing would get {100 * chance.last:.1f}\u00a0%.",
    )


def _reconstruction(run: RunRecord) -> Iterator[Verdict]:
    error, reference = latest(run, "reconstruction_mae"), latest(run, "cell_mean_mae")
    if error is None:
        return
    levels = f"on average a pixel is off by {255 * error:.1f} of 255 levels"
    if not reference:
        yield Verdict("plain", f"Reconstructions: {levels}.")
        return
    mean = "painting each token's square in its mean colour"
    yield _beside(
        error / reference,
        f"Tokens carry shape: reconstructions are {{}} closer than {mean}",
        f"Reconstructions are about as close as {mean}",
        f"Reconstructions are not yet as close as {mean} ({{}} further off)",
        levels,
    )


def _beside(ratio: float, below: str, level: str, above: str, figures: str) -> Verdict:
    """What a figure says that is `ratio` times its reference, the lower the better."""
    share = abs(1 - ratio)
    sentence = level if share <= LEVEL else below if ratio < 1 else above
    percent = f"{100 * share:.{0 if share >= 0.1 else 1}f}\u00a0%"
    return Verdict("good" if sentence is below else "open", f"{sentence.format(percent)}; {figures}.")


def _codebook(run: RunRecord) -> Iterator[Verdict]:
    perplexity, used = latest(run, "perplexity"), latest(run, "codes_used")
    if perplexity is None:
        return
    of = f" of {run.vocab_size:,}" if run.vocab_size else ""
    counts = f"{used:,.0f}{of} codes occur, " if used is not None else ""
    if perplexity < 2:
        yield Verdict("bad", f"The codebook has collapsed: {counts}{perplexity:.1f} in effective use.")
        return
    yield Verdict("plain", f"Codebook: {counts}{perplexity:,.0f} in effective use{'' if counts else of}.")


def _accuracy(run: RunRecord) -> Iterator[Verdict]:
    top1 = latest(run, "top1")
    if top1 is None:
        return
    classes = run.classes
    guess = f"; guessing would get {100 / len(classes):.1f}\u00a0%" if classes else ""
    kinds = {"test/top1": "test", "eval/top1": "held-back"}
    kind = next((kind for name, kind in kinds.items() if name in run.curves), "training")
    tone: Tone = "good" if not classes or top1 > 2 / len(classes) else "open"
    yield Verdict(tone, f"{100 * top1:.1f}\u00a0% of the {kind} images are named right{guess}.")


def _overlap(run: RunRecord) -> Iterator[Verdict]:
    """Mean intersection over union beside that of naming every pixel alike, where the shares of classes are known."""
    miou = latest(run, "miou")
    if miou is None:
        return
    overlap = f"Predicted and true regions overlap by {100 * miou:.1f}\u00a0% on average over the classes"
    shares = {name: float(entry["share"]) for name, entry in regions(run).items() if entry.get("share")}
    if not shares:
        yield Verdict("plain", f"{overlap}.")
        return
    # That class's region is then found with all other pixels in it, and the others not at all.
    commonest = max(shares, key=shares.__getitem__)
    guess = shares[commonest] / len(shares)
    tone: Tone = "good" if miou > 2 * guess else "open"
    yield Verdict(tone, f"{overlap}; naming every pixel {commonest} would get {100 * guess:.1f}\u00a0%.")


def _overfitting(run: RunRecord) -> Iterator[Verdict]:
    curve = run.curves.get("eval/loss")
    if curve is None or len(curve.values) < 3:
        return
    best = int(curve.values.argmin())
    if curve.last > curve.values[best] + 0.02 * abs(curve.values[best]):
        yield Verdict(
            "open",
            f"The held-back loss was lowest at step {curve.steps[best]:,.0f} ({curve.values[best]:.4g}) and is now "
            f"{curve.last:.4g}: the model has begun to learn its training images by heart. Use more images, "
            "a shorter run or stronger regularisation.",
        )
