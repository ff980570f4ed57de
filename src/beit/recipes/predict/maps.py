"""`beit predict` for segmenters: a label map for every image, and what share of it each class takes up."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.checkpoints.store import describe
from beit.config.use import PredictConfig
from beit.data.views.segmentation import resized_image
from beit.metrics.segmentation import Inference, likeliest
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.predict.images import PredictionImages
from beit.recipes.predict.map_files import (
    Legend,
    file_names,
    map_folder,
    write_legend,
    write_map,
    write_overlay,
)
from beit.stages.batches import Machine, complain
from beit.stages.large_images import TooLarge, within_memory

NAMED = 4
"""Classes that are named for each image."""


class WholeImage(NamedTuple):
    """An image as the network sees it, and as it is."""

    image: Tensor
    """uint8 (B, 3, h, w)."""
    original: Tensor
    """uint8 (B, 3, H, W)."""
    number: Tensor
    """int64 (B,)."""


def predicted_maps(
    model: SemanticSegmenter, config: PredictConfig, machine: Machine
) -> Iterator[dict[str, Any]]:
    """Write a label map for each of `config.images`; gives a record for each good one, once its map is there.

    A record has `image`, `label_map`, its file, and `classes`, the shares of the image by name, the largest first.
    """
    folder = map_folder(config)
    description = describe(config.model)
    legend = Legend.described(description, model.num_classes)
    inference = Inference.described(description).in_window(config.window)
    images = PredictionImages(config, machine)
    files = file_names(images.source)

    def view(image: Tensor, number: int, rng: np.random.Generator) -> WholeImage:
        return WholeImage(resized_image(image, inference.reduced), image, torch.tensor(number))

    def apply(batch: WholeImage) -> Tensor | None:
        try:
            return classes_of(batch, model, inference)
        except TooLarge as error:
            complain(images.source.name(int(batch.number)), str(error))
            return None

    write_legend(legend, folder / "classes.tsv")
    count = 0
    for batch, classes in images.passes(apply, view, batch_size=1):  # images differ in size
        if classes is None:
            continue
        name, file = images.source.name(int(batch.number)), files[int(batch.number)]
        write_map(classes, legend, folder / "maps" / f"{file}.png")
        if config.overlays:
            write_overlay(batch.original[0], classes, legend, folder / "overlays" / f"{file}.jpg", name)
        record = record_of(name, file, classes, legend.names)
        show(record)
        count += 1
        yield record
    print(
        f"{images.summary('label maps', count)}; wrote {folder / 'maps'}, in which {legend.first} is "
        f"{legend.names[0]} and so on (classes.tsv)",
        file=sys.stderr,
    )


def classes_of(batch: WholeImage, model: SemanticSegmenter, inference: Inference) -> Tensor:
    """The likeliest class of each pixel of one image: uint8, or int32 for more than 255 classes, (H, W), on the CPU.

    TooLarge where the memory does not hold the scores.
    """
    size = _size(batch.original)
    with within_memory(model, inference, size, batch.image.device):
        logits = inference.scores(model, batch.image, _size(batch.image))
        kind = torch.uint8 if model.num_classes < 256 else torch.int32
        return likeliest(logits, size)[0].to(kind).cpu()


def record_of(image: str, file: str, classes: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What is known of one image."""
    counts = torch.bincount(classes.flatten().long(), minlength=len(names)).double() / classes.numel()
    shares = {
        names[i]: round(float(counts[i]), 6) for i in counts.argsort(descending=True).tolist() if counts[i]
    }
    return {"image": image, "label_map": f"maps/{file}.png", "classes": shares}


def show(record: dict[str, Any]) -> None:
    """A line for the image, with the classes that take up most of it."""
    shares = list(record["classes"].items())[:NAMED]
    print("\t".join([record["image"], *(f"{name} {share:.1%}" for name, share in shares)]))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]
