"""What labels mean, and labels from a file: one class, several or none for each image, wherever the image lies.

Sets of classes are numbered as classes are, so that a label stays one whole number: see :class:`Labels`.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config import UserError
from beit.data.base import Source
from beit.data.combined import Subset

_HEADINGS = {"image", "image_path", "path", "file", "filename", "file_name", "name"}


@dataclass(frozen=True)
class Labels:
    """What a label stands for: the class of that number, or the classes that its row of `sets` marks."""

    classes: tuple[str, ...]
    sets: Tensor | None = None
    """bool (S, C) where an image may have several classes, or none."""

    def targets(self, label: Tensor) -> Tensor:
        """Labels int64 (B,) -> bool (B, C), True for the classes they stand for."""
        return F.one_hot(label, len(self.classes)).bool() if self.sets is None else self.sets[label]

    def to(self, device: torch.device) -> Labels:
        return self if self.sets is None else dataclasses.replace(self, sets=self.sets.to(device))


class LabelFile:
    """The classes of images by their paths: relative to --data, or as found from the folder of the file."""

    def __init__(self, path: str | Path, *, multilabel: bool, classes: Sequence[str] | None = None) -> None:
        """`classes` are those of a model that has its own; otherwise the file's, sorted by name."""
        self.path = Path(path)
        rows = _read(self.path)
        found = sorted({name for row in rows.values() for name in row})
        names = tuple(found if classes is None else classes)
        if unknown := [name for name in found if name not in names]:
            raise UserError(
                f"--labels {path} has classes that are unknown to the model: {', '.join(map(repr, unknown[:5]))}"
                f"{f' and {len(unknown) - 5} more' if len(unknown) > 5 else ''}; rename or remove them"
            )
        if len(names) < 2:
            said = f"one class only ('{names[0]}')" if names else "no class"
            raise UserError(f"--labels {path} holds {said}; a classifier needs at least two")
        if not multilabel:
            _require_one_class(self.path, rows)
        number = {name: index for index, name in enumerate(names)}
        members = {image: tuple(sorted({number[name] for name in row})) for image, row in rows.items()}
        sets = sorted(set(members.values())) if multilabel else [(index,) for index in range(len(names))]
        self.labels = Labels(names, _rows_of(sets, len(names)) if multilabel else None)
        label_of = {row: label for label, row in enumerate(sets)}
        self._first = next(iter(rows))
        self._label_of: dict[str, int] = {}
        for image, row in members.items():
            for place in (os.path.normpath(image), os.path.abspath(self.path.parent / image)):
                self._label_of[place] = label_of[row]

    def apply(self, source: Source) -> Relabeled:
        """The images of `source` that the file names, with their labels; the others are left out, with a note."""
        found = {
            index: label for index in range(len(source)) if (label := self._find(source, index)) is not None
        }
        if not found:
            raise UserError(
                f"--labels {self.path} names none of the images of --data (it has '{self._first}', and an "
                f"image there is '{source.key(0)}'); write paths relative to --data"
            )
        relabeled = Relabeled(source, list(found), list(found.values()), self.labels.classes)
        if missing := len(source) - len(found):
            relabeled.notes.append(f"{missing:,} images are not in {self.path} and are left out")
        return relabeled

    def _find(self, source: Source, index: int) -> int | None:
        label = self._label_of.get(source.key(index))
        return self._label_of.get(os.path.abspath(source.name(index))) if label is None else label


def _rows_of(sets: Sequence[tuple[int, ...]], num_classes: int) -> Tensor:
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
        self.notes = list(source.notes)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def describe(self) -> str:
        return f"{super().describe()}, {len(self.classes or ())} classes from a file"

    @property
    def fingerprint(self) -> str:
        content = [self.classes, self._labels.tolist()]
        return f"{super().fingerprint} {hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()}"


def _read(path: Path) -> Mapping[str, Sequence[str]]:
    """Paths and their classes as the file says them, checked for shape."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text in UTF-8"
        raise UserError(f"--labels {path} cannot be read: {reason}") from error
    rows = _read_json(path, text) if path.suffix.lower() == ".json" else _read_csv(path, text)
    if not rows:
        raise UserError(f"--labels {path} is empty; write a line `image,class;class` for each image")
    return rows


def _read_csv(path: Path, text: str) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    reader = csv.reader(io.StringIO(text, newline=""))
    for cells in reader:
        if not cells or (reader.line_num == 1 and cells[0].strip().lower() in _HEADINGS):
            continue
        if len(cells) != 2:
            raise UserError(
                f"--labels {path}, line {reader.line_num} has {len(cells)} columns; write `image,class;class`"
            )
        image = cells[0].strip()
        if image in rows:
            raise UserError(
                f"--labels {path}, line {reader.line_num}: {image} has a line already; join the two"
            )
        rows[image] = [name.strip() for name in cells[1].split(";") if name.strip()]
    return rows


def _read_json(path: Path, text: str) -> dict[str, list[str]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"--labels {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(row, list) and all(isinstance(name, str) for name in row) for row in content.values()
    ):
        raise UserError(f'--labels {path} must look like {{"image.jpg": ["class", "class"], ...}}')
    return content


def _require_one_class(path: Path, rows: Mapping[str, Sequence[str]]) -> None:
    for image, names in rows.items():
        if len(set(names)) != 1:
            raise UserError(
                f"--labels {path} gives {image} {len(set(names)) or 'no'} classes; add --multilabel, or name one each"
            )
