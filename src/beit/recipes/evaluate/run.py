"""`beit evaluate`: how good a model is on images, measured as its kind asks."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from beit.atomic import write_text
from beit.checkpoints.reference import part_of
from beit.checkpoints.store import kind_of, load_model
from beit.config.errors import RunFailed, UserError, given_by
from beit.config.use import EvaluateConfig, Outcome
from beit.config.values import counted, flag_of
from beit.data.loaders import HANDFUL
from beit.data.sources.subsets import Subset
from beit.figures import FIGURES, figure_of
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.evaluate.kinds import Kind, TestSet, classifier, pretrained, segmenter, tokenizer
from beit.stages.batches import Machine, each_batch, report_skipped
from beit.stages.inference import open_ranks, print_notes, require_writable_file
from beit.stages.judgement import Judgement
from beit.tokenizers.base import VisualTokenizer
from beit.training.console import duration
from beit.training.method import Evaluation
from beit.training.metrics import accumulate
from beit.untrusted import in_lines, markup


def evaluate(config: EvaluateConfig) -> Outcome:
    """Print the figures of `config.model` on `config.data`, write them to `config.out`, and return them."""
    if config.out is not None:
        require_writable_file(config.out)
    with given_by("--model"):
        config = replace(config, model=part_of(config.model, "model"))  # whose held-back images are judged
        model = load_model(config.model)
    _require_flags_for(model, config)
    with open_ranks(config) as machine:
        test_set, evaluation = evaluation_of(model.to(machine.compute.device), config, machine)
        about = {"model": config.model, "kind": kind_of(model), "split": test_set.split}
        figures = about | measure(model, test_set, evaluation, config, machine)
        # A file or pipe has no width to keep to.
        show(figures, Console(width=None if sys.stdout.isatty() else 200))
        print(*(in_lines(verdict["text"]) for verdict in figures["verdict"]), sep="\n")
        if config.out is not None and machine.compute.main:
            write_text(Path(config.out), json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
            print(f"wrote {config.out}")
    return Outcome(config, figures)


def evaluation_of(model: nn.Module, config: EvaluateConfig, machine: Machine) -> Kind:
    """What this kind of model is evaluated on, and how; nothing is computed yet but baselines."""
    if isinstance(model, ImageClassifier | LinearProbe):
        return classifier(model, config, machine)
    if isinstance(model, SemanticSegmenter):
        return segmenter(model, config, machine)
    if isinstance(model, MaskedImageModel):
        return pretrained(model, config, machine)
    if isinstance(model, VisualTokenizer):
        return tokenizer(model, config, machine)
    nothing = f"{config.model} is a {kind_of(model)} model, of which there is nothing to evaluate"
    raise UserError(f"{nothing}; beit probe judges an encoder")


def measure(
    model: nn.Module, test_set: TestSet, evaluation: Evaluation, config: EvaluateConfig, machine: Machine
) -> dict[str, Any]:
    """All figures: image by image into sums, into figures. An error where too few of the images can be read."""
    source, damaged = test_set.source, []

    def on_bad(name: str, reason: str) -> None:
        report_skipped(name, reason)
        damaged.append(name)

    print_notes(source.notes)
    sums: dict[str, Tensor] = {}
    apply, view = partial(evaluation.evaluate_batch, model), test_set.view
    batch_size, labeled = evaluation.batch_size or config.batch_size, test_set.labeled
    if test_set.windows is not None and machine.compute.main:
        alone, started = machine._replace(workers=0), time.monotonic()
        for _, batch, _ in each_batch(apply, Subset(source, [0]), view, alone, batch_size=1, labeled=labeled):
            (height, width), share = batch.image.shape[2:], len(source) / machine.compute.world
            seconds = share * (time.monotonic() - started)
            windows, whole = test_set.windows((height, width)), counted(len(source), "image")
            seen = f"{counted(windows, 'window')} for an image of {width}x{height} px"
            print_notes([f"{seen}; {whole} take about {duration(seconds)}"])
    look: Any = {"seed": config.seed, "labeled": labeled, "on_bad": on_bad, "title": "evaluating"}
    passes = each_batch(apply, source, view, machine, batch_size=batch_size, **look)
    judgement = Judgement(machine.compute, config.group_by)
    for part in judgement.keep(source, passes):
        accumulate(sums, part)
    images, bad = len(source), sum(map(len, machine.compute.exchange(damaged)))
    if bad == images:
        raise RunFailed(f"of {counted(images, 'image')} none could be read")
    if bad >= HANDFUL and bad > config.max_bad * images:
        read = f"{bad:,} of {images:,} images are damaged"
        raise UserError(f"--data: {read}, more than --max-bad {config.max_bad:g} allows; `beit check` lists them")
    about = {"data": source.describe(), "images": images - bad, "damaged": bad}
    figures = about | evaluation.summarise(machine.compute.sums(sums))
    return figures | judgement.of_figures({**figures, "split": test_set.split})


def _require_flags_for(model: nn.Module, config: EvaluateConfig) -> None:
    """UserError for a flag that is for another kind of model."""
    labeled = (ImageClassifier, LinearProbe, VisualTokenizer)
    for name, kinds, whom in (
        ("tokenizer", MaskedImageModel, "pre-trained models"),
        ("labels", labeled, "classifiers and tokenizers"),
        ("window", SemanticSegmenter, "segmenters"),
        ("multi_scale", SemanticSegmenter, "segmenters"),
    ):
        if getattr(config, name) and not isinstance(model, kinds):
            raise UserError(f"{flag_of(name)} is for {whom}, and {config.model} is none; drop it")


# ------------------------------------------------------------------------------------------------------------
# The figures, for people


HARDEST = {"iou": 30, "recall": 20, "top1": 10}
"""By which figure classes are hard, and how many are named where there are more."""
COLUMNS = {
    "IoU": "iou",
    "accuracy": "accuracy",
    "share of pixels": "share",
    "images": "images",
    "average precision": "average_precision",
    "precision": "precision",
    "recall": "recall",
    "top-1": "top1",
}
"""Figures of a class, by their headings."""


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print what :func:`beit.recipes.evaluate.run.evaluate` found."""
    damaged = f"; {counted(figures['damaged'], 'damaged file')} left out" if figures["damaged"] else ""
    console.print(f"model  {markup(figures['model'])} ({figures['kind']})", soft_wrap=True, highlight=False)
    console.print(f"data   {markup(figures['data'])} ({figures['split']}){damaged}", soft_wrap=True, highlight=False)
    for heading, name in (("shown", "inference"), ("bound", "bound")):
        if name in figures:
            console.print(f"{heading}  {markup(figures[name])}", soft_wrap=True, highlight=False)
    table = Table(box=None, show_header=False)
    for name in sorted(FIGURES.keys() & figures, key=lambda name: figure_of(name, figures).order()):
        figure = figure_of(name, figures)
        table.add_row(figure.title, figure.format(figures[name]))
    console.print(table)
    if "classes" in figures:
        _show_classes(figures, console)


def _show_classes(figures: Mapping[str, Any], console: Console) -> None:
    """How each class fares that occurs: all of them where there are few, else the hardest."""
    entries = next(iter(figures["classes"].values()))
    measure = next(name for name in HARDEST if name in entries)
    classes = {name: entry for name, entry in figures["classes"].items() if entry[measure] is not None}
    title, most = None, HARDEST[measure]
    if len(classes) > most:
        title = f"the {most} hardest of {len(classes):,} classes that occur"
        classes = dict(sorted(classes.items(), key=lambda item: item[1][measure])[:most])
    columns = {heading: key for heading, key in COLUMNS.items() if key in entries}
    confusion = figures.get("confusion")
    table = Table("class", box=None, title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="right")
    if confusion:
        table.add_column("most often taken for")
    for name, entry in classes.items():
        mistakes = {answer: n for answer, n in confusion[name].items() if answer != name} if confusion else {}
        mistake = [max(mistakes, key=lambda answer: mistakes[answer], default="")] if confusion else []
        table.add_row(markup(name), *(_cell(entry[key]) for key in columns.values()), *map(markup, mistake))
    console.print(table)


def _cell(value: float | None) -> str:
    """A count, or a share in percent."""
    if value is None:
        return "-"
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
