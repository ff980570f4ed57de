"""`beit convert`."""

from beit import checkpoints
from beit.config.use import ConvertConfig, Outcome


def convert(config: ConvertConfig) -> Outcome:
    """Convert, print what was adapted, line by line, and where the result is, and return the lines as `notes`."""
    notes = checkpoints.convert(config.source, config.destination, config.to)
    for note in notes:
        print(note)
    print(f"{config.destination} holds {config.source} for {config.to}")
    return Outcome(config, {"notes": notes})
