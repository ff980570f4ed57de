"""`beit predict` for segmenters: label maps as files, in the convention of the data that the model learned from.

A map is an indexed PNG of its image's size, or a 16-bit gray one for more than 255 classes. Its numbers are those of
the training maps: class i is i, or i + 1 where 0 stands for "no class" there (`reduce_zero_label`), which is never
predicted. classes.tsv says what they mean.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.checkpoints.atomic import replace_file
from beit.checkpoints.describe import describe
from beit.config import PredictConfig, RunFailed, UserError
from beit.data.class_table import generated_palette
from beit.data.combined import Numbered
from beit.data.files import FileSource, open_images
from beit.data.segmentation_views import resized_image
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.inference import Machine, complain, each_batch
from beit.recipes.large_images import TooLarge, within_memory
from beit.recipes.segmentation import Inference, likeliest
from beit.visualize.label_maps import Color, overlay
from beit.visualize.pictures import to_pil

NAMED = 4
"""Classes that are named for each image."""
LONGEST_OVERLAY = 65_500
"""Pixels of the longer side that libjpeg writes."""


class WholeImage(NamedTuple):
    """An image as the network sees it, and as it is."""

    image: Tensor
    """uint8 (B, 3, h, w)."""
    original: Tensor
    """uint8 (B, 3, H, W)."""
    number: Tensor
    """int64 (B,)."""


class Legend(NamedTuple):
    """What the numbers in a file mean."""

    names: Sequence[str]
    palette: Sequence[Color]
    first: int
    """The number of class 0."""


def predicted_maps(
    model: SemanticSegmenter, config: PredictConfig, machine: Machine
) -> Iterator[dict[str, Any]]:
    """Write a label map for each of `config.images`; gives a record for each good one, once its map is there.

    A record has `image`, `label_map`, its file, and `classes`, the shares of the image by name, the largest first.
    """
    folder = _folder(config)
    description = describe(config.model)
    names = tuple(map(str, description.get("classes") or range(model.num_classes)))
    stored = description.get("palette") or generated_palette(len(names))
    palette = [(red, green, blue) for red, green, blue in stored]
    legend = Legend(names, palette, int(description.get("reduce_zero_label", False)))
    inference = Inference.described(description).in_window(config.window)
    source = open_images(config.images, config.max_megapixels)
    for note in source.notes:
        print(note, file=sys.stderr)
    files = file_names(source)
    if config.workers == "auto" and len(source) <= config.batch_size:
        machine = machine._replace(workers=0)  # starting a process takes longer than a few images

    def view(image: Tensor, number: int, rng: np.random.Generator) -> WholeImage:
        return WholeImage(resized_image(image, inference.reduced), image, torch.tensor(number))

    def apply(batch: WholeImage) -> Tensor | None:
        size = _size(batch.original)
        try:
            with within_memory(model, inference, batch.image, size):
                logits = inference.scores(model, batch.image, _size(batch.image))
                return likeliest(logits, size)[0].to(torch.uint8 if len(names) < 256 else torch.int32).cpu()
        except TooLarge as error:
            complain(source.name(int(batch.number)), str(error))
            return None

    passes = each_batch(
        apply,
        Numbered(source),
        view,
        machine,
        batch_size=1,  # images differ in size
        labeled=True,
        on_bad=complain,
        title="predicting",
    )
    count = 0
    write_legend(legend, folder / "classes.tsv")
    for batch, classes in passes:
        if classes is None:
            continue
        number = int(batch.number)
        write_map(classes, legend, folder / "maps" / f"{files[number]}.png")
        if config.overlays and max(classes.shape) > LONGEST_OVERLAY:
            print(
                f"no overlay of {source.name(number)}: a JPEG has at most {LONGEST_OVERLAY:,} px on a side",
                file=sys.stderr,
            )
        elif config.overlays:
            picture = to_pil(overlay(batch.original[0], classes, palette))
            write_picture(picture, folder / "overlays" / f"{files[number]}.jpg")
        record = record_of(source.name(number), files[number], classes, names)
        show(record)
        count += 1
        yield record
    if not count:
        raise RunFailed(f"none of the {len(source):,} images could be read")
    left_out = len(source) - count
    skipped = f"; {left_out:,} could not be read and are named above" if left_out else ""
    print(
        f"label maps for {count:,} of {len(source):,} images{skipped}; wrote {folder / 'maps'}, in which "
        f"{legend.first} is {legend.names[0]} and so on (classes.tsv)",
        file=sys.stderr,
    )


def record_of(image: str, file: str, classes: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What is known of one image."""
    counts = torch.bincount(classes.flatten().long(), minlength=len(names)).double() / classes.numel()
    shares = {
        names[i]: round(float(counts[i]), 6) for i in counts.argsort(descending=True).tolist() if counts[i]
    }
    return {"image": image, "label_map": f"maps/{file}.png", "classes": shares}


def file_names(source: FileSource) -> list[str]:
    """Paths of the images below their roots without suffixes, which all results are called by; where two are alike,
    with their suffixes or numbers."""
    keys = [source.key(index) for index in range(len(source))]
    plain = [str(Path(key).with_suffix("")) for key in keys]
    times = Counter(plain)
    names = [key if times[name] > 1 else name for key, name in zip(keys, plain, strict=True)]
    times = Counter(names)
    return [f"{name}-{index}" if times[name] > 1 else name for index, name in enumerate(names)]


def show(record: dict[str, Any]) -> None:
    """A line for the image, with the classes that take up most of it."""
    shares = list(record["classes"].items())[:NAMED]
    print("\t".join([record["image"], *(f"{name} {share:.1%}" for name, share in shares)]))


# ------------------------------------------------------------------------------------------------------------
# Files


def write_map(classes: Tensor, legend: Legend, path: Path) -> None:
    """Class indices (H, W) as an indexed PNG in the colours of the classes; with more than 255 of them as a 16-bit
    gray one, for an index has 8 bits."""
    if len(legend.names) < 256:
        image = Image.fromarray((classes + legend.first).to(torch.uint8).numpy())
        unused = [(0, 0, 0)] * legend.first
        image.putpalette([value for color in (*unused, *legend.palette) for value in color])
    else:
        image = Image.fromarray((classes + legend.first).numpy().astype(np.uint16))
    write_picture(image, path)


def write_picture(image: Image.Image, path: Path) -> None:
    kind = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    _write(path, lambda draft: image.save(draft, kind, quality=90))


def write_legend(legend: Legend, path: Path) -> None:
    """The numbers, names and colours of the classes, as `beit segment --classes` reads them."""
    rows = zip(legend.names, legend.palette, strict=True)
    lines = ["value\tname\tr\tg\tb"]
    lines += [
        "\t".join(map(str, (number, name, *color))) for number, (name, color) in enumerate(rows, legend.first)
    ]
    _write(path, lambda draft: draft.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """RunFailed where that is impossible: nor will it be with the next file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except OSError as error:
        raise RunFailed(f"{path} could not be written: {error.strerror or error}") from error


def _folder(config: PredictConfig) -> Path:
    """Where the maps go. UserError for what is no folder."""
    if config.layer is not None:
        raise UserError(f"--layer is for features, and {config.model} gives label maps; drop it")
    if config.out is None:
        raise UserError(f"{config.model} makes label maps of images; say where to: --out FOLDER")
    folder = Path(config.out)
    if folder.is_file() or folder.suffix in (".csv", ".jsonl", ".npz", ".png"):
        raise UserError(f"--out {config.out}: label maps are written to a folder, a file for each image")
    return folder


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]
