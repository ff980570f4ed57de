"""`beit predict`: images in, and out what the model's kind makes of them: labels, label maps, visual tokens, or
features."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from beit.checkpoints.store import describe, kind_of, load_model
from beit.config.errors import UserError, given_by
from beit.config.use import PredictConfig
from beit.data.batches import LabeledBatch
from beit.data.sources.files import FileSource
from beit.data.views.images import EvaluationView, LabeledView
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.predict.images import PredictionImages
from beit.recipes.predict.labels import shown_labels
from beit.recipes.predict.maps import predicted_maps
from beit.recipes.predict.output import Record, require_writable_file, results_file
from beit.stages.batches import Machine, classifier_view, open_machine
from beit.tokenizers.base import VisualTokenizer


class Reading(NamedTuple):
    """How a model reads images."""

    noun: str
    """What the results are called."""
    suffixes: tuple[str, ...]
    """Kinds of files they may be written to."""
    view: EvaluationView
    apply: Callable[[Tensor], dict[str, Tensor]]
    """Images of a batch -> named results, each with the batch first."""


def predict(config: PredictConfig) -> int:
    """Print and write what `config.model` makes of `config.images`, each as it comes; how many there were.

    Damaged images are named on standard error and left out. RunFailed when there is no other.
    """
    model, machine = open_model(config)
    if isinstance(model, SemanticSegmenter):
        return sum(1 for _ in predicted_maps(model, config, machine))
    task = task_of(model, config, machine)
    check_out(config, task.reading)
    with ExitStack() as outputs:
        receivers: list[Callable[[Record], None]] = []
        if config.out is not None:
            receivers.append(outputs.enter_context(results_file(Path(config.out))))
        if task.reading.noun == "labels":
            receivers.append(outputs.enter_context(shown_labels(config.out)))
        count = 0
        for record in task.records:
            count += 1
            for receive in receivers:
                receive(record)
        told = task.images.summary(task.reading.noun, count)
    wrote = f"; wrote {config.out}" if config.out else ""
    # Where the lines of labels are the output, to be piped on, they are all of it.
    print(told + wrote, file=sys.stdout if config.out or sys.stdout.isatty() else sys.stderr)
    return count


def predictions(config: PredictConfig) -> Iterator[Record]:
    """What `config.model` makes of `config.images`, image by image as it is known. No file is written but label maps.

    A record has `image`, the name, and by the kind of the model: `label`, `probability` and `top`, the likeliest
    labels with theirs; `label_map` and `classes`; `tokens`, int64 (h, w); or `mean` and `cls`, float32 (D,). Damaged
    images are named on standard error and left out.
    """
    model, machine = open_model(config)
    if isinstance(model, SemanticSegmenter):
        return predicted_maps(model, config, machine)
    return task_of(model, config, machine).records


class Task(NamedTuple):
    """A prediction that is ready to begin."""

    reading: Reading
    images: PredictionImages
    records: Iterator[Record]


def open_model(config: PredictConfig) -> tuple[nn.Module, Machine]:
    """The model, where it will run."""
    with given_by("--model"):
        model = load_model(config.model)
    machine = open_machine(config.precision, config.workers)
    return model.to(machine.compute.device), machine


def task_of(model: nn.Module, config: PredictConfig, machine: Machine) -> Task:
    """Find the images; nothing is computed yet."""
    if config.window is not None:
        raise UserError(f"--window is for segmenters, and {config.model} is none; drop it")
    reading, names = reading_of(model, config), labels_of(model, config)
    images = PredictionImages(config, machine)
    passes = images.passes(
        lambda batch: reading.apply(batch.image), LabeledView(reading.view), config.batch_size
    )
    records = (record for batch, results in passes for record in records_of(images.source, batch, results))
    if names is not None:
        records = (with_labels(record, names, config.top_k) for record in records)
    return Task(reading, images, records)


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
    require_writable_file(config.out)
