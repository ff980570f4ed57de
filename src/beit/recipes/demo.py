"""`beit demo`: the journey of `beit train` on built-in images, by presets of its own, in minutes on a CPU."""

from __future__ import annotations

from typing import Any

from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import DemoConfig, TrainConfig
from beit.presets import configure, find
from beit.recipes.train.parts import own_values
from beit.recipes.train.run import train

NOTES = (
    "This page was made by five short trainings on scenes that the package draws itself. First k-means chose the "
    "patches that stand for all others, a vocabulary of visual tokens; then an encoder that sees a quarter of each "
    "scene learned to predict the tokens of the rest. Neither learned from a label.",
    "Tokens of k-means teach little of what a reconstruction needs, and cost seconds: that leaves the minutes to the "
    "encoder. With an hour on the same machine, or a GPU, the masked-token loss goes on falling below its baselines; "
    "docs/results.md in the repository has such runs.",
    "Then the same network learned the classes from {labels} labelled scenes of each class twice, with the same "
    "recipe and the same number of steps: once from the pre-trained encoder (finetune), once from scratch. What "
    "pre-training is worth is the difference between the two on scenes that neither has seen.",
    "Last, from the same encoder, a small decoder learned to name the class of every pixel (segment). Most pixels "
    "are ground, so look at the overlap of each class and at the pictures rather than at the share of right pixels.",
)


def demo(config: DemoConfig) -> None:
    """Train a tokenizer, an encoder, two classifiers and a segmenter on built-in scenes, and write a report.

    Continues where it was stopped.
    """
    parts = {
        "tokenizer": part(TokenizerConfig, config),
        "pretrain": part(PretrainConfig, config, tokenizer="tokenizer"),
        "classifier": part(FinetuneConfig, config, init="pretrain"),
        "scratch": part(FinetuneConfig, config, from_scratch=True),
        "segmenter": part(SegmentConfig, config, init="pretrain"),
    }
    labels = find(FinetuneConfig, "demo").values["labels_per_class"]
    journey = TrainConfig(data="demo", out=config.out, seed=config.seed, labels_per_class=labels, parts=parts)
    train(journey, overwrite=config.overwrite, notes=[note.format(labels=labels) for note in NOTES])
    print("next: beit plan photos/   (your own photographs)")


def part(config_type: type[TrainingConfig], config: DemoConfig, **values: Any) -> dict[str, Any]:
    """The demo preset of a verb, with its steps, those of the warm-up among them, times `config.scale`."""
    preset = find(config_type, "demo").values
    lengths = {name: round(preset[name] * config.scale) for name in ("steps", "warmup_steps") if name in preset}
    if "steps" in lengths:
        lengths["steps"] = max(1, lengths["steps"])
    return own_values(configure(config_type, "demo", data="demo", out=config.out, **lengths, **values))
