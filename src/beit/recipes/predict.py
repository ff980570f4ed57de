"""`beit predict`: images in, and out what the model's kind makes of them: labels, label maps, visual tokens, or
features."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from beit.checkpoints.describe import describe
from beit.checkpoints.store import kind_of, load_model
from beit.config import PredictConfig, RunFailed, UserError
from beit.data.batches import LabeledBatch
from beit.data.combined import Numbered
from beit.data.files import FileSource, open_images
from beit.data.views import EvaluationView, LabeledView
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.inference import classifier_view, complain, each_batch, open_machine
from beit.recipes.predict_maps import predict_maps
from beit.tokenizers.base import VisualTokenizer

Record = dict[str, Any]
"""What is known of one image: `image`, its name, and arrays or primitives."""


SHOWN = 20
"""Images in the table on a terminal when a file has them all."""


class Reading(NamedTuple):
    """How a model reads images."""

    noun: str
    """What the results are called."""
    suffixes: tuple[str, ...]
    """Kinds of files they may be written to."""
    view: EvaluationView
    apply: Callable[[Tensor], dict[str, Tensor]]
    """Images of a batch -> named results, each with the batch first."""


def predict(config: PredictConfig) -> list[Record]:
    """Print and write what `config.model` makes of `config.images`, and return it, one record for each good image.

    Damaged images are named on standard error and left out. RunFailed when there is no other.
    """
    model = load_model(config.model)
    machine = open_machine(config.precision, config.workers)
    model.to(machine.compute.device)
    if isinstance(model, SemanticSegmenter):
        return predict_maps(model, config, machine)
    reading, names = reading_of(model, config), labels_of(model, config)
    check_out(config, reading)
    source = open_images(config.images, config.max_megapixels)
    for note in source.notes:
        print(note, file=sys.stderr)
    if config.workers == "auto" and len(source) <= config.batch_size:
        machine = machine._replace(workers=0)  # starting a process takes longer than a few images
    passes = each_batch(
        lambda batch: reading.apply(batch.image),
        Numbered(source),
        LabeledView(reading.view),
        machine,
        batch_size=config.batch_size,
        labeled=True,
        on_bad=complain,
        title="predicting",
    )
    records = [record for batch, results in passes for record in records_of(source, batch, results)]
    if not records:
        raise RunFailed(f"none of the {len(source):,} images could be read")
    if names is not None:
        records = [with_labels(record, names, config.top_k) for record in records]
        show(records, config)
    if config.out is not None:
        write(records, Path(config.out))
    left_out = len(source) - len(records)
    wrote = f"; wrote {config.out}" if config.out else ""
    skipped = f"; {left_out:,} could not be read and are named above" if left_out else ""
    # Where the lines of labels are the output, to be piped on, they are all of it.
    beside = sys.stdout if config.out or sys.stdout.isatty() else sys.stderr
    print(f"{reading.noun} for {len(records):,} of {len(source):,} images{skipped}{wrote}", file=beside)
    return records


# ------------------------------------------------------------------------------------------------------------
# What a model makes of images


def reading_of(model: nn.Module, config: PredictConfig) -> Reading:
    """How this kind of model reads images."""
    if isinstance(model, ImageClassifier | LinearProbe):
        if config.layer is not None:
            raise UserError(f"--layer is for features, and {config.model} gives labels; drop it")
        description = describe(config.model)
        view = classifier_view(model.encoder.config.image_size, description)
        # Where an image may have several classes, each has a probability of its own.
        shares = torch.sigmoid if description.get("multilabel") else partial(torch.softmax, dim=1)
        return Reading(
            "labels", (".csv", ".jsonl"), view, lambda images: {"probability": shares(model(images).float())}
        )
    if isinstance(model, VisualTokenizer):
        if config.layer is not None:
            raise UserError(f"--layer is for features, and {config.model} gives visual tokens; drop it")
        view = EvaluationView(model.image_size)
        return Reading("tokens", (".jsonl", ".npz"), view, lambda images: {"tokens": model.encode(images)})
    encoder = model if isinstance(model, BeitEncoder) else getattr(model, "encoder", None)
    if not isinstance(encoder, BeitEncoder):
        raise UserError(f"{config.model} is a {kind_of(model)} model, which beit predict cannot use")
    layer = -1 if config.layer is None else config.layer
    first = encoder.num_prefix_tokens

    def features(images: Tensor) -> dict[str, Tensor]:
        tokens = encoder.states(images, [layer])[0].float()
        return {"mean": tokens[:, first:].mean(dim=1), "cls": tokens[:, 0]}

    return Reading("features", (".npz",), EvaluationView(encoder.config.image_size), features)


def labels_of(model: nn.Module, config: PredictConfig) -> tuple[str, ...] | None:
    """The names of a classifier's outputs; their numbers where it has none. None for other models."""
    if not isinstance(model, ImageClassifier | LinearProbe):
        return None
    names = describe(config.model).get("classes") or range(model.num_classes)
    return tuple(map(str, names))


def records_of(source: FileSource, batch: LabeledBatch, results: dict[str, Tensor]) -> Iterator[Record]:
    """The results of a batch, image by image."""
    columns = {name: value.cpu().numpy() for name, value in results.items()}
    for row, number in enumerate(batch.label.tolist()):
        yield {"image": source.name(number), **{name: column[row] for name, column in columns.items()}}


def with_labels(record: Record, names: Sequence[str], top_k: int) -> Record:
    """A record of probabilities as its likeliest labels."""
    probability = torch.from_numpy(record["probability"])
    values, rows = probability.topk(min(top_k, len(names)))
    top = [
        {"label": names[row], "probability": round(value, 6)}
        for value, row in zip(values.tolist(), rows.tolist(), strict=True)
    ]
    return {"image": record["image"], **top[0], "top": top}


# ------------------------------------------------------------------------------------------------------------
# Where it goes


def check_out(config: PredictConfig, reading: Reading) -> None:
    """Refuse before the work what could not be written after it."""
    wanted = " or ".join(f"FILE{suffix}" for suffix in reading.suffixes)
    if config.out is None:
        if reading.noun != "labels":
            raise UserError(f"{config.model} makes {reading.noun} of images; say where to: --out {wanted}")
        return
    path = Path(config.out)
    if path.suffix not in reading.suffixes:
        raise UserError(f"--out {config.out}: {reading.noun} are written to {wanted}")
    if path.is_dir():
        raise UserError(f"--out {config.out} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written: {error.strerror}") from error


def show(records: Sequence[Record], config: PredictConfig) -> None:
    """A table on a terminal; elsewhere, unless a file has it all, a line for each image with tabs between columns."""
    terminal = Console()
    if not terminal.is_terminal:
        for record in [] if config.out else records:
            cells = [f"{entry['label']}\t{entry['probability']:.4f}" for entry in record["top"]]
            print("\t".join([record["image"], *cells]))
        return
    table = Table(box=None)
    table.add_column("image", overflow="fold")
    table.add_column("label")
    table.add_column("probability", justify="right")
    table.add_column("then", style="dim", no_wrap=True)
    shown = records[:SHOWN] if config.out else records
    for record in shown:
        first, *others = record["top"]
        then = ", ".join(f"{escape(o['label'])} {o['probability']:.1%}" for o in others[:2])
        share = f"{first['probability']:.1%}"
        table.add_row(escape(record["image"]), f"[bold]{escape(first['label'])}[/]", share, then)
    terminal.print(table)
    if len(shown) < len(records):
        terminal.print(
            f"... and {len(records) - len(shown):,} more in {escape(config.out or '')}", highlight=False
        )


def write(records: Sequence[Record], path: Path) -> None:
    """All records as CSV, JSON lines or NumPy arrays; the file appears whole or not at all."""
    draft = path.with_name(f".tmp-{path.name}")
    try:
        if path.suffix == ".npz":
            with draft.open("wb") as file:
                columns: Record = {key: np.stack([np.asarray(r[key]) for r in records]) for key in records[0]}
                np.savez_compressed(file, **columns)
        elif path.suffix == ".jsonl":
            lines = [json.dumps(r, ensure_ascii=False, default=np.ndarray.tolist) for r in records]
            draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        else:
            draft.write_text(as_csv(records), encoding="utf-8", newline="")
        draft.replace(path)
    except OSError as error:
        raise RunFailed(f"{path} could not be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def as_csv(records: Sequence[Record]) -> str:
    """image, label, probability, label_2, probability_2, ..."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    ranks = range(1, len(records[0]["top"]) + 1)
    marks = ["" if rank == 1 else f"_{rank}" for rank in ranks]
    table.writerow(["image", *(f"{name}{mark}" for mark in marks for name in ("label", "probability"))])
    for record in records:
        cells = [cell for entry in record["top"] for cell in (entry["label"], entry["probability"])]
        table.writerow([record["image"], *cells])
    return text.getvalue()
