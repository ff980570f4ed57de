"""`beit convert`."""

from __future__ import annotations

from beit import checkpoints
from beit.config.use import ConvertConfig


def convert(config: ConvertConfig) -> list[str]:
    """Convert, and print what was adapted, line by line, and where the result is."""
    notes = checkpoints.convert(config.source, config.destination, config.to)
    for note in notes:
        print(note)
    print(f"{config.destination} holds {config.source} for {config.to}")
    return notes
