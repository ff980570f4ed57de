"""`--preset auto` before a run begins: the facts about images and machine that a recipe is chosen from.

It is chosen once, on the main rank, shared, and stored with the configuration; no random number of the run is drawn.
"""

import dataclasses
import statistics
import time
from contextlib import suppress
from typing import Any

import torch

from beit.config.architecture import sides
from beit.config.errors import require
from beit.config.run import TrainingConfig
from beit.data.base import Source
from beit.data.decode import ImageError
from beit.data.sources.files import decoding_in
from beit.data.sources.subsets import spread
from beit.presets import BUDGET, NOTHING_KNOWN, Choice, Facts, resolve
from beit.stages.session import PLAIN_PIXELS, Config, Images, Session
from beit.tokenizers.base import VisualTokenizer
from beit.training.device import Compute, Precision, choose_precision

SAMPLE = 32
"""Images that are looked at for their size."""
MATRIX, PRODUCTS_FOR = 1024, 0.2
"""Side of the matrices whose products tell the machine's rate, and for how many seconds they are made."""


def settle(
    session: Session[Config], images: Images, tokenizer: VisualTokenizer | None = None
) -> tuple[Session[Config], Config]:
    """`session` with every value in its configuration, and that: for a new run with `--preset auto`, what suits
    `images`, this machine, and the tokenizer that is given. The steps that a budget allows are still open."""
    config, choices = session.config, list[Choice]()
    if config.preset is not None:
        config, choices = session.compute.from_main(lambda: resolve(config, facts_of(session, images, tokenizer)))
    if config.pixels is None:
        pixels = session.compute.from_main(lambda: pixels_of(config, images))
        config = dataclasses.replace(config, pixels=pixels).as_typed(config.typed)
        config.check()
    return session._replace(config=config, choices=tuple(choices)), config


def pixels_of(config: TrainingConfig, images: Images) -> dict[str, Any]:
    """What `images` are, with the mean and deviation of their channels where these are to normalise an encoder."""
    from beit.data.sources.measure import statistics_of  # which few sets need

    decoding, stated = decoding_in(images.train), config.typed.get("normalization")
    pixels = {name: getattr(decoding, name) for name in PLAIN_PIXELS}
    fits = stated != "imagenet" or decoding.channels == 3
    require(fits, f"--normalization imagenet is for 3 channels, and images have {decoding.channels}; drop it")
    makes_encoder = hasattr(config, "normalization") and getattr(config, "init", None) is None
    if makes_encoder and (stated == "data" or (stated is None and (decoding.channels, decoding.bits) != (3, 8))):
        pixels["mean"], pixels["std"] = statistics_of(images.train)
    return pixels


def facts_of(session: Session[Config], images: Images, tokenizer: VisualTokenizer | None) -> Facts:
    """What the choices hang on."""
    config, compute = session.config, session.compute
    seconds = config.budget_seconds() or dataclasses.replace(config, budget=BUDGET).budget_seconds()
    classes = images.train.classes
    size = sides(getattr(config, "token_image_size", None)) or tokenizer.image_size if tokenizer else None
    stride = 1 if tokenizer is None else tokenizer.stride
    return dataclasses.replace(
        session.facts,
        side=median_side(images.train),
        images=len(images.train),
        labels_per_class=len(images.train) / len(classes) if classes else None,
        work=(seconds or 0) * rate_of(compute, choose_precision(config.precision, compute.device)),
        grid=None if size is None else (size[0] // stride, size[1] // stride),
    )


def median_side(source: Source) -> float:
    """Median of the shorter sides of a few images, in pixels; damaged ones are left out."""
    lengths = []
    for index in spread(len(source), min(SAMPLE, len(source))):
        with suppress(ImageError):
            lengths.append(min(source.image(index).shape[-2:]))
    return float(statistics.median(lengths)) if lengths else NOTHING_KNOWN.side


def rate_of(compute: Compute, precision: Precision) -> float:
    """Multiply-adds a second in products of matrices, on all devices together."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.full((MATRIX, MATRIX), 0.5, device=compute.device, dtype=dtype)
    times, ends = list[float](), time.monotonic() + PRODUCTS_FOR
    with torch.no_grad():
        while len(times) < 3 or time.monotonic() < ends:
            start = time.monotonic()
            float((matrix @ matrix)[0, 0])  # which waits for it
            times.append(time.monotonic() - start)
    return compute.world * MATRIX**3 / min(times)  # the quickest, for a machine may do something else as well
