"""`--preset auto`: a recipe chosen from facts about the images and the machine, by a table of trials.

`choose` is all that a verb asks. What a user typed binds it; a choice that hangs on another (heads on the width, the
patch on the size of the image) follows what was typed. The steps are not chosen here: a rehearsal finds them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from beit.config.finetune import FinetuneConfig
from beit.config.run import TrainingConfig
from beit.config.tokenizer import IDLE, TRAINED, TokenizerConfig
from beit.config.values import counted, flag_of
from beit.presets import BUDGET, Choice, Facts, Values

HEAD = 64
"""Channels of an attention head."""


class Size(NamedTuple):
    """A row of the table: images and work up to limits, and what suits them."""

    side: float
    """The largest median side of the images, in pixels."""
    work: float
    """The most multiply-adds of the budget."""
    image_size: int
    grid: int
    """Patches, and tokens, along a side."""
    codes: int
    """Patches that k-means tells apart."""
    encoder: tuple[int, int]
    """Width and depth."""


# An hour of two CPU cores is 5e14 to 2e15 multiply-adds, one of a GPU 3e17 to 1e18. The first row that fits counts.
SIZES = (
    Size(48, 1.5e14, 32, 8, 64, (128, 4)),
    Size(48, 3e16, 32, 8, 64, (192, 6)),
    Size(48, math.inf, 32, 8, 64, (384, 12)),
    Size(128, 1.5e14, 64, 8, 64, (128, 4)),
    Size(128, 3e16, 64, 8, 256, (192, 6)),
    Size(128, math.inf, 96, 12, 256, (384, 12)),
    Size(math.inf, 1.5e14, 112, 8, 256, (128, 4)),
    Size(math.inf, 3e15, 112, 8, 256, (192, 6)),
    Size(math.inf, 3e16, 112, 14, 256, (192, 6)),
    Size(math.inf, 1e19, 224, 14, 512, (384, 12)),
    Size(math.inf, math.inf, 224, 14, 512, (768, 12)),
)
SMALL_WIDTH = 384
"""Up to this width first values and positions are not the published ones."""
SMALL_IMAGES = 48
"""Up to this side images have no detail to spare: gentle crops, and colours as they are."""
TOKEN_STRIDE = 4
"""Pixels of a token along each side of the view of a tokenizer that is trained."""

CROP_SHARE, LITTLE_WORK = 0.62, 4e13
"""Of the shorter side of an image, that a crop of a segmenter shows; multiply-adds of a budget below which it learns
more from images of a smaller size, that are more."""
FEW_STEPS = 800
LEAST_BATCH = {"pretrain": 32, "segment": 2}
"""A run of fewer steps takes smaller batches, but no smaller ones, for twice as many."""
SAME_RATE = ("segment",)
"""Of which the learning rate then stays as it is, and does not follow the size of the batches."""

PROBE_RATES = ((500, 1e-3), (10_000, 1e-2), (math.inf, 1e-1))
"""The learning rate of a linear probe for labelled images up to a number: 2,000 steps of 256 bring it to where L-BFGS
would end where there are many, and stop before where there are few (docs/results.md)."""

UNMIXED: Values = {"mixup": 0.0, "cutmix": 0.0}
PLAIN: Values = {"erasing": 0.0, "randaugment": 0.0}


class Tuning(NamedTuple):
    """A row of the table of fine-tuning: images, encoder and labels up to limits, and what suits them."""

    side: float
    """The largest median side of the images, in pixels."""
    width: float
    """The largest width of the encoder."""
    per_class: float
    """The most labelled images of a class."""
    batch: int
    lr: float
    """At that batch."""
    values: Values


# The first row that fits counts.
TUNINGS = (
    Tuning(48, 767, math.inf, 128, 1e-3, {"mixup": 0.8, "cutmix": 1.0, **PLAIN, "drop_path_rate": 0.1}),
    Tuning(math.inf, 767, 2000, 64, 1e-3, {**UNMIXED, **PLAIN, "drop_path_rate": 0.05}),
    Tuning(math.inf, 767, math.inf, 64, 1e-3, {"drop_path_rate": 0.05}),
    Tuning(math.inf, math.inf, 2000, 64, 5e-4, {**UNMIXED, "erasing": 0.0, "randaugment": 7.0}),
    Tuning(math.inf, math.inf, math.inf, 64, 5e-4, {"drop_path_rate": 0.1}),
)

EPOCHS: Mapping[str, tuple[tuple[float, int], ...]] = {
    "finetune": ((5_000, 100), (20_000, 60), (math.inf, 30)),
    "segment": ((1_000, 200), (math.inf, 100)),
}
"""Labelled images, up to so many, and the most passes over them that a budget is turned into."""
MIXED = 4
"""Times as many where images are mixed, and so never the same: of 480 images of CIFAR-10, 400 passes teach more than
100 (docs/results.md)."""


def choose(verb: str, facts: Facts, typed: Values) -> list[Choice]:
    """The knobs of `verb` that were not `typed`, with the reasons."""
    choices = [
        Choice({name: value for name, value in values.items() if name not in typed}, reason)
        for values, reason in _CHOOSERS[verb](facts, typed)
    ]
    return [choice for choice in choices if choice.values]


def within_epochs(verb: str, config: TrainingConfig, images: int, steps: int) -> tuple[int, str]:
    """So many `steps`, or those of the most passes over the training images that a run of `verb` makes, however much
    time it is given; and a remark on that."""
    epochs = next((epochs for most, epochs in EPOCHS.get(verb, ()) if images <= most), math.inf)
    if isinstance(config, FinetuneConfig) and (config.mixup or config.cutmix):
        epochs *= MIXED
    if steps <= (last := epochs * images / config.batch_size):
        return steps, ""
    return max(1, round(last)), f"; stops at {epochs:.0f} epochs: {counted(images, 'labelled image')}"


def shown(side: float, size: tuple[int, int], patch: int, work: float) -> Values:
    """How a segmenter sees images with shorter sides of `side` pixels: in crops of most of an image, as in the trials
    on CamVid, but no less than the `size` of the encoder's images and no more than twice that; where there is little
    time, made smaller, so that a crop of that size shows as much."""
    height, width = (min(2 * own, max(own, round(CROP_SHARE * side / patch) * patch)) for own in size)
    small = work < LITTLE_WORK and height > size[0]
    return {"crop": size, "resize": round(side * size[0] / height)} if small else {"crop": (height, width)}


def batch_of_few_steps(verb: str, batch: int, steps: int) -> int:
    """The size of the batches of a run that would have so many `steps` of `batch` images: as given, or smaller where
    they are few."""
    least = LEAST_BATCH.get(verb, batch)
    enough = 2 ** round(math.log2(batch * steps / FEW_STEPS / 2))
    return batch if steps >= FEW_STEPS or batch <= least else max(least, enough)


def lasts(typed: Values) -> bool:
    """Whether a length was typed."""
    return any(typed.get(name) is not None for name in ("steps", "epochs", "budget"))


def _pretrain(facts: Facts, typed: Values) -> Iterable[Choice]:
    size = _size(facts)
    grid = facts.grid or (size.grid, size.grid)
    yield _geometry(size, grid, facts, typed, "image_size")
    yield _network(size, facts, typed)
    yield _start(size, typed, layer_scale=None)
    yield from _masks(typed)
    yield from _batch(128, 1e-3, facts, typed)
    yield Choice(
        {"drop_path_rate": 0.0, "min_lr": 1e-5, "warmup_steps": 0.05, "beta2": 0.95, "log_every": 50},
        "a network and a run of this length",
    )
    yield _views(facts, {"min_crop": 0.5}, {"min_crop": 0.3})
    yield _length(typed)


def _tokenizer(facts: Facts, typed: Values) -> Iterable[Choice]:
    kind, reason = _kind(typed)
    yield Choice({"kind": kind}, reason)
    for values, why in _tokens(kind, facts, typed):
        yield Choice({name: value for name, value in values.items() if name not in IDLE[kind]}, why)


def _kind(typed: Values) -> tuple[str, str]:
    """The kind of tokenizer, and why: k-means, unless what is typed is for another."""
    if "kind" in typed:
        return typed["kind"], "as given"
    if not (idle := TokenizerConfig.changed(IDLE["kmeans"], typed)):
        return "kmeans", "patches as they are, told apart in seconds, whatever the time that is given"
    fitting = [kind for kind in ("dvae", "features") if not TokenizerConfig.changed(IDLE[kind], typed)]
    return (fitting or ["dvae"])[0], f"k-means of patches has no use for {flag_of(idle[0])}"


def _tokens(kind: str, facts: Facts, typed: Values) -> Iterable[Choice]:
    """What suits a tokenizer of that kind; knobs that it has no use for among it."""
    size, trained = _size(facts), kind in TRAINED
    grid, image_size = size.grid, typed.get("image_size", size.image_size)
    stride = typed.get("stride", TOKEN_STRIDE if trained else _divisor(image_size, image_size / grid))
    yield Choice(
        {"image_size": grid * stride, "stride": stride},
        f"{grid}x{grid} tokens, as many as the encoder has patches for images of {facts.side:.0f} px",
    )
    learned = 512 if grid <= 8 else 1000 if kind == "fsq" else 1024
    yield Choice(
        {"vocab_size": size.codes if kind == "kmeans" else learned, "width": 32}
        | {"kl_weight": 1.65 * (stride / 4) ** 2},
        "a small vocabulary is learned in little time",
    )
    yield from _batch(32, 1e-3 if kind == "plain" else 5e-3, facts, typed)
    yield Choice(
        {"min_lr": 2.5e-4, "lr_steps": 1.0, "warmup_steps": 100, "kl_steps": 0.2, "clip_grad": 1.0}
        | {"final_temperature": 0.25, "temperature_steps": 1.0, "ema_decay": 0.99},
        "thousands of steps instead of millions",
    )
    yield Choice({"crop": "random_resized", "min_crop": 0.3}, "parts of images at any scale")
    if trained:
        yield _length(typed)


def _finetune(facts: Facts, typed: Values) -> Iterable[Choice]:
    yield from _encoder(facts, typed, "image_size")
    width, per_class = _width(facts, typed), facts.labels_per_class or 0
    rows = (row for row in TUNINGS if facts.side <= row.side and width <= row.width and per_class <= row.per_class)
    tuning = next(rows)
    yield from _batch(tuning.batch, tuning.lr, facts, typed)
    yield Choice(
        {"layer_decay": 0.75, "label_smoothing": 0.1, "warmup_steps": 0.1, "log_every": 20, **tuning.values},
        f"{counted(round(per_class), 'labelled image')} of a class, an encoder of width {width}",
    )
    if width <= SMALL_WIDTH:
        yield Choice({"init_scale": 1.0}, "a short training has no time to grow a head that begins near zero")
    yield _views(facts, {"min_crop": 0.5}, {"min_crop": 0.4})
    yield _length(typed)


def _segment(facts: Facts, typed: Values) -> Iterable[Choice]:
    yield from _encoder(facts, typed, "crop")
    if facts.size is not None and facts.patch is not None:
        values = shown(facts.side, facts.size, facts.patch, facts.work)
        yield Choice(values, f"images of {facts.side:.0f} px (median), an encoder of {max(facts.size)} px")
    width = _width(facts, typed)
    large = width >= 768
    yield from _batch(16 if large else 8, 2e-4 if large else 1e-3, facts, typed)
    yield Choice(
        {"layer_decay": 0.75, "warmup_steps": 0.1, "log_every": 20}
        | ({} if large else {"channels": 64, "drop_path_rate": 0.05, "auxiliary_weight": 0.0}),
        f"an encoder of width {width}",
    )
    yield _length(typed)


def _probe(facts: Facts, typed: Values) -> Iterable[Choice]:
    yield Choice(
        {"augment": False, "standardize": True, "crop_pct": 1.0, "pool": "cls_mean"},
        "one pass of the encoder over the images serves all steps",
    )
    lr = next(lr for most, lr in PROBE_RATES if facts.images <= most)
    yield Choice(
        {"batch_size": 256, "lr": lr, "lr_batch_size": 256, "log_every": 200, "evaluations": 4},
        f"linear classifiers of {counted(facts.images, 'image')} learn in seconds; the fewer, the sooner by heart",
    )
    if not lasts(typed):
        yield Choice({"steps": 2000, "epochs": None}, "a linear classifier has learned what it can by then")


_CHOOSERS = {chooser.__name__[1:]: chooser for chooser in (_tokenizer, _pretrain, _finetune, _segment, _probe)}


# ------------------------------------------------------------------------------------------------------------
# What the verbs share


def _encoder(facts: Facts, typed: Values, image_size: str) -> Iterable[Choice]:
    """The network of a task from scratch, where that is asked for, or described: a forgotten --init is not."""
    described = any(typed.get(name) for name in ("from_scratch", "patch_size", "width", "depth", "num_heads"))
    if typed.get("init") is None and described:
        size = _size(facts)
        yield _geometry(size, (size.grid, size.grid), facts, typed, image_size)
        yield _network(size, facts, typed)
        yield _start(size, typed, layer_scale=0.0)


def _width(facts: Facts, typed: Values) -> int:
    """Channels of the encoder that a task starts with."""
    return facts.width or typed.get("width") or _size(facts).encoder[0]


def _size(facts: Facts) -> Size:
    return next(size for size in SIZES if facts.side <= size.side and facts.work <= size.work)


def _geometry(size: Size, grid: tuple[int, int], facts: Facts, typed: Values, name: str) -> Choice:
    """The image size, a field called `name`, and the patch."""
    stated, patch = typed.get(name), typed.get("patch_size")
    if stated is not None:
        height, width = (stated, stated) if isinstance(stated, int) else stated
        patch = patch or _divisor(math.gcd(height, width), height / grid[0])
    else:
        patch = patch or max(1, round(size.image_size / max(grid)))
        stated = grid[0] * patch if grid[0] == grid[1] else (grid[0] * patch, grid[1] * patch)
    why = "the tokenizer's grid" if facts.grid else f"images of {facts.side:.0f} px (median) and the time"
    return Choice({name: stated, "patch_size": patch}, f"{grid[0]}x{grid[1]} patches: {why}")


def _network(size: Size, facts: Facts, typed: Values) -> Choice:
    width, depth = typed.get("width", size.encoder[0]), size.encoder[1]
    heads = _divisor(width, width / HEAD)
    reason = f"what suits {facts.work:.0e} multiply-adds, all that this machine does in the time"
    return Choice({"width": width, "depth": depth, "num_heads": heads}, reason)


def _start(size: Size, typed: Values, layer_scale: float | None) -> Choice:
    """Positions and first values; `layer_scale` is the verb's word for none."""
    if (width := typed.get("width", size.encoder[0])) > SMALL_WIDTH or width % 4:
        return Choice({}, "as published")
    values = {"position": "sincos", "bias": "none", "init_scheme": "torch", "layer_scale_init": layer_scale}
    if "position" in typed:  # of which the older words say a bias
        del values["bias"]
    return Choice(values, "a small network learns faster from these")


def _masks(typed: Values) -> Iterable[Choice]:
    """What the encoder sees, and what is hidden."""
    fixed = typed.get("mask_count", "exact") == "exact" and typed.get("masking") != "none"
    if not fixed or typed.get("encoder_sees") == "all":
        return
    in_blocks = {"masking", "min_block", "block_aspect"} & typed.keys()
    masks = {} if in_blocks else {"masking": "random", "num_masked": "75%"}
    yield Choice({"encoder_sees": "visible", **masks}, "more images in the time, and a harder task")


def _batch(most: int, lr: float, facts: Facts, typed: Values) -> Iterable[Choice]:
    """The batch size, and a learning rate that is meant for `most` images."""
    batch = min(most, 2 ** max(1, math.floor(math.log2(max(facts.images / 4, 2)))))
    passes = typed.get("accumulate")
    batch *= passes if isinstance(passes, int) else 1
    yield Choice({"batch_size": batch}, counted(facts.images, "training image"))
    yield Choice({"lr": lr, "lr_batch_size": most, "lr_scaling": "sqrt"}, "the best of the trials at this size")


def _views(facts: Facts, small: Values, large: Values) -> Choice:
    if facts.side <= SMALL_IMAGES:
        return Choice({**small, "color_jitter": 0.0}, "small images: gentle crops, colours as they are")
    return Choice({**large, "color_jitter": 0.3}, "images with detail to spare")


def _length(typed: Values) -> Choice:
    return Choice({} if lasts(typed) else {"budget": BUDGET}, "no --budget, --steps or --epochs is given")


def _divisor(whole: int, near: float) -> int:
    """The divisor of `whole` that is nearest to `near`."""
    divisors = [number for number in range(1, whole + 1) if whole % number == 0]
    return min(divisors, key=lambda number: abs(math.log(number / max(near, 1))))
