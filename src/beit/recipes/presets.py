"""`beit presets`: the recipes by name, each with its source, cost and expected result."""

from __future__ import annotations

from beit.config import PresetsConfig
from beit.presets import TABLES


def presets(config: PresetsConfig) -> None:
    """Print the table of recipes. Plain text: this must answer at once."""
    for config_type, table in TABLES.items():
        print(f"beit {config_type.__name__.removesuffix('Config').lower()} --preset NAME\n")
        for name, preset in table.items():
            values = ", ".join(f"{key} {value}" for key, value in preset.values.items())
            print(f"  {name}\n      {preset.summary}\n      {values}")
            print(f"      source: {preset.source}; cost: {preset.cost}; expect: {preset.expected}\n")
