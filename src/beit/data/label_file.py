"""What labels mean, and labels from a file: one class, several or none for each image, wherever the image lies.

Sets of classes are numbered as classes are, so that a label stays one whole number: see :class:`Labels`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config.errors import UserError
from beit.data.base import Source
from beit.data.label_rows import read_label_rows
from beit.data.sources.subsets import Subset


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
        rows = read_label_rows(self.path)
        found = sorted({name for row in rows.values() for name in row})
        names = tuple(found if classes is None else classes)
        if unknown := sorted(set(found) - set(names)):
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
        self._images = list(rows)
        self._labels = [label_of[row] for row in members.values()]
        self._used: set[int] = set()
        self._row_of: dict[str, int] = {}
        for row, image in enumerate(rows):
            for place in {os.path.normpath(image), os.path.abspath(self.path.parent / image)}:
                first = self._row_of.setdefault(place, row)
                if self._labels[first] != self._labels[row]:
                    raise UserError(
                        f"--labels {path} gives {image} two times, and not the same classes; keep one"
                    )

    def apply(self, source: Source, *, held_back: bool = False) -> Relabeled:
        """The images of `source` that the file names, with their labels; the others are left out, with a note.

        held_back: whether these are the images held back from those of another source.
        """
        found = {index: row for index in range(len(source)) if (row := self._find(source, index)) is not None}
        if not found and held_back:
            raise UserError(
                f"--labels {self.path} names none of the {len(source):,} images held back for evaluation; label some "
                f"of them, hold more back with --holdout, or name a folder with train/ and val/"
            )
        if not found:
            raise UserError(
                f"--labels {self.path} names none of the images of --data (it has '{self._images[0]}', and an "
                f"image there is '{source.key(0)}'); write paths relative to --data"
            )
        self._used.update(found.values())
        labels = [self._labels[row] for row in found.values()]
        relabeled = Relabeled(source, list(found), labels, self.labels.classes)
        if missing := len(source) - len(found):
            relabeled.notes.append(f"{missing:,} images are not in {self.path} and are left out")
        return relabeled

    def unused(self) -> list[str]:
        """A note about images that the file names and no source so far has, where there are any."""
        left = [image for row, image in enumerate(self._images) if row not in self._used]
        if not left:
            return []
        return [
            f"{len(left):,} images that {self.path} names are not among those used, the first being '{left[0]}'"
        ]

    def _find(self, source: Source, index: int) -> int | None:
        row = self._row_of.get(source.key(index))
        return self._row_of.get(os.path.abspath(source.name(index))) if row is None else row


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


def _require_one_class(path: Path, rows: Mapping[str, Sequence[str]]) -> None:
    for image, names in rows.items():
        if len(set(names)) != 1:
            raise UserError(
                f"--labels {path} gives {image} {len(set(names)) or 'no'} classes; add --multilabel, or name one each"
            )
