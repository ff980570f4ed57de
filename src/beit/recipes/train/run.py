"""`beit train`: from images to a model in one command, which continues where it was stopped.

The folder is a run directory whose parts are ordinary runs in it; `parts` says which, and what they hold.
"""

import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_OFFLINE

import beit.recipes.train.parts as journeys
from beit.config.files import read_record
from beit.config.pretrain import PretrainConfig
from beit.config.run import seconds_of
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import Outcome, TrainConfig
from beit.config.values import counted
from beit.patience import DEFAULT
from beit.presets.trials import FETCHED, RELEASED, seed_spread
from beit.training.console import Console, duration
from beit.training.device import open_compute
from beit.training.run.directory import CONFIG, REPORT, RESULTS, Request, RunDirectory
from beit.training.run.opening import open_run
from beit.training.run.record import RunRecord, read_standing
from beit.untrusted import read_json
from beit.verdicts.comparison import comparisons
from beit.verdicts.rules import FEW, LABEL_MORE, MORE_JUDGED, few_images, interval_of
from beit.visualize.report import write_report

TITLES = {
    "tokenizer": "a visual tokenizer, which turns images into a grid of tokens",
    "pretrain": "an encoder, which predicts the tokens of hidden patches, without labels",
    "classifier": "a classifier",
    "segmenter": "a class for every pixel",
    "scratch": "the same from scratch, to compare",
}
SAME = "Both had the same labels and steps; the time of pre-training came on top of that."
REMEDY = "It may pay with a released encoder (--init), with more unlabelled images, or in more time."
TOO_FEW = "On so few held-back images a small difference looks like chance."
MUCH_MORE = 1.25
"""How many times as much time as was planned for a task is worth a longer one."""
LONGER = 4
"""How many times as long the run is that is advised where one was too short."""


def train(config: TrainConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Everything from the images of `config.data` to a model and a report in `config.out`."""
    began, folder = time.monotonic(), Path(config.out)
    timeouts = [part["timeout"] for part in (config.parts or {}).values() if "timeout" in part]
    compute = open_compute(config.device, min((seconds_of(x, "--timeout") for x in timeouts), default=DEFAULT))
    console = Console(compute.main)
    if not overwrite and (folder / RESULTS).exists():
        console.say(f"{folder} is finished; nothing to do (--overwrite starts afresh; for another --budget: --out)")
        return Outcome(config, read_json(folder / RESULTS) or {})
    journey = journeys.begin(config, folder)
    parts, notes = config.parts, dict[str, Any]()
    if parts is None and not overwrite and (folder / CONFIG).exists():  # chosen at an earlier start
        parts = read_record(folder / CONFIG, TrainConfig)[0].get("parts")
    if parts is None:
        console.say("first some steps of each part, whose time tells what fits into the budget\n")
        make = partial(journeys.made_tokenizer, overwrite=overwrite)
        chosen = journeys.planned(config) if dry_run else journeys.choose_parts(journey, make)
        parts = {part.name: journeys.own_values(part.config) for part in chosen}
        notes = {"budget": config.budget, "times": {part.name: part.seconds for part in chosen}}
        notes["warnings"] = compute.from_main(journey.warnings)
        for line in ["\nthe plan", *in_words(chosen, config.budget), *journey.words(), *notes["warnings"]]:
            console.say(line)
    whole = dataclasses.replace(config, parts=parts)
    names = [part.name for part in journeys.restored(journey, parts)]
    if dry_run:
        return Outcome(whole)
    request = Request("train", dataclasses.asdict(whole), began=began)
    with open_run(folder, request, compute=compute, console=console, overwrite=overwrite, parts=parts) as run:
        run.write_status(**notes)
        for number, name in enumerate(names, start=1):
            console.say(f"\n{number} of {len(names)}: {TITLES[name]} ({folder / name})\n")
            if name == journey.task and (seconds := compute.from_main(partial(time_left, run, names, overwrite))):
                parts = journeys.fit_task(journey, parts, seconds, console.say)
                run.change_config(parts=parts)
            if notes and name == "tokenizer":
                console.say("made before the plan, above")
            else:
                journeys.restored(journey, parts)[number - 1].run(overwrite=overwrite)
        records = {name: read_standing(folder / name) for name in names}
        for line in (lines := [*verdict(records), *(run.noted("warnings") or [])]):
            console.say(line)
        last = {name: record.results.get("last", {}) for name, record in records.items()}
        results = {**last, "verdict": lines, "seconds": run.elapsed}
        if compute.main:
            budget = run.noted("budget")
            took = f"It took {duration(run.elapsed)}{f' of a budget of {budget}' if budget else ''}."
            conclude(config, records, [*lines, took], console)
        run.finish(results)
    return Outcome(whole, results)


def time_left(run: RunDirectory, names: Sequence[str], overwrite: bool) -> float | None:
    """Seconds of the budget that pre-training has left for the task; None where the task has begun, nothing was
    planned for a budget, or about as many are left as were planned."""
    tasks = [name for name in names if name not in ("tokenizer", "pretrain")]
    begun = [name for name in tasks if (run.path / name / CONFIG).exists()]
    budget, times = run.noted("budget"), run.noted("times")
    if budget is None or times is None or (begun and not overwrite) or "pretrain" not in names:
        return None
    left = max(1.0, (1 - journeys.RESERVE) * seconds_of(budget) - run.elapsed)
    planned = sum(journeys.BESIDE + times[name] for name in tasks)
    return None if planned <= left <= MUCH_MORE * planned else left


def conclude(config: TrainConfig, records: Mapping[str, RunRecord], notes: Sequence[str], console: Console) -> None:
    """Write the page, with `notes` at its head, and say what to do next."""
    folder = Path(config.out)
    [*_, (model, last)] = [(name, record) for name, record in records.items() if name != "scratch"]
    commands = next_steps(config, last, any(REMEDY in note for note in notes))
    page = write_report([*records.values()], folder / REPORT, title=folder.name, notes=[*notes, *commands])
    for line in [notes[-1], f"{folder} stands for {folder / model}; open {page} in a browser", *commands]:
        console.say(line)


def next_steps(config: TrainConfig, last: RunRecord, unsure: bool = False) -> list[str]:
    """What to type next, by the verdict on the model; where it is `unsure` that pre-training pays, by that too. Where
    the parts were given, and not chosen for a budget, no other budget is advised."""
    mends = dict.fromkeys(line["mend"] for line in last.results["verdict"] if line["mend"])
    to_mend = [f"to mend first: {'; '.join(mends)}"] if mends else []
    if config.parts is not None or not (mends or unsure):
        return to_mend or [f"next: {last.results['next']}"]
    longer = f"{LONGER * seconds_of(config.budget) / 60:g}m"
    ways = {f"{LONGER} times as long": ["--budget", longer, "--out", f"{config.out}-{longer}"]}
    if config.init is None and last.verb != "pretrain" and not HF_HUB_OFFLINE:
        released = ["--init", RELEASED, "--budget", config.budget, "--out", f"{config.out}-released"]
        ways = {f"from a released encoder ({FETCHED})": released, **ways}
    more = ["--holdout", "0.5"] if any(MORE_JUDGED in mend for mend in mends) and config.holdout is None else []
    same = shlex.join(["beit", "train", *config.flags(), *more])
    commands = [f"{way}: {same} {shlex.join(flags)}" for way, flags in ways.items()]
    first = f"next, {commands.pop(0)}" if mends else f"next: {last.results['next']}"
    return [*to_mend, first, *(f"or {other}" for other in commands)]


def in_words(parts: Sequence[journeys.Part], budget: str) -> list[str]:
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
    lines.append(f"{'in all':<{width}}  about {duration(sum(x.seconds for x in parts))} of a budget of {budget}")
    few = few_images(judged := max(part.judged for part in parts))
    mend = LABEL_MORE if parts[0].config.holdout else MORE_JUDGED
    return [*lines, f"{'judged on':<{width}}  {counted(judged, 'held-back image')}; {few}: {mend}"] if few else lines


def verdict(records: Mapping[str, RunRecord]) -> list[str]:
    """What the models are, and what pre-training was worth, in words."""
    tasks = [name for name in ("classifier", "segmenter") if name in records]
    lines = [f"{name}: {line['text']}" for name in tasks for line in records[name].results["verdict"]]
    compared = comparisons([*records.values()], seed_spread)
    lines += [*compared, *([SAME] if compared else [])]
    if any(line.startswith("scratch is better") for line in compared):
        lines.append(f"Pre-training does not pay here. {REMEDY}")
    elif any("cannot be told apart" in line for line in compared):
        few = any(0 < interval_of(records[name]).get("images", 0) < FEW for name in tasks)
        lines.append(f"That pre-training pays here is not shown. {TOO_FEW if few else REMEDY}")
    return lines
