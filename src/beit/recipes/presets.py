"""`beit presets`: recipes and released models by name, each with its source."""

import importlib
import shutil
import textwrap
from typing import Any

from beit.config.architecture import sides
from beit.config.files import layered
from beit.config.pretrain import PretrainConfig
from beit.config.use import PresetsConfig
from beit.config.values import counted
from beit.presets import ENCODERS, VERBS, Values, recipes_of
from beit.presets.released import RELEASED

WIDEST = 100
EPOCH = 10_000
"""Images of an epoch, where a recipe says how many of these there are."""


def presets(config: PresetsConfig) -> None:
    """Print the tables; of one verb with what its recipes take on this machine. All of them are there at once."""
    rate = None
    if config.verb in VERBS:
        from beit.stages.auto.choices import rate_of
        from beit.training.device import Compute, choose_device, choose_precision

        compute = Compute(choose_device("auto"))
        rate = rate_of(compute, choose_precision("auto", compute.device))
    for verb in VERBS if config.verb is None else {config.verb} & {*VERBS}:
        print(f"beit {verb} --preset NAME\n")
        recipes = sorted(recipes_of(verb).items(), key=lambda recipe: ENCODERS.index(size_of(recipe[0])))
        for name, preset in recipes:
            print(f"  {name}")
            _print(preset.summary)
            _print(", ".join(f"{key} {'none' if x is None else x}" for key, x in preset.values.items()))
            _print(f"source: {preset.source}; cost: {preset.cost}; expect: {preset.expected}")
            if rate is not None:
                _print(f"on this machine: {time_here(verb, name, rate)}")
            print()
    if config.verb not in (None, "models"):
        return
    print("released models, for --init, --model, --tokenizer, beit info and beit convert: NAME\n")
    for name, release in RELEASED.items():
        print(f"  {name}")
        _print(release.what)
        _print(f"licence: {release.licence}; source: {', '.join(release.files) or f'hf://{release.hub}'}")
        print()


def _print(text: str) -> None:
    """Lines that fit the terminal; addresses whole."""
    width = min(WIDEST, shutil.get_terminal_size().columns) - 6
    lines = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    print(textwrap.indent(lines, 6 * " "))


def time_here(verb: str, name: str, rate: float) -> str:
    """The least that a recipe takes at so many multiply-adds a second; of a task its encoder alone."""
    from beit.training.console import duration

    config_type = getattr(importlib.import_module(f"beit.config.{verb}"), f"{verb.capitalize()}Config")
    knobs = layered(config_type, [recipes_of(verb)[name].values])
    size = size_of(name)
    encoder = layered(PretrainConfig, [recipes_of("pretrain")[name if verb == "pretrain" else size].values])
    side = knobs.get("crop") or knobs.get("image_size") or encoder["image_size"]
    work = work_of_tokenizer(knobs) if verb == "tokenizer" else work_of_encoder(encoder, sides(side))
    by = "" if verb in ("tokenizer", "pretrain") else f", of a {size} encoder"
    steps, passes = (None, 1) if verb == "probe" else (knobs["steps"], 3)  # forward, and twice that backward
    images, what = (steps * knobs["batch_size"], counted(steps, "step")) if steps else (EPOCH, f"{EPOCH:,} images")
    return f"{what} in {duration(passes * images * work / rate)} at best{by}"


def size_of(name: str) -> str:
    """Of the encoder that a recipe is for, base where its name does not say."""
    return next((size for size in ENCODERS if name.startswith(size)), "base")


def work_of_encoder(knobs: Values, size: tuple[int, int]) -> float:
    """Multiply-adds of an image of `size` pixels through the blocks of an encoder."""
    tokens, width = 1 + (size[0] // knobs["patch_size"]) * (size[1] // knobs["patch_size"]), knobs["width"]
    return float(knobs["depth"] * tokens * width * ((4 + 2 * knobs["mlp_ratio"]) * width + 2 * tokens))


def work_of_tokenizer(knobs: Values) -> float:
    """Multiply-adds of an image through a discrete VAE, counted on a small one."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from beit.config.tokenizer import TokenizerConfig
    from beit.tokenizers.dvae import DiscreteVAE

    small = 4 * knobs["stride"]
    architecture: Any = TokenizerConfig(**{**knobs, "data": "-", "out": "x", "image_size": small}).architecture()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        DiscreteVAE(architecture)(torch.rand(1, 3, small, small), 1.0, torch.rand(1, 4, 4, knobs["vocab_size"]))
    return float(counter.get_total_flops() / 2 * (knobs["image_size"] / small) ** 2)
