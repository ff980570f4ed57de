"""`beit train`: from images to a model in one command, which continues where it was stopped.

The folder is a run directory whose parts are ordinary runs in it; `parts` says which, and what they hold.
"""

import dataclasses
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
from beit.presets.trials import seed_spread
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
NO_GAIN = "Pre-training does not pay here. What would: a released encoder (--init), or more unlabelled images."


def train(config: TrainConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Everything from the images of `config.data` to a model and a report in `config.out`."""
    began, folder = time.monotonic(), Path(config.out)
    patience = [
        seconds_of(part["timeout"], "--timeout") for part in (config.parts or {}).values() if "timeout" in part
    ]
    compute = open_compute(config.device, min(patience, default=DEFAULT))
    console = Console(compute.main)
    if not overwrite and (folder / RESULTS).exists():
        console.say(f"{folder} is finished; nothing to do (--overwrite starts afresh)")
        return Outcome(config, read_json(folder / RESULTS) or {})
    journey = begin(config, folder)
    parts, budget = config.parts, None
    if parts is None and not overwrite and (folder / CONFIG).exists():  # chosen at an earlier start
        parts = read_record(folder / CONFIG, TrainConfig)[0].get("parts")
    if parts is None:
        chosen = planned(config) if dry_run else choose_parts(journey, partial(made_tokenizer, overwrite=overwrite))
        parts, budget = {part.name: own_values(part.config) for part in chosen}, config.budget
        for line in [*in_words(chosen), *journey.words()]:
            console.say(line)
    config = dataclasses.replace(config, parts=parts)
    steps = restored(journey, parts)
    if dry_run:
        return Outcome(config)
    request = Request("train", dataclasses.asdict(config), began=began)
    with open_run(folder, request, compute=compute, console=console, overwrite=overwrite, parts=parts) as run:
        run.write_status(**({"budget": budget} if budget else {}))
        for number, part in enumerate(steps, start=1):
            console.say(f"\n{number} of {len(steps)}: {TITLES[part.name]}\n")
            is_made = budget is not None and part.name == "tokenizer"  # by which the others were chosen
            part.run(overwrite=overwrite and not is_made)
        records = {part.name: read_standing(Path(part.config.out)) for part in steps}
        lines = verdict(records)
        for line in lines:
            console.say(line)
        results = {name: record.results.get("last", {}) for name, record in records.items()}
        results |= {"verdict": lines, "seconds": run.elapsed}
        if compute.main:
            page = write_report([*records.values()], folder / REPORT, title=folder.name, notes=lines)
            within = f" of a budget of {run.budget}" if run.budget else ""
            console.say(f"took {duration(run.elapsed)}{within}; open {page} in a browser")
            [*_, last] = [record.results for name, record in records.items() if name != "scratch"]
            mends = dict.fromkeys(line["mend"] for line in last["verdict"] if line["mend"])
            console.say(f"to mend first: {'; '.join(mends)}" if mends else f"next: {last['next']}")
        run.finish(results)
    return Outcome(config, results)


def in_words(parts: Sequence[Part]) -> list[str]:
    """What will be done, a line for each part."""
    width, lines = max(len(part.name) for part in parts), list[str]()
    for part in parts:
        config = part.config
        what = f"{counted(config.steps or 0, 'step')} of {counted(config.batch_size, 'image')}"
        if isinstance(config, TokenizerConfig):
            what = f"{config.kind}, {config.vocab_size} codes"
        elif isinstance(config, PretrainConfig):
            what += f", an encoder of width {config.width} and {counted(config.depth, 'block')}"
        lines.append(f"{part.name:<{width}}  {what}, {duration(part.seconds)}")
    return lines


def verdict(records: Mapping[str, RunRecord]) -> list[str]:
    """What the models are, and what pre-training was worth, in words."""
    tasks = [name for name in ("classifier", "segmenter") if name in records]
    lines = [f"{name}: {line['text']}" for name in tasks for line in records[name].results["verdict"]]
    compared = comparisons([*records.values()], seed_spread)
    in_doubt = any(line.startswith("scratch is better") or "cannot be told apart" in line for line in compared)
    return [*lines, *compared, *([SAME] if compared else []), *([NO_GAIN] if in_doubt else [])]
