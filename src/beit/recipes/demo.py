"""`beit demo`: the whole story on built-in images, from pixels to classes and regions, in minutes on a CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from beit.config.errors import require
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import DemoConfig, EvaluateConfig
from beit.data.sources.demo import DemoSource
from beit.presets import configure, find
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.segment import segment
from beit.recipes.tokenizer.run import tokenizer
from beit.stages.inference import open_machine_alone
from beit.stages.scores.comparison import compare_classifiers
from beit.training.console import duration
from beit.training.run.record import RunRecord, read_standing
from beit.visualize.report import write_report

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

Config = TypeVar("Config", bound=TrainingConfig)


def demo(config: DemoConfig) -> None:
    """Train a tokenizer, an encoder, two classifiers and a segmenter on built-in scenes, and write a report.

    Continues where it was stopped.
    """
    started, out = time.monotonic(), Path(config.out)
    require(not (out / "config.yaml").exists(), f"--out {out} is a run; choose another folder for the demo")
    runs = {name: out / name for name in ("tokenizer", "pretrain", "finetune", "scratch", "segment")}
    labels = find(FinetuneConfig, "demo").values["labels_per_class"]

    print("1 of 6: a visual tokenizer, which turns images into a grid of tokens\n", flush=True)
    again = config.overwrite
    tokenizer(_config(TokenizerConfig, config, runs["tokenizer"]), overwrite=again)
    print("\n2 of 6: an encoder, which predicts the tokens of hidden patches\n", flush=True)
    pretrain(
        _config(PretrainConfig, config, runs["pretrain"], tokenizer=str(runs["tokenizer"])), overwrite=again
    )
    print(f"\n3 of 6: a classifier from that encoder and {labels} labels of each class\n", flush=True)
    finetune(_config(FinetuneConfig, config, runs["finetune"], init=str(runs["pretrain"])), overwrite=again)
    print("\n4 of 6: the same classifier from scratch\n", flush=True)
    finetune(_config(FinetuneConfig, config, runs["scratch"], from_scratch=True), overwrite=again)
    print("\n5 of 6: a class for every pixel, from that encoder\n", flush=True)
    segment(_config(SegmentConfig, config, runs["segment"], init=str(runs["pretrain"])), overwrite=again)
    print("\n6 of 6: what it came to, and the report\n", flush=True)
    records = {name: read_standing(run) for name, run in runs.items()}
    lines = _verdict(records)
    print("\n".join(lines))
    notes = [note.format(labels=labels) for note in NOTES] + lines
    page = write_report([*records.values()], out / "report.html", title="beit demo", notes=notes)
    print(f"done in {duration(time.monotonic() - started)}; open {page} in a browser")
    print("next: beit check --data FOLDER   (your own photographs)")


def _verdict(records: Mapping[str, RunRecord]) -> list[str]:
    """What pre-training was worth, and how well regions are found, in words."""
    first, second = (str(records[name].folder) for name in ("finetune", "scratch"))
    figures = {name: record.results["last"] for name, record in records.items()}
    scenes = DemoSource("test")
    machine = open_machine_alone(EvaluateConfig(model=first, data="demo"))
    gain = compare_classifiers(first, second, scenes, machine)
    return [
        f"the class of {len(scenes):,} scenes that were never trained on: pre-trained "
        f"{figures['finetune']['test/top1']:.1%} right, from scratch {figures['scratch']['test/top1']:.1%}; the "
        f"difference is {100 * gain.mean:.1f} points, and lies between {100 * gain.low:.1f} and "
        f"{100 * gain.high:.1f} with 95 % confidence",
        f"the class of every pixel of these scenes: mean overlap (mIoU) {figures['segment']['test/miou']:.1%}",
    ]


def _config(config_type: type[Config], config: DemoConfig, out: Path, **values: Any) -> Config:
    """The demo preset of a verb, with its steps, those of the warm-up among them, times `config.scale`."""
    preset, lengths = find(config_type, "demo").values, dict[str, int]()
    if "steps" in preset:
        lengths["steps"] = max(1, round(preset["steps"] * config.scale))
        lengths["warmup_steps"] = round(preset["warmup_steps"] * config.scale)
    return configure(config_type, "demo", data="demo", out=str(out), seed=config.seed, **lengths, **values)
