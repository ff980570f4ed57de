"""What a task comes to without a network: what a score stands beside, measured once, in seconds.

Every rank does all of it, so that none waits for another.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.data.base import Source
from beit.data.decode import ImageError
from beit.data.label_file import Labels
from beit.data.sources.subsets import spread
from beit.data.views.geometry import Box, center_view
from beit.data.views.segmentation import nearest
from beit.metrics.classification import classification_sums
from beit.metrics.intervals import FIGURES
from beit.metrics.neighbours import knn_votes
from beit.metrics.segmentation import confusion, segmentation_figures
from beit.pixels import to_unit
from beit.stages.session import Images
from beit.training.method import Measure
from beit.training.signals import StopSignals

MOST = 2000
"""Images that are looked at, of those trained on and of those judged, at most."""
SIDE, SHADES = 32, 4
"""Pixels of a side that neighbours are sought by; shades of each channel that a histogram tells apart."""
RIDGE = 0.01
"""Weight of the squares of a linear classifier's weights, for each training image."""
PLACES = 48
"""Rows and columns of places that have a commonest class."""


def beside_classifier(images: Images, labels: Labels) -> Measure | None:
    """Top-1 accuracy, or F1 where an image has several classes: of the commonest class, of a linear classifier of
    colour histograms, and, where it has one, of the nearest training images by their pixels."""
    split, judged = ("test", images.test) if images.test else ("eval", images.held_back)
    multilabel = labels.sets is not None
    score = "f1" if multilabel else "top1"

    def measure(model: Any, precision: Any, stop: StopSignals) -> Mapping[str, float]:
        parts = [list(_samples(source, stop, _thumbnail)) for source in (images.train, judged)]
        if not all(parts):
            return {}
        (pixels, numbers), (asked, answers) = (map(torch.stack, zip(*part, strict=True)) for part in parts)
        targets, truth = labels.targets(numbers), labels.targets(answers)
        # Of those that are judged: where all classes have equally many labels, none of them is the commonest.
        commonest = F.one_hot(truth.sum(0).argmax(), len(labels.classes)).expand(len(asked), -1) - 0.5
        histogram = _linear(_histogram(pixels), targets, _histogram(asked)) - 0.5
        logits = {"commonest": commonest, "histogram": histogram}
        if not multilabel:
            logits["pixels"] = knn_votes(asked.flatten(1), pixels.flatten(1), numbers, len(labels.classes))
        sums_of = partial(classification_sums, targets=truth, multilabel=multilabel)
        each = {name: sums_of(values)["each"].sum(0).double().numpy() for name, values in logits.items()}
        return {f"{split}/{name}_{score}": float(FIGURES[score](sums)) for name, sums in each.items()}

    return measure if judged else None


def beside_segmenter(images: Images) -> Measure | None:
    """mIoU of naming at each place, relative to the image, the class that is commonest there in the training maps."""
    split, judged = ("test", images.test) if images.test else ("eval", images.held_back)
    num_classes = len(images.train.classes or ())

    def measure(model: Any, precision: Any, stop: StopSignals) -> Mapping[str, float]:
        counts, table = torch.zeros(PLACES, PLACES, num_classes + 1), torch.zeros((num_classes,) * 2).long()
        for label_map in _samples(images.train, stop, lambda source, index: source.label(index)):
            places = _stretched(label_map, (PLACES, PLACES)).clamp(max=num_classes)  # the last for no class
            counts += F.one_hot(places, num_classes + 1)
        for label_map in _samples(judged, stop, lambda source, index: source.label(index)):
            answer = _stretched(counts[..., :num_classes].argmax(2), label_map.shape)
            table += confusion(answer, label_map.long(), num_classes)
        return {f"{split}/place_miou": segmentation_figures({"confusion": table})["miou"]}

    return measure if judged else None


def _samples(source: Source, stop: StopSignals, read: Callable[[Any, int], Any]) -> Iterator[Any]:
    for index in spread(len(source), MOST):
        stop.poll()
        with suppress(ImageError):
            yield read(source, index)


def _thumbnail(source: Source, index: int) -> tuple[Tensor, Tensor]:
    """Floats in [0, 1], (C, SIDE, SIDE), and the label."""
    return to_unit(center_view(source.image(index), (SIDE, SIDE))), torch.tensor(source.label(index))


def _histogram(pixels: Tensor) -> Tensor:
    """Square roots of the shares of colours, (M, C, SIDE, SIDE) in [0, 1], by the first three channels -> float32
    (M, SHADES^3)."""
    shades = (pixels[:, :3] * SHADES).long().clamp(max=SHADES - 1)
    cells = sum(shades[:, channel] * SHADES**channel for channel in range(shades.shape[1]))
    return torch.stack([image.bincount(minlength=SHADES**3) for image in cells.flatten(1)]).sqrt() / SIDE


def _linear(features: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    """Ridge regression of targets, bool (M, C), by features (M, F): what it says of queries (Q, F)."""
    features, queries = (F.pad(x.double(), (0, 1), value=1.0) for x in (features, queries))
    ridge = RIDGE * len(features) / features.shape[1] * torch.eye(features.shape[1]).double()
    weights: Tensor = torch.linalg.solve(features.T @ features + ridge, features.T @ targets.double())
    return queries @ weights


def _stretched(label_map: Tensor, size: tuple[int, int]) -> Tensor:
    return nearest(label_map, Box(0, 0, *label_map.shape), size).long()
