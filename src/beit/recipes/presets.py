"""`beit presets`: recipes and released models by name, each with its source."""

from __future__ import annotations

import shutil
import textwrap

from beit.config.use import PresetsConfig
from beit.presets import VERBS, recipes_of
from beit.presets.released import RELEASED

COSTS = {"base": 1, "large": 2}
"""The order of recipes by the beginnings of their names; those for small machines come first."""


def presets(config: PresetsConfig) -> None:
    """Print the tables, small recipes first. Plain text: this must answer at once."""
    for verb in (config.verb,) if config.verb else VERBS:
        print(f"beit {verb} --preset NAME\n")
        recipes = recipes_of(verb)
        for name in sorted(reversed([*recipes]), key=lambda name: COSTS.get(name.partition("-")[0], 0)):
            preset = recipes[name]
            values = ", ".join(f"{key} {value}" for key, value in preset.values.items())
            evidence = f"source: {preset.source}; cost: {preset.cost}; expect: {preset.expected}"
            _print(name, preset.summary, values, evidence)
    if config.verb is None:
        print("released models, for --init, --model, --tokenizer, beit info and beit convert: NAME\n")
        for name, release in RELEASED.items():
            _print(name, release.what, f"source: {', '.join(release.files) or f'hf://{release.hub}'}")


def _print(name: str, *paragraphs: str) -> None:
    """An entry, wrapped at the width of the terminal."""
    indent, width = " " * 6, shutil.get_terminal_size((110, 24)).columns
    lines = [
        textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
        for text in paragraphs
        if text
    ]
    print("\n".join([f"  {name}", *lines, ""]))
