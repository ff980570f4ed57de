"""`beit predict` for segmenters: a label map for every image, in the convention of the data that they learned from.

A map is an indexed PNG of its image's size, or a 16-bit gray one where a class has the number 255 or a higher one,
for in 8 bits 255 stands for "no class". Its numbers are those of the training maps: class i is i, or i + 1 where 0
stands for "no class" there (`reduce_zero_label`), which is never predicted. classes.tsv says what they mean.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.atomic import replace_file
from beit.config.segment import IGNORE
from beit.config.use import PredictConfig
from beit.data.label_maps.table import generated_palette
from beit.data.sources.files import FileSource
from beit.data.views.segmentation import resized_image
from beit.models.segmentation import SemanticSegmenter
from beit.models.windows import Inference
from beit.recipes.predict.output import Reading, Record, name_in_line, write_errors
from beit.stages.tasks.segmentation import TooLarge, predict_classes
from beit.visualize.label_maps import overlay
from beit.visualize.pictures import Color, to_pil

CLASSES_SHOWN = 4
"""Classes that are named for each image."""
LONGEST_OVERLAY = 65_500
"""Pixels of the longer side that libjpeg writes; larger overlays are made smaller."""


class WholeImage(NamedTuple):
    """An image as the network sees it, and as it is."""

    image: Tensor
    """uint8 (B, 3, h, w)."""
    original: Tensor
    """uint8 (B, 3, H, W)."""


class Legend(NamedTuple):
    """What the numbers in a file mean."""

    names: Sequence[str]
    palette: Sequence[Color]
    first: int
    """The number of class 0."""

    @classmethod
    def from_description(cls, description: Mapping[str, Any], num_classes: int) -> "Legend":
        """That of a segmenter with this model.json; numbers for names where it has none."""
        names = tuple(map(str, description.get("classes") or range(num_classes)))
        palette = description.get("palette") or generated_palette(len(names))
        first = int(description.get("reduce_zero_label", False))
        return cls(names, [(red, green, blue) for red, green, blue in palette], first)


def map_reading(model: SemanticSegmenter, description: Mapping[str, Any], config: PredictConfig) -> Reading:
    """Of each image `label_map`, class indices (H, W), `classes`, shares of it by name, the largest first, and
    `picture`, the image, uint8 (3, H, W)."""
    legend = Legend.from_description(description, model.num_classes)
    description = {"image_size": model.encoder.config.image_size, **description}
    inference = Inference.from_description(description).with_window(config.window)

    def view(image: Tensor, rng: np.random.Generator) -> WholeImage:
        return WholeImage(resized_image(image, inference.input_side), image)

    def apply(batch: WholeImage) -> dict[str, Tensor] | TooLarge:
        try:
            classes = predict_classes(inference, model, batch.image, batch.original.shape[2:])
        except TooLarge as error:
            return error
        number = torch.uint8 if model.num_classes < 256 else torch.int32
        return {"label_map": classes[None].to(number), "picture": batch.original}

    def record(columns: Mapping[str, NDArray[Any]]) -> Record:
        return {**columns, "classes": shares(columns["label_map"], legend.names)}

    def folder(source: FileSource) -> Callable[[Record], None]:
        return map_writer(Path(str(config.out)), legend, source, overlays=config.overlays)

    return Reading("label maps", (), view, apply, record, folder)


def shares(classes: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    """What share of class indices (H, W) each of the classes has that occur, by name, the largest first."""
    counts = np.bincount(classes.ravel(), minlength=len(names)) / classes.size
    return {names[i]: round(float(counts[i]), 6) for i in np.argsort(-counts, kind="stable") if counts[i]}


def show(record: Record) -> None:
    """A line for the image, with the classes that take up most of it."""
    classes = list(record["classes"].items())[:CLASSES_SHOWN]
    cells = [f"{name_in_line(name)} {share:.1%}" for name, share in classes]
    print("\t".join([name_in_line(record["image"]), *cells]))


# ------------------------------------------------------------------------------------------------------------
# Files


def map_writer(folder: Path, legend: Legend, source: FileSource, *, overlays: bool) -> Callable[[Record], None]:
    """Takes records of label maps of the images in `source`, each written to its file in `folder`, with `overlays`
    also under the colours of its classes, and shown as a line."""
    files = {source.path(index): file for index, file in enumerate(file_names(source))}
    write_legend(legend, folder / "classes.tsv")

    def write(record: Record) -> None:
        file, classes = files[record["image"]], torch.from_numpy(record["label_map"])
        write_map(classes, legend, folder / "maps" / f"{file}.png")
        if overlays:
            picture = to_pil(overlay(torch.from_numpy(record["picture"]), classes, legend.palette))
            picture.thumbnail((LONGEST_OVERLAY, LONGEST_OVERLAY))
            path = folder / "overlays" / f"{file}.jpg"
            _write(path, lambda draft: picture.save(draft, "JPEG", quality=90))
        show(record)

    return write


def file_names(source: FileSource) -> list[str]:
    """Paths of the images below their roots without suffixes, which all results are called by; where two are alike,
    with their suffixes or numbers."""
    keys = [source.key(index) for index in range(len(source))]
    plain = [str(Path(key).with_suffix("")) for key in keys]
    times = Counter(plain)
    names = [key if times[name] > 1 else name for key, name in zip(keys, plain, strict=True)]
    times = Counter(names)
    return [f"{name}-{index}" if times[name] > 1 else name for index, name in enumerate(names)]


def write_map(classes: Tensor, legend: Legend, path: Path) -> None:
    """Class indices (H, W) as an indexed PNG in the colours of the classes, or as a 16-bit gray one where 8 bits do
    not hold their numbers."""
    if legend.first + len(legend.names) <= IGNORE:
        image = Image.fromarray((classes + legend.first).to(torch.uint8).numpy())
        unused = [(0, 0, 0)] * legend.first
        image.putpalette([value for color in (*unused, *legend.palette) for value in color])
    else:
        image = Image.fromarray((classes + legend.first).numpy().astype(np.uint16))
    _write(path, lambda draft: image.save(draft, "PNG"))


def write_legend(legend: Legend, path: Path) -> None:
    """The numbers, names and colours of the classes, as `beit segment --classes` reads them."""
    rows = zip(legend.names, legend.palette, strict=True)
    lines = ["value\tname\tr\tg\tb"]
    lines += ["\t".join(map(str, (number, name, *color))) for number, (name, color) in enumerate(rows, legend.first)]
    _write(path, lambda draft: draft.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """RunFailed where that is impossible: nor will it be with the next file."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
