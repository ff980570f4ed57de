"""What labels mean, and labels from a file: one class, several or none for each image, wherever the image lies.

Sets of classes are numbered as classes are, so that a label stays one whole number: see :class:`Labels`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config.errors import UserError
from beit.data.base import Source, Split, check_classes, read_text
from beit.data.sources.subsets import Subset

_HEADINGS = {"image", "image_path", "path", "file", "filename", "file_name", "name"}
_SEPARATORS = {"\t": "a tab", ";": "a semicolon"}
_Row = tuple[str, str, Sequence[str]]
"""A place in a file, for messages, an image and its classes."""


class Labels(NamedTuple):
    """What a label stands for: the class of that number, or the classes that its row of `sets` marks."""

    classes: tuple[str, ...]
    sets: Tensor | None = None
    """bool (S, C) where an image may have several classes, or none."""

    def targets(self, label: Tensor) -> Tensor:
        """Labels int64 (B,) -> bool (B, C), True for the classes they stand for."""
        return F.one_hot(label, len(self.classes)).bool() if self.sets is None else self.sets[label]

    def to(self, device: torch.device) -> Labels:
        return self if self.sets is None else self._replace(sets=self.sets.to(device))


class LabelFile:
    """The classes of images by their paths: relative to --data, or as seen from the folder of the file."""

    def __init__(self, path: str | Path, *, multilabel: bool, classes: Sequence[str] | None = None) -> None:
        """`classes` are those of a model that has its own; otherwise the file's, sorted by name."""
        self.path = Path(path)
        rows = read_label_rows(self.path)
        own_names = sorted({name for row in rows.values() for name in row})
        names = tuple(own_names if classes is None else classes)
        check_classes(names, own_names, f"--labels {path}", "the model")
        for image, own in rows.items():
            if not multilabel and len(set(own)) != 1:
                count = len(set(own)) or "no"
                raise UserError(
                    f"--labels {path} gives {image} {count} classes; add --multilabel, or name one each"
                )
        number = {name: index for index, name in enumerate(names)}
        members = {image: tuple(sorted({number[name] for name in row})) for image, row in rows.items()}
        sets = sorted(set(members.values())) if multilabel else [(index,) for index in range(len(names))]
        self.labels = Labels(names, _marked(sets, len(names)) if multilabel else None)
        label_of = {row: label for label, row in enumerate(sets)}
        self._labels = {image: label_of[row] for image, row in members.items()}
        self._used: set[str] = set()
        self._image_at: dict[str, str] = {}
        for image, label in self._labels.items():
            for place in _places(image, self.path):
                if self._labels[self._image_at.setdefault(place, image)] != label:
                    raise UserError(
                        f"--labels {path} gives {image} two times, and not the same classes; keep one"
                    )

    def apply(self, source: Source, split: Split = "train") -> Relabeled | None:
        """The images of `source` that the file names, with their labels; the others are left out, with a note. None
        for a `test` that has no labels.
        """
        images = {index: image for index in range(len(source)) if (image := self._find(source, index))}
        if not images and split == "test":
            return None
        if not images and split == "val" and len(source):
            raise UserError(
                f"--labels {self.path} names none of the {len(source):,} images of val; label some of them, or name "
                f"labelled ones with --eval-data"
            )
        if not images and split == "train":
            raise UserError(
                f"--labels {self.path} names none of the images of --data (it has '{next(iter(self._labels))}', and "
                f"an image there is '{source.key(0)}'); write paths relative to --data"
            )
        self._used.update(images.values())
        labels = [self._labels[image] for image in images.values()]
        relabeled = Relabeled(source, list(images), labels, self.labels.classes)
        if missing := len(source) - len(images):
            relabeled.notes.append(f"{missing:,} images are not in {self.path} and are left out")
        return relabeled

    def unused(self) -> list[str]:
        """A note about images that the file names and no source so far has, where there are any."""
        rest = [image for image in self._labels if image not in self._used]
        if not rest:
            return []
        return [
            f"{len(rest):,} images that {self.path} names are not among those used, the first being '{rest[0]}'"
        ]

    def _find(self, source: Source, index: int) -> str | None:
        image = self._image_at.get(source.key(index))
        return image or self._image_at.get(os.path.abspath(source.name(index)))


def classes_in_file(path: str) -> Callable[[str, str], Sequence[str]]:
    """The classes that a file of labels gives an image, told by its key and its name; none where it is not named."""
    rows = read_label_rows(Path(path))
    row_at = {place: row for image, row in rows.items() for place in _places(image, Path(path))}
    return lambda key, name: row_at.get(key) or row_at.get(os.path.abspath(name)) or ()


def _places(image: str, file: Path) -> set[str]:
    """Where the image may be that `file` calls by this path: beneath --data, or as seen from the file's folder."""
    return {os.path.normpath(image), os.path.abspath(file.parent / image)}


def _marked(sets: Sequence[tuple[int, ...]], num_classes: int) -> Tensor:
    rows = torch.zeros(len(sets), num_classes, dtype=torch.bool)
    for label, members in enumerate(sets):
        rows[label, list(members)] = True
    return rows


class Relabeled(Subset):
    """Some images of a source under labels of their own."""

    def __init__(
        self, source: Source, indices: Sequence[int], labels: Sequence[int], classes: tuple[str, ...]
    ) -> None:
        super().__init__(source, indices)
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self.classes = classes

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def describe(self) -> str:
        return f"{super().describe()}, {len(self.classes or ())} classes from a file"

    @property
    def fingerprint(self) -> str:
        content = [self.classes, self._labels.tolist()]
        return f"{super().fingerprint} {hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()}"


# ------------------------------------------------------------------------------------------------------------
# Files as rows: the path of an image, and the names of its classes


def read_label_rows(path: Path) -> Mapping[str, Sequence[str]]:
    """Paths of images and their classes as the file at `path` has them; UserError for whatever is no such file."""
    name, readers = f"--labels {path}", {".csv": _csv_rows, ".json": _json_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{name} must end in {' or '.join(readers)}, to say what it holds")
    rows: dict[str, list[str]] = {}
    for place, image, classes in readers[path.suffix.lower()](name, read_text(path, name)):
        if image in rows:
            raise UserError(f"{place}: {image} is there already; join the two")
        rows[image] = [text.strip() for text in classes if text.strip()]
    if not rows:
        raise UserError(f"{name} is empty; write a line `image,class;class` for each image")
    return rows


def _csv_rows(name: str, text: str) -> Iterator[_Row]:
    lines = [(f"{name}, line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    table = [_cells(place, line) for place, line in lines]
    start = int(_is_heading(*table[:2])) if table else 0
    for (place, line), cells in zip(lines[start:], table[start:], strict=True):
        if len(cells) != 2:
            others = [mark for sign, mark in _SEPARATORS.items() if sign in line and len(cells) == 1]
            fault = f"{others[0]} between its columns" if others else f"{len(cells)} columns"
            raise UserError(f"{place} has {fault}; write `image,class;class`")
        yield place, cells[0].strip(), cells[1].split(";")


def _cells(place: str, line: str) -> list[str]:
    """A line's cells. Each is read by itself: a stray quote would otherwise swallow all that follow."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        open_quote = "end of data" in str(error)
        reason = "a quote is opened and never closed" if open_quote else f"it is no CSV ({error})"
        raise UserError(f"{place}: {reason}; mend or remove its quotes") from error


def _is_heading(first: Sequence[str], second: Sequence[str] = ()) -> bool:
    """Whether the first line of a file says what the columns are: it names no file, though the line below does."""
    name = first[0].strip().lower()
    return name in _HEADINGS or (
        not os.path.splitext(name)[1] and any(os.path.splitext(x)[1] for x in second[:1])
    )


def _json_rows(name: str, text: str) -> Iterator[_Row]:
    try:
        content = json.loads(text, object_pairs_hook=tuple)  # a dict would hide an image that is there twice
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {error}") from error
    for row in content if isinstance(content, tuple) else [None]:
        match row:
            case (image, list(classes)) if all(isinstance(text, str) for text in classes):
                yield name, image, classes
            case _:
                raise UserError(f'{name} must look like {{"image.jpg": ["class", "class"], ...}}')
