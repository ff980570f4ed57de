"""`beit train`: from images to a model in one command, which continues where it was stopped.

The folder is a run directory whose parts are ordinary runs in it; `parts` says which, and what they hold.
"""

import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from beit.config.files import read_record
from beit.config.pretrain import PretrainConfig
from beit.config.run import seconds_of
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import Outcome, TrainConfig
from beit.config.values import counted
from beit.patience import DEFAULT
from beit.presets.trials import FETCHED, RELEASED, seed_spread
from beit.recipes.train.parts import Part, begin, choose_parts, made_tokenizer, own_values, planned, restored
from beit.training.console import Console, duration
from beit.training.device import open_compute
from beit.training.run.directory import CONFIG, REPORT, RESULTS, Request
from beit.training.run.opening import open_run
from beit.training.run.record import RunRecord, read_standing
from beit.untrusted import read_json
from beit.verdicts.comparison import comparisons
from beit.visualize.report import write_report

TITLES = {
    "tokenizer": "a visual tokenizer, which turns images into a grid of tokens",
    "pretrain": "an encoder, which predicts the tokens of hidden patches, without labels",
    "classifier": "a classifier",
    "segmenter": "a class for every pixel",
    "scratch": "the same from scratch, to compare",
}
SAME = "Both had the same labels and steps, not the same time: pre-training took more."
REMEDY = "What would: a released encoder (--init), more unlabelled images, or more time."
LONGER = 4
"""How many times as long the run is that is advised where one was too short."""


def train(config: TrainConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Everything from the images of `config.data` to a model and a report in `config.out`."""
    began, folder = time.monotonic(), Path(config.out)
    patience = [
        seconds_of(part["timeout"], "--timeout") for part in (config.parts or {}).values() if "timeout" in part
    ]
    compute = open_compute(config.device, min(patience, default=DEFAULT))
    console = Console(compute.main)
    if not overwrite and (folder / RESULTS).exists():
        console.say(f"{folder} is finished; nothing to do (--overwrite starts afresh; for another --budget: --out)")
        return Outcome(config, read_json(folder / RESULTS) or {})
    journey = begin(config, folder)
    parts, budget = config.parts, None
    if parts is None and not overwrite and (folder / CONFIG).exists():  # chosen at an earlier start
        parts = read_record(folder / CONFIG, TrainConfig)[0].get("parts")
    if parts is None:
        if not dry_run and config.init is None:
            console.say("first a visual tokenizer, by whose tokens and time the rest is planned\n")
        chosen = planned(config) if dry_run else choose_parts(journey, partial(made_tokenizer, overwrite=overwrite))
        parts, budget = {part.name: own_values(part.config) for part in chosen}, config.budget
        for line in ["" if dry_run else "\nthe plan", *in_words(chosen, config.budget), *journey.words()]:
            console.say(line)
    config = dataclasses.replace(config, parts=parts)
    steps = restored(journey, parts)
    if dry_run:
        return Outcome(config)
    request = Request("train", dataclasses.asdict(config), began=began)
    with open_run(folder, request, compute=compute, console=console, overwrite=overwrite, parts=parts) as run:
        run.write_status(**({"budget": budget} if budget else {}))
        for number, part in enumerate(steps, start=1):
            console.say(f"\n{number} of {len(steps)}: {TITLES[part.name]} ({part.config.out})\n")
            if budget is not None and part.name == "tokenizer":
                console.say("made before the plan, above")
            else:
                part.run(overwrite=overwrite)
        records = {part.name: read_standing(Path(part.config.out)) for part in steps}
        lines = verdict(records)
        for line in lines:
            console.say(line)
        results = {name: record.results.get("last", {}) for name, record in records.items()}
        results |= {"verdict": lines, "seconds": run.elapsed}
        if compute.main:
            took = f"took {duration(run.elapsed)}{f' of a budget of {run.budget}' if run.budget else ''}"
            conclude(config, records, [*lines, f"It {took}."], console)
        run.finish(results)
    return Outcome(config, results)


def conclude(config: TrainConfig, records: Mapping[str, RunRecord], notes: Sequence[str], console: Console) -> None:
    """Write the page, with `notes` at its head, and say what to do next."""
    folder = Path(config.out)
    [*_, (model, last)] = [(name, record) for name, record in records.items() if name != "scratch"]
    commands = next_steps(config, last)
    page = write_report([*records.values()], folder / REPORT, title=folder.name, notes=[*notes, *commands])
    for line in [notes[-1], f"{folder} stands for {folder / model}; open {page} in a browser", *commands]:
        console.say(line)


def next_steps(config: TrainConfig, last: RunRecord) -> list[str]:
    """What to type next, by the verdict on the model."""
    mends = dict.fromkeys(line["mend"] for line in last.results["verdict"] if line["mend"])
    if not mends:
        return [f"next: {last.results['next']}"]
    longer = f"{LONGER * seconds_of(config.budget) / 60:g}m"
    ways = {f"{LONGER} times as long": ["--budget", longer, "--out", f"{config.out}-{longer}"]}
    if config.init is None and last.verb != "pretrain":
        released = ["--init", RELEASED, "--budget", config.budget, "--out", f"{config.out}-released"]
        ways = {f"from a released encoder ({FETCHED})": released, **ways}
    commands = [f"{way}: {shlex.join(['beit', 'train', *config.flags(), *flags])}" for way, flags in ways.items()]
    return [f"to mend first: {'; '.join(mends)}", *commands]


def in_words(parts: Sequence[Part], budget: str) -> list[str]:
    """What will be done, a line for each part, and how long it will take."""
    width, lines = max(len(part.name) for part in parts), list[str]()
    for part in parts:
        config = part.config
        what = f"{counted(config.steps or 0, 'step')} of {counted(config.batch_size, 'image')}"
        if isinstance(config, TokenizerConfig):
            what = f"{config.kind}, {config.vocab_size} codes"
        elif isinstance(config, PretrainConfig):
            what += f", an encoder of width {config.width} and {counted(config.depth, 'block')}"
        lines.append(f"{part.name:<{width}}  {what}, {duration(part.seconds)}")
    in_all = duration(sum(part.seconds for part in parts))
    return [*lines, f"{'in all':<{width}}  about {in_all} of a budget of {budget}"]


def verdict(records: Mapping[str, RunRecord]) -> list[str]:
    """What the models are, and what pre-training was worth, in words."""
    tasks = [name for name in ("classifier", "segmenter") if name in records]
    lines = [f"{name}: {line['text']}" for name in tasks for line in records[name].results["verdict"]]
    compared = comparisons([*records.values()], seed_spread)
    if any(line.startswith("scratch is better") for line in compared):
        compared += [SAME, f"Pre-training does not pay here. {REMEDY}"]
    elif any("cannot be told apart" in line for line in compared):
        compared += [SAME, f"That pre-training pays here is not shown. {REMEDY}"]
    elif compared:
        compared += [SAME]
    return [*lines, *compared]
