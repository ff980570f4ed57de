"""`beit predict`: images in, and out what the model's kind makes of them: labels, label maps, visual tokens, or
features."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.checkpoints.store import describe, encoder_of, kind_of, load_model
from beit.config.errors import UserError, given_by
from beit.config.use import PredictConfig
from beit.data.batches import ImageBatch
from beit.data.sources.files import FileSource
from beit.data.sources.opening import open_images
from beit.data.views.evaluation import EvaluationView
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.predict.maps import label_maps
from beit.recipes.predict.output import Reading, Record, label_lines, results_file, summary
from beit.stages.batches import each_batch, report_skipped
from beit.stages.inference import classifier_view, open_machine_alone, print_notes, require_writable_file
from beit.stages.session import decoding_of
from beit.tokenizers.base import VisualTokenizer


def predict(config: PredictConfig) -> int:
    """Print and write what `config.model` makes of `config.images`, each as it comes; how many there were.

    Damaged images are named on standard error and left out. RunFailed when there is no other.
    """
    reading, source, records = open_prediction(config)
    if not reading.suffixes:  # the records write and print themselves
        return sum(1 for _ in records)
    _require_out(config, reading)
    count = 0
    if config.out is None:
        records = label_lines(records)
    with ExitStack() as output:
        write = None if config.out is None else output.enter_context(results_file(Path(config.out)))
        for count, record in enumerate(records, 1):  # noqa: B007
            if write is not None:
                write(record)
        message = summary(reading.noun, count, len(source))
    wrote = f"; wrote {config.out}" if config.out else ""
    # Where the lines of labels are the output, to be piped on, they are all of it.
    print(message + wrote, file=sys.stdout if config.out or sys.stdout.isatty() else sys.stderr)
    return count


def predictions(config: PredictConfig) -> Iterator[Record]:
    """What `config.model` makes of `config.images`, image by image as it is known. No file is written but label maps.

    A record has `image`, its path as it is, and by the kind of the model: `label`, `probability` and `top`, the
    likeliest labels with theirs; `label_map` and `classes`; `tokens`, int64 (h, w); or `mean` and `cls`, float32
    (D,). Damaged images are named on standard error and left out.
    """
    return open_prediction(config)[2]


def open_prediction(config: PredictConfig) -> tuple[Reading, FileSource, Iterator[Record]]:
    """Load the model and find the images; none of the records is computed yet."""
    with given_by("--model"):
        model = load_model(config.model)
    machine = open_machine_alone(config)
    reading = reading_of(model.to(machine.compute.device), config)
    source = open_images(config.images, decoding_of(config))
    print_notes(source.notes)
    if config.workers == "auto" and len(source) <= config.batch_size:
        machine = machine._replace(workers=0)  # starting a process takes longer than a few images
    passes = each_batch(
        reading.apply,
        source,
        reading.view,
        machine,
        batch_size=config.batch_size if reading.suffixes else 1,  # images of label maps differ in size
        on_bad=report_skipped,
        title="predicting",
    )
    return reading, source, reading.records(source, passes)


# ------------------------------------------------------------------------------------------------------------
# What a model makes of images


def reading_of(model: nn.Module, config: PredictConfig) -> Reading:
    """How this kind of model reads images. UserError for a flag that is for another kind."""
    encoder = encoder_of(model)
    if isinstance(model, ImageClassifier | LinearProbe) and not config.features:
        reading = _labels(model, config)
    elif isinstance(model, SemanticSegmenter) and not config.features:
        reading = label_maps(model, config)
    elif encoder is not None and (config.features or not isinstance(model, VisualTokenizer)):
        reading = _features(encoder, -1 if config.layer is None else config.layer)
    elif isinstance(model, VisualTokenizer):
        view = EvaluationView(model.image_size)
        tokens = partial(_tokens, model)
        reading = Reading("tokens", (".jsonl", ".npz"), view, tokens, _records)
    else:
        raise UserError(f"{config.model} is a {kind_of(model)} model, which beit predict cannot use")
    if config.window is not None and not isinstance(model, SemanticSegmenter):
        raise UserError(f"--window is for segmenters, and {config.model} is none; drop it")
    if config.features and reading.noun != "features":
        raise UserError(f"--features: {config.model} has no encoder; drop it")
    if config.layer is not None and reading.noun != "features":
        raise UserError(f"--layer is for features, and {config.model} gives {reading.noun}; drop it")
    return reading


def _labels(model: ImageClassifier | LinearProbe, config: PredictConfig) -> Reading:
    """The likeliest classes, by name; by number where the model has no names."""
    description = describe(config.model)
    names = [str(name) for name in description.get("classes") or range(model.num_classes)]
    # Where an image may have several classes, each has a probability of its own.
    shares = torch.sigmoid if description.get("multilabel") else partial(torch.softmax, dim=1)

    def probabilities(batch: ImageBatch) -> dict[str, Tensor]:
        values, rows = shares(model(batch.image).float()).topk(min(config.top_k, len(names)))
        return {"values": values, "rows": rows}

    def records(source: FileSource, passes: Iterable[tuple[Any, Any, Any]]) -> Iterator[Record]:
        for record in _records(source, passes):
            likeliest = zip(record["values"].tolist(), record["rows"].tolist(), strict=True)
            top = [{"label": names[row], "probability": round(value, 6)} for value, row in likeliest]
            yield {"image": record["image"], **top[0], "top": top}

    view = classifier_view(model.encoder.config.image_size, description)
    return Reading("labels", (".csv", ".jsonl"), view, probabilities, records)


def _tokens(model: VisualTokenizer, batch: ImageBatch) -> dict[str, Tensor]:
    """The grids of visual tokens."""
    return {"tokens": model.encode(batch.image)}


def _features(encoder: BeitEncoder, layer: int) -> Reading:
    """The class token and the mean of the patches after block `layer`."""

    def features(batch: ImageBatch) -> dict[str, Tensor]:
        tokens = encoder.normed(encoder.states(batch.image, [layer])[0].float())
        return {"mean": tokens[:, encoder.num_prefix_tokens :].mean(dim=1), "cls": tokens[:, 0]}

    view = EvaluationView(encoder.config.image_size)
    return Reading("features", (".npz",), view, features, _records)


def _records(source: FileSource, passes: Iterable[tuple[Any, Any, Any]]) -> Iterator[Record]:
    """Named results of batches, image by image."""
    for numbers, _, results in passes:
        columns = {name: value.cpu().numpy() for name, value in results.items()}
        for row, number in enumerate(numbers):
            yield {"image": source.path(number), **{name: column[row] for name, column in columns.items()}}


def _require_out(config: PredictConfig, reading: Reading) -> None:
    """Refuse before the work what could not be written after it."""
    expected = " or ".join(f"FILE{suffix}" for suffix in reading.suffixes)
    if config.out is None:
        if reading.noun != "labels":
            raise UserError(f"{config.model} makes {reading.noun} of images; say where to: --out {expected}")
        return
    if Path(config.out).suffix not in reading.suffixes:
        raise UserError(f"--out {config.out}: {reading.noun} are written to {expected}")
    require_writable_file(config.out)
