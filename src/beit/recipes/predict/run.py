"""`beit predict`: images in, and out what the model's kind makes of them: labels, label maps, visual tokens, or
features."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.checkpoints.store import encoder_of, kind_of, load_model
from beit.config.errors import RunFailed, UserError, given_by, require
from beit.config.use import Outcome, PredictConfig
from beit.config.values import counted, flag_of
from beit.data.batches import ImageBatch
from beit.data.sources.files import FileSource
from beit.data.sources.opening import open_images
from beit.data.views.evaluation import EvaluationView
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, LinearProbe
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.predict.given import Prediction, predict_given
from beit.recipes.predict.maps import map_reading
from beit.recipes.predict.output import WRITERS, Reading, Record, results_file, show_labels
from beit.stages.batches import Machine, each_batch, open_machine, report_skipped
from beit.stages.inference import classifier_view, open_ranks, print_notes, require_writable_file
from beit.stages.session import decoding_of
from beit.tokenizers.base import VisualTokenizer
from beit.training.device import Compute, choose_device
from beit.untrusted import in_lines


def predict(
    model: PredictConfig | nn.Module | str | Path, images: Any = None, **options: Any
) -> Outcome | Prediction | list[Prediction]:
    """What a model makes of images.

    Args:
        model: one that :func:`beit.load_model` gave, or the path that it takes. Of a configuration the command `beit
            predict` is run, which prints and writes each as it comes, names damaged images on standard error, and
            returns an :class:`beit.Outcome`: how many `images` there were, and how many of them `damaged`.
        images: one, or several: paths (of folders too), PIL images, arrays (H, W, C) or tensors (C, H, W), in uint8
            or floats in [0, 1], or uint16 where the model was trained on 16 bits.
        options: `features`, `layer` and `window`, as of :class:`beit.PredictConfig`.

    Raises:
        UserError: what is given does not fit the model, or is no image.
        RunFailed: no image can be read.
    """
    if isinstance(model, PredictConfig):
        return _write(model)
    model = model if isinstance(model, nn.Module) else load_model(model)
    config = PredictConfig(images=("-",), model="the model", top_k=10**6, **options)
    return predict_given(reading_of(model, config), images, model)


def _write(config: PredictConfig) -> Outcome:
    """The command: print and write what there is to say, and count it."""
    with open_ranks(config) as machine:
        reading, source, records = open_prediction(config, machine)
        _require_out(config, reading)
        count, images = 0, counted(len(source), "image")
        with _writer(config, reading, source) if machine.compute.main else nullcontext(lambda _: None) as write:
            for count, record in enumerate(records, 1):  # noqa: B007
                write(record)
            if not count:
                raise RunFailed(f"of {images} none could be read")
        skipped = f"; {len(source) - count:,} could not be read and are named above" if count < len(source) else ""
        message = f"{reading.noun} for {count:,} of {images}{skipped}"
        prints = config.out is None or reading.folder is not None
        # Where the lines of labels are the output, to be piped on, they are all of it.
        to = sys.stderr if prints and not sys.stdout.isatty() else sys.stdout
        print(f"{message}; wrote {config.out}" if config.out else message, file=to)
        return Outcome(config, {"images": count, "damaged": len(source) - count})


def _writer(
    config: PredictConfig, reading: Reading, source: FileSource
) -> AbstractContextManager[Callable[[Record], None]]:
    """Where the records go."""
    if config.out is None:
        return nullcontext(show_labels)
    if reading.folder is None:
        return results_file(Path(config.out))
    return nullcontext(reading.folder(source))


def predictions(config: PredictConfig) -> Iterator[Record]:
    """What `config.model` makes of `config.images`, image by image as it is known. No file is written.

    A record has `image`, its path as it is, and by the kind of the model: `label`, `probability` and `top`, the
    likeliest labels with theirs; `label_map`, indices of classes (H, W), `classes`, what share each has, and
    `picture`, uint8 (3, H, W); `tokens`, int64 (h, w); or `mean` and `cls`, float32 (D,). Damaged images are named
    on standard error and left out.
    """
    return open_prediction(config, open_machine(config, Compute(choose_device(config.device))))[2]


def open_prediction(config: PredictConfig, machine: Machine) -> tuple[Reading, FileSource, Iterator[Record]]:
    """Load the model and find the images; none of the records is computed yet."""
    with given_by("--model"):
        model = load_model(config.model)
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
    return reading, source, _records(reading, source, passes, machine.compute)


# ------------------------------------------------------------------------------------------------------------
# What a model makes of images


def reading_of(model: nn.Module, config: PredictConfig) -> Reading:
    """How this kind of model reads images. UserError for a flag that is for another kind."""
    encoder, description = encoder_of(model), getattr(model, "description", {})
    if isinstance(model, ImageClassifier | LinearProbe) and not config.features:
        reading = _labels(model, description, config.top_k)
    elif isinstance(model, SemanticSegmenter) and not config.features:
        reading = map_reading(model, description, config)
    elif encoder is not None and (config.features or not isinstance(model, VisualTokenizer)):
        reading = _features(encoder, -1 if config.layer is None else config.layer)
    elif isinstance(model, VisualTokenizer):
        view = EvaluationView(model.image_size)
        reading = Reading("tokens", (".jsonl", ".npz"), view, lambda batch: {"tokens": model.encode(batch.image)})
    else:
        raise UserError(f"{config.model} is a {kind_of(model)} model, which beit predict cannot use")
    for name, noun in (("window", "label maps"), ("features", "features"), ("layer", "features")):
        if reading.noun != noun and not any(getattr(config, name) is idle for idle in (None, False)):
            raise UserError(f"{flag_of(name)} is for {noun}, and {config.model} gives {reading.noun}; drop it")
    return reading


def _labels(model: ImageClassifier | LinearProbe, description: Mapping[str, Any], top_k: int) -> Reading:
    """The likeliest classes, by name; by number where the model has no names."""
    names = [str(name) for name in description.get("classes") or range(model.num_classes)]
    # Where an image may have several classes, each has a probability of its own.
    shares = torch.sigmoid if description.get("multilabel") else partial(torch.softmax, dim=1)

    def probabilities(batch: ImageBatch) -> dict[str, Tensor]:
        values, rows = shares(model(batch.image).float()).topk(min(top_k, len(names)))
        return {"values": values, "rows": rows}

    def record(columns: Mapping[str, NDArray[Any]]) -> Record:
        likeliest = zip(columns["values"].tolist(), columns["rows"].tolist(), strict=True)
        top = [{"label": names[row], "probability": round(value, 6)} for value, row in likeliest]
        return {**top[0], "top": top}

    view = classifier_view(model.encoder.config.image_size, dict(description))
    return Reading("labels", (".csv", ".jsonl"), view, probabilities, record)


def _features(encoder: BeitEncoder, layer: int) -> Reading:
    """The class token and the mean of the patches after block `layer`."""

    def features(batch: ImageBatch) -> dict[str, Tensor]:
        tokens = encoder.normed(encoder.states(batch.image, [layer])[0])
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return {"mean": tokens[:, encoder.num_prefix_tokens :].mean(dim=1), "cls": tokens[:, 0]}

    view = EvaluationView(encoder.config.image_size)
    return Reading("features", (".npz",), view, features)


def _records(reading: Reading, source: FileSource, passes: Iterator[Any], compute: Compute) -> Iterator[Record]:
    """The results of the batches of all ranks, image by image in their order."""
    pending, reach = dict[int, Record](), 0.0
    while reach < math.inf:
        numbers, _, results = next(passes, ([], None, {}))
        last = max(numbers, default=math.inf)
        if isinstance(results, RunFailed):  # of one image alone
            report_skipped(source.name(numbers[0]), str(results))
            numbers, results = [], {}
        columns = {name: value.cpu().numpy() for name, value in results.items()}
        own = {n: reading.record({name: x[row] for name, x in columns.items()}) for row, n in enumerate(numbers)}
        for found, _ in (everyone := compute.exchange((own, last))):
            pending |= found
        reach = min(last for _, last in everyone)  # up to which no rank will bring another
        for number in sorted(number for number in pending if number <= reach):
            yield {"image": source.path(number), **pending.pop(number)}


def _require_out(config: PredictConfig, reading: Reading) -> None:
    """Refuse before the work what could not be written after it."""
    expected = " or ".join(f"FILE{suffix}" for suffix in reading.suffixes) or "FOLDER"
    if config.out is None:
        if reading.noun != "labels":
            raise UserError(f"{config.model} makes {reading.noun} of images; say where to: --out {expected}")
        return
    path = Path(config.out)
    if reading.folder is None:
        require(path.suffix in reading.suffixes, f"--out {path}: {reading.noun} are written to {expected}")
        return require_writable_file(config.out)
    if path.is_file() or path.suffix in (*WRITERS, ".png"):
        raise UserError(f"--out {path}: {reading.noun} are written to a folder, a file for each image")
    place = path.resolve()
    if inner := next((image for image in config.images if Path(image).resolve().is_relative_to(place)), None):
        # Where they lay among images, the next run would take them for images.
        raise UserError(f"--out {path} holds {in_lines(inner)}; name a folder for the {reading.noun} alone")
