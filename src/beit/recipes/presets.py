"""`beit presets`: recipes and released models by name, each with its source."""

from beit.config.use import PresetsConfig
from beit.presets import VERBS, recipes_of
from beit.presets.released import RELEASED


def presets(config: PresetsConfig) -> None:
    """Print the tables. Plain text: this must answer at once."""
    for verb in VERBS if config.verb is None else {config.verb} & {*VERBS}:
        print(f"beit {verb} --preset NAME\n")
        for name, preset in reversed([*recipes_of(verb).items()]):  # the small ones first
            values = ", ".join(f"{key} {value}" for key, value in preset.values.items())
            print(f"  {name}\n      {preset.summary}\n      {values}")
            print(f"      source: {preset.source}; cost: {preset.cost}; expect: {preset.expected}\n")
    if config.verb not in (None, "models"):
        return
    print("released models, for --init, --model, --tokenizer, beit info and beit convert: NAME\n")
    for name, release in RELEASED.items():
        source = ", ".join(release.files) or f"hf://{release.hub}"
        print(f"  {name}\n      {release.what}\n      licence: {release.licence}; source: {source}\n")
