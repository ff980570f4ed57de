"""The rules, and their thresholds: figures in, sentences out for a reader who does not know the method."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from beit.config.values import counted
from beit.figures import BASELINES, RIVALS, SCORES
from beit.metrics.intervals import wilson
from beit.training.run.record import RunRecord

LEVEL = 0.01
"""Relative difference below which two losses or errors count as equal."""
FEW = 50
"""Judged images below which a score is hardly known."""
DEAD = 0.005
"""A class that is found less often than that is not found."""
COLLAPSED = 0.01
"""A codebook of which a smaller share is in effective use has collapsed."""
LEAST_RANK = 2.0
"""Features that fill fewer dimensions are alike for all images."""
RISE, MEMORISED = 0.1, 0.02
"""Shares: of its beginning, or of 1, by which a training loss rises that diverges; of its lowest value, by which a
held-back loss rises at least where training images are learned by heart."""

LABEL_MORE = "label more images (`beit suggest` picks them)"
MORE_JUDGED = f"{LABEL_MORE}, or judge on more of those with labels (--holdout 0.5)"
AGAIN = "the same command with --overwrite and a third of the --lr"

Tone = Literal["good", "open", "bad", "plain"]
"""`open`: not there yet."""


class Verdict(NamedTuple):
    tone: Tone
    text: str
    mend: str = ""
    """What to do before anything is built on this."""


def verdicts(run: RunRecord) -> list[Verdict]:
    """State first; then whether it worked, beside what, on how many images, and how sure that is."""
    encoder_rules, task_rules = (_start, _context, _features), (_score, _dead_classes, _memorising)
    rules = (_state, _divergence, *encoder_rules, _reconstruction, _codebook, *task_rules)
    return [verdict for rule in rules for verdict in rule(run)]


def few_images(count: int) -> str:
    """How little a score of so many images tells; nothing where they are none, or FEW and more."""
    if not 0 < count < FEW:
        return ""
    low, high = map(percent, wilson(right := round(2 * count / 3), count))
    return f"few images tell little (for example {right} of {count} right would stand for {low} to {high})"


def collapse(perplexity: float, used: float, vocab_size: int | None) -> Verdict | None:
    """What is wrong with a codebook of which so few codes are in effective use that they say nothing."""
    occur = counted(round(used), "code", "occurs/occur")
    text = f"The codebook has collapsed: {occur}, {perplexity:.1f} in effective use."
    mend = "--overwrite with --kind kmeans, or with a lower --lr, a higher --kl-weight or fewer codes"
    return Verdict("bad", text, mend) if perplexity < max(2.0, COLLAPSED * (vocab_size or 0)) else None


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def latest(run: RunRecord, name: str) -> float | None:
    """A figure now: on the test images, else its last evaluation, else the mean of its last training steps."""
    if (curve := run.curves.get(f"test/{name}") or run.curves.get(f"eval/{name}")) is not None:
        return curve.last
    return curve.recent if (curve := run.curves.get(name)) is not None else None


# ------------------------------------------------------------------------------------------------------------
# The run


def _state(run: RunRecord) -> Iterator[Verdict]:
    step, steps = run.status.get("step"), run.status.get("steps")
    where = ""
    if isinstance(step, int) and isinstance(steps, int) and steps > 0:
        where = f" at step {step:,} of {steps:,} ({100 * step / steps:.0f} %)"
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


def _divergence(run: RunRecord) -> Iterator[Verdict]:
    """Of the loss that is made smaller; that of a discrete VAE grows with the weight of one of its terms."""
    curve = run.curves.get("nll") or run.curves.get("loss")
    if curve is not None and curve.recent > (first := float(curve.values[0])) + RISE * max(1, abs(first)):
        text = f"Training has diverged: its loss is {curve.recent:.4g}, and was {first:.4g} at the beginning."
        yield Verdict("bad", text, AGAIN)


def _memorising(run: RunRecord) -> Iterator[Verdict]:
    """A held-back loss that rises by more than its noise, while what it stands for gets no better."""
    curve, images = run.curves.get("eval/loss"), interval_of(run).get("images")
    if curve is None or len(curve.values) < 3:
        return
    best, rise = int(curve.values.argmin()), MEMORISED
    lowest, now, step = float(curve.values[best]), curve.last, curve.steps[best]
    for score in filter(None, (run.curves.get(f"eval/{name}") for name in SCORES)):
        if images is None or score.last > score.values[: best + 1][-1]:
            return
        # From image to image such a loss differs by about as much as it is large.
        rise = max(rise, 1 / math.sqrt(images))
    if now > lowest + rise * abs(lowest):
        text = f"The held-back loss was lowest at step {step:,.0f} ({lowest:.4g}) and is now {now:.4g}: the model "
        text += "has begun to learn its training images by heart. Use more images, a shorter run or stronger "
        yield Verdict("open", f"{text}regularisation.")


# ------------------------------------------------------------------------------------------------------------
# Pre-training


def _context(run: RunRecord) -> Iterator[Verdict]:
    """The masked-token loss beside what needs no model: only below all of them has context been used."""
    prefix = "eval/" if "eval/loss" in run.curves else ""
    curves = {name: run.curves.get(prefix + name) for name in ("loss", *BASELINES)}
    figures = {name: curve.last if prefix else curve.recent for name, curve in curves.items() if curve}
    loss = figures.pop("loss", None)
    if loss is None or not figures:
        return
    best, name = min((value, name) for name, value in figures.items())
    words = name.removesuffix("_loss").replace("_", " ")
    text = f"masked-token loss {loss:.2f} against {best:.2f} for the best baseline ({words})"
    if run.vocab_size:
        text += f" and ln V = {math.log(run.vocab_size):.2f} for knowing nothing"
    yield _beside(
        loss / best,
        "The model uses context: {} below the best baseline",
        "Level with the best baseline, so not yet using context",
        "Not yet using context: {} above the best baseline",
        text,
        "a longer run (--budget, --extend-to), or a tokenizer of fewer codes (--vocab-size)",
    )


def _features(run: RunRecord) -> Iterator[Verdict]:
    """The rank of the features; and k-NN beside that of the network before its first step."""
    rank, ceiling = latest(run, "effective_rank"), latest(run, "effective_rank_ceiling")
    if rank is not None and ceiling is not None and rank < LEAST_RANK < ceiling / 4:
        text = f"The features have collapsed: they fill {rank:.1f} of at most {ceiling:.0f} dimensions."
        yield Verdict("bad", text, AGAIN)
    curve, chance = run.curves.get("eval/knn_top1"), run.curves.get("eval/knn_chance")
    if curve is None or chance is None or curve.steps[0] != 0 or len(curve.steps) < 2:
        return
    first, last, images = float(curve.values[0]), curve.last, interval_of(run).get("images")
    # Two standard errors of the difference, as if it were other images that were judged before.
    noise = 2 * math.sqrt((first * (1 - first) + last * (1 - last)) / images) if images else 0.0
    helped = last - first > noise
    before, mend = "Pre-training", "a longer run, more unlabelled images, or a released encoder (--init)"
    if run.config.get("init"):
        before, mend = "Going on", "a lower --lr, or more unlabelled images; the start as it is may be the better one"
    effect = "better" if helped else "worse" if first - last > noise else "not clearly better"
    text = f"{before} made the features {effect}: neighbours name {percent(last)} of {_images(run, 'knn_top1')}"
    text += f" right, {percent(first)} before the first step; guessing would get {percent(chance.last)}."
    yield _good_if(helped, text, mend)


def _start(run: RunRecord) -> Iterator[Verdict]:
    """What a run that went on from a model has changed, by the images that it was judged on before its first step."""
    for name, words in (("loss", "loss"), ("reconstruction_mae", "reconstruction error")):
        curve = run.curves.get(f"eval/{name}")
        if not run.config.get("init") or curve is None or curve.steps[0] != 0:
            continue
        first, last = float(curve.values[0]), curve.last
        change = f"{'fell' if last < first else 'rose'} by {abs(last - first):.3g}, from {first:.3g} to {last:.3g}"
        text = f"Since --init the {words} on held-back images {change}"
        if name == "loss" and run.vocab_size and first > math.log(run.vocab_size):
            yield Verdict("plain", f"{text}: its head was new, and knew less than nothing.")
        else:
            yield _good_if(last < first, f"{text}.", "a lower --lr, or --layer-decay below 1")


# ------------------------------------------------------------------------------------------------------------
# Tokenizers


def _reconstruction(run: RunRecord) -> Iterator[Verdict]:
    error, reference = latest(run, "reconstruction_mae"), latest(run, "cell_mean_mae")
    if error is None or not reference:
        return
    mean = "painting each token's square in its mean colour"
    yield _beside(
        error / reference,
        f"Tokens carry shape: reconstructions are {{}} closer than {mean}",
        f"Reconstructions are about as close as {mean}",
        f"Reconstructions are not yet as close as {mean} ({{}} further off)",
        f"on average a pixel is off by {255 * error:.1f} of 255 levels",
    )


def _codebook(run: RunRecord) -> Iterator[Verdict]:
    perplexity, used = latest(run, "perplexity"), latest(run, "codes_used")
    if perplexity is None or used is None:
        return
    of = f" of {run.vocab_size:,}" if run.vocab_size else ""
    occur = f"{used:,.0f}{of} codes occur" if of else counted(round(used), "code", "occurs/occur")
    text = f"Codebook: {occur}, {perplexity:,.1f} in effective use."
    yield collapse(perplexity, used, run.vocab_size) or Verdict("plain", text)


def _beside(ratio: float, below: str, level: str, above: str, figures: str, mend: str = "") -> Verdict:
    """What a figure says that is `ratio` times its reference, the lower the better."""
    share = abs(1 - ratio)
    sentence = level if share <= LEVEL else below if ratio < 1 else above
    words = sentence.format(f"{100 * share:.{0 if share >= 0.1 else 1}f} %")
    return _good_if(sentence is below, f"{words}; {figures}.", mend)


def _good_if(good: bool, text: str, mend: str = "") -> Verdict:
    return Verdict("good", text) if good else Verdict("open", text, mend)


# ------------------------------------------------------------------------------------------------------------
# Classifiers and segmenters


def _score(run: RunRecord) -> Iterator[Verdict]:
    """A score and its interval beside what needs no network, knowing nothing first among it."""
    name = next((name for name in SCORES if latest(run, name) is not None), "")
    value, interval = latest(run, name), interval_of(run)
    if value is None:
        return
    known = {words: latest(run, f"{rival}_{name}") for rival, words in RIVALS.items()}
    rivals = {words: rival for words, rival in known.items() if rival is not None}
    if not rivals and name == "top1" and run.classes:
        rivals = {"guessing": 1 / len(run.classes)}
    are = "is" if interval.get("images") == 1 else "are"
    text, few = SCORES[name].format(percent(value), _images(run, name), are=are), ""
    if interval:
        groups = f" over {counted(interval['units'], 'group')}" * (interval["units"] != interval["images"])
        text += f" (95 % interval {percent(interval['low'])} to {percent(interval['high'])}{groups})"
        few = "few images tell little" if interval["images"] < FEW else ""
    beside = (f"{words} {percent(rival)}" for words, rival in rivals.items())
    text = "; ".join(filter(None, (text, *beside, few))) + "."
    hardest = max(rivals, key=rivals.__getitem__, default="")
    start = "" if run.config.get("init") else " or a pre-trained start (--init),"
    label_more = LABEL_MORE if run.config.get("holdout") else MORE_JUDGED
    more = f"{label_more}; then a longer run" if few else f"a longer run,{start} or more labels"
    more += "; `beit check` lists damaged, equal and alike images"
    if not interval or not rivals:
        yield Verdict("plain", text)
    elif interval["low"] > rivals[hardest]:
        good = not few and not any(overlap < DEAD for overlap in _overlaps(run).values())
        yield _good_if(good, f"Better than what needs no network, by more than chance: {text}")
    elif interval["high"] < rivals[hardest]:
        yield Verdict("bad", f"Worse than {hardest}, by more than chance: {text}", more)
    elif interval["low"] <= next(iter(rivals.values())):
        yield Verdict("bad", f"Not shown to be better than {next(iter(rivals))}: {text}", more)
    else:
        yield Verdict("open", f"Not shown to be better than {hardest}: {text}", more)


def _dead_classes(run: RunRecord) -> Iterator[Verdict]:
    overlaps = _overlaps(run)
    if dead := [name for name, overlap in overlaps.items() if overlap < DEAD]:
        are = "is" if len(dead) == 1 else "are"
        text = f"{len(dead)} of {counted(len(overlaps), 'class')} {are} never found: {', '.join(dead[:12])}."
        mend = "a longer run, or more images of the classes that are never found"
        yield Verdict("bad", text, mend) if 2 * len(dead) >= len(overlaps) else Verdict("open", text)


def _overlaps(run: RunRecord) -> dict[str, float]:
    """Of the classes that occur."""
    present = {name: entry.get("iou") for name, entry in run.entries("classes").items() if entry.get("share")}
    return {name: overlap for name, overlap in present.items() if isinstance(overlap, float)}


def interval_of(run: RunRecord) -> dict[str, Any]:
    """What results.json says of the judged images: `low`, `high`, `images` and `units`; nothing where it does not."""
    interval = run.results.get("interval")
    pairs = interval.items() if isinstance(interval, Mapping) else ()
    numbers = {name: value for name, value in pairs if isinstance(value, int | float)}
    return numbers if {"low", "high", "images", "units"} <= numbers.keys() else {}


def _images(run: RunRecord, name: str) -> str:
    """The images that a figure is of, in words."""
    kinds = {"test/": "test", "eval/": "held-back"}
    kind = next((kind for prefix, kind in kinds.items() if f"{prefix}{name}" in run.curves), "training")
    count = interval_of(run).get("images")
    noun = f"{run.results.get('split', kind)} image"
    return counted(count, noun) if count else f"the {noun}s"
