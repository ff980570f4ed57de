"""`beit demo`: the journey of `beit train` on built-in images, in minutes on a CPU."""

from typing import Any

from beit.config.use import DemoConfig, Outcome, TrainConfig
from beit.presets import Facts, resolve
from beit.recipes.train.parts import TYPES, own_values
from beit.recipes.train.run import train

LABELS = 100
"""Of each class, that the classifiers learn from: few enough for pre-training to show."""
FACTS = Facts(side=64.0, images=5_700, labels_per_class=LABELS, work=1e14, grid=(8, 8), width=128)
"""Of the built-in scenes, for minutes of a CPU; stated, so that the demo is the same everywhere."""


def demo(config: DemoConfig) -> Outcome:
    """Train a tokenizer, an encoder, two classifiers and a segmenter on built-in scenes, and write a report.

    Continues where it was stopped.
    """
    parts = {
        "tokenizer": part("tokenizer", config, eval_images=256),
        "pretrain": part("pretrain", config, 700, tokenizer="tokenizer", lr=2e-3, eval_images=256, evaluations=3),
        "classifier": part("classifier", config, 150, init="pretrain", evaluations=3),
        "scratch": part("classifier", config, 150, from_scratch=True, evaluations=3),
        "segmenter": part("segmenter", config, 400, init="pretrain", window="whole", eval_images=128, evaluations=2),
    }
    journey = TrainConfig(data="demo", out=config.out, seed=config.seed, labels_per_class=LABELS, parts=parts)
    outcome = train(journey, overwrite=config.overwrite)
    print("next: beit plan photos/   (your own photographs)")
    return outcome


def part(name: str, config: DemoConfig, steps: int | None = None, **typed: Any) -> dict[str, Any]:
    """What auto chooses for a part of a journey on the scenes, with so many steps times `config.scale`."""
    if steps is not None:
        typed["steps"] = max(1, round(steps * config.scale))
    resolved, _ = resolve(TYPES[name](data="demo", out=config.out, **typed), FACTS)
    return own_values(resolved)
