"""What labels mean, and labels from a file: one class, several or none for each image, wherever the image lies.

Sets of classes are numbered as classes are, so that a label stays one whole number: see :class:`Labels`.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from beit.config.errors import UserError, require
from beit.config.values import counted
from beit.data.base import Source, Split, check_classes, notes_on_names, read_text
from beit.data.sources.files import IMAGE_SUFFIXES, path_of
from beit.data.sources.subsets import Subset
from beit.untrusted import display

_HEADINGS = {"id", "image", "image_id", "image_path", "img", "path", "file", "filename", "file_name", "name"}
_SEPARATORS = {"\t": "a tab", ";": "a semicolon"}
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?([ :/%-].*)?", re.IGNORECASE)
FEW_NUMBERS = 20
"""Labels that are numbers and may well be classes."""
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

    def to(self, device: torch.device) -> "Labels":
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
        self._notes = notes_on_names(own_names, f"--labels {path}")
        self._notes += _notes_on_numbers(names, len(rows), f"--labels {path}") if classes is None else []
        for image, own in rows.items():
            if not multilabel and len(set(own)) != 1:
                count = len(set(own)) or "no"
                raise UserError(f"--labels {path} gives {image} {count} classes; add --multilabel, or name one each")
        number = {name: index for index, name in enumerate(names)}
        members = {image: tuple(sorted({number[name] for name in row})) for image, row in rows.items()}
        sets = sorted(set(members.values())) if multilabel else [(index,) for index in range(len(names))]
        self.labels = Labels(names, _marked(sets, len(names)) if multilabel else None)
        label_of = {row: label for label, row in enumerate(sets)}
        self._labels = {image: label_of[row] for image, row in members.items()}
        self._used: set[str] = set()
        self._image_at, folder = _images_at(rows, self.path), os.path.abspath(self.path.parent)
        for image, label in self._labels.items():
            if any(self._labels[self._image_at[place]] != label for place in _places(image, folder)):
                twice = f"--labels {path} gives {display(image)} two times, and not the same classes"
                raise UserError(f"{twice}; keep one")

    def apply(self, source: Source, split: Split = "train") -> Subset | None:
        """The images of `source` that the file names, with their labels; the others are left out, with a note. None
        for a `test` that has no labels.
        """
        places = ((source.key(index), path_of(source, index)) for index in range(len(source)))
        images = {i: image for i, place in enumerate(places) if (image := _find(self._image_at, *place))}
        counts = Counter(filter(_is_bare, images.values()))
        if several := [display(image) for image, count in counts.items() if count > 1]:
            raise UserError(f"--labels {self.path}: '{several[0]}' may mean several images; write its ending")
        if not images and split == "test":
            return None
        none, some = f"--labels {self.path} names none of the", bool(images) or not len(source)
        mend = "label some of them, or name labelled ones with --eval-data"
        require(some or split != "val", f"{none} {counted(len(source), 'image')} of val; {mend}")
        if not images and split == "train":
            both = f"it has '{display(next(iter(self._labels)))}', and an image there is '{display(source.key(0))}'"
            raise UserError(f"{none} images of --data ({both}); write paths relative to --data")
        self._used.update(images.values())
        labels = [self._labels[image] for image in images.values()]
        relabeled = Subset(source, list(images), labels, self.labels.classes)
        if missing := len(source) - len(images):
            relabeled.notes.append(f"{counted(missing, 'image', 'is/are')} not in {self.path} and left out")
        relabeled.notes += self._notes if split == "train" else []
        return relabeled

    def unused(self) -> list[str]:
        """A note about images that the file names and no source so far has, where there are any."""
        rest = [image for image in self._labels if image not in self._used]
        are = "is" if len(rest) == 1 else "are"
        about = f"{counted(len(rest), 'image')} that {self.path} names {are} not among those that are used here"
        return [f"{about}, the first being '{display(rest[0])}'"] if rest else []


def classes_in_file(path: str) -> Callable[[str, str], Sequence[str]]:
    """The classes that a file of labels gives an image, told by its key and its path; none where it is not named."""
    rows = read_label_rows(Path(path))
    image_at = _images_at(rows, Path(path))
    return lambda key, place: rows.get(_find(image_at, key, place) or "\0", ())


def _notes_on_numbers(classes: Sequence[str], images: int, origin: str) -> list[str]:
    """What is said of classes that are called by numbers. UserError where these are measured values, not classes:
    many with fractions, or whole ones of which few occur twice."""
    whole = all(re.fullmatch(r"\d+([ :/%-].*)?", name) for name in classes)  # dates and shares, too
    if not all(map(_NUMBER.fullmatch, classes)) or (whole and len(classes) <= FEW_NUMBERS):
        return []
    text = f"{origin} has {len(classes):,} numbers for labels, such as {classes[-1]}, each a class of its own"
    if len(classes) > (images / 2 if whole else FEW_NUMBERS):
        raise UserError(f"{text}; values cannot be learned, but classes: join them to a few, as low and high")
    return [f"{text}, of which none is nearer to another"]


def _images_at(images: Collection[str], file: Path) -> dict[str, str]:
    """The images that `file` names by where they may lie: beneath --data, or as seen from the file's folder; failing
    that from the current one, or without the space around the name."""
    folder = os.path.abspath(file.parent)
    exact = ((place, image) for image in images for place in _places(image, folder))
    spaced = (image for image in images if image != image.strip())
    close = ((place, image) for image in spaced for place in _places(image.strip(), folder))
    image_at: dict[str, str] = {}
    for place, image in chain(exact, ((os.path.abspath(image), image) for image in images), close):
        image_at.setdefault(place, image)
    return image_at


def _places(image: str, folder: str) -> tuple[str, str]:
    return os.path.normpath(image), os.path.normpath(os.path.join(folder, image))


def _find(image_at: Mapping[str, str], key: str, path: str) -> str | None:
    """What the image at `path`, beneath --data at `key`, is called in the file; perhaps without its ending."""
    places = (key, os.path.abspath(path))
    whole = (image_at[place] for place in places if place in image_at)
    stems = (image_at.get(os.path.splitext(place)[0]) for place in places)
    return next(whole, None) or next((image for image in stems if image and _is_bare(image)), None)


def _is_bare(image: str) -> bool:
    return os.path.splitext(image)[1].lower() not in IMAGE_SUFFIXES


def _marked(sets: Sequence[tuple[int, ...]], num_classes: int) -> Tensor:
    rows = torch.zeros(len(sets), num_classes, dtype=torch.bool)
    for label, members in enumerate(sets):
        rows[label, list(members)] = True
    return rows


# ------------------------------------------------------------------------------------------------------------
# Files as rows: the path of an image, and the names of its classes


def read_label_rows(path: Path) -> Mapping[str, Sequence[str]]:
    """Paths of images and their classes as the file at `path` has them; UserError for whatever is no such file."""
    name = f"--labels {path}"
    readers = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _json_lines}
    require(path.suffix.lower() in readers, f"{name} must end in {' or '.join(readers)}, to say what it holds")
    rows: dict[str, list[str]] = {}
    # A name may hold any bytes, and line breaks; so may a class that `beit predict` wrote.
    text = read_text(path, name, errors="surrogateescape", newline="")
    for place, image, classes in readers[path.suffix.lower()](name, text):
        require(image not in rows, f"{place}: {display(image)} is there already; join the two")
        rows[image] = [text for text in classes if text.strip().lower() not in ("", "nan")]
    require(bool(rows), f"{name} is empty; write a line `image,class;class` for each image")
    return rows


def _csv_rows(name: str, text: str) -> Iterator[_Row]:
    table = list(_csv_table(name, text))
    start = int(_is_heading(*(cells for _, cells in table[:2]))) if table else 0
    # Beside the label, `beit predict` writes how likely it is, and others.
    columns = len(table[0][1]) if start and table[0][1][1:3] == ["label", "probability"] else 2
    for place, cells in table[start:]:
        if len(cells) != columns:
            others = [mark for sign, mark in _SEPARATORS.items() if sign in cells[0] and len(cells) == 1]
            fault = f"{others[0]} between its columns" if others else f"{len(cells)} columns"
            raise UserError(f"{place} has {fault}; write `image,class;class`")
        if columns == 2 and re.search("[\0\ud800-\udfff]", cells[1]):
            raise UserError(f"{place} cannot be read: the class is not text in UTF-8")
        yield place, cells[0], [x.strip() for x in cells[1].split(";")] if columns == 2 else [cells[1]]


def _csv_table(name: str, text: str) -> Iterator[tuple[str, list[str]]]:
    """Lines with their places. In quotes a name may hold line breaks, but what follows may not: a stray quote would
    swallow the lines below."""
    reader, place = csv.reader(io.StringIO(text, newline=""), strict=True), f"{name}, line 1"
    try:
        for cells in reader:
            if re.search("[\r\n]", "".join(cells[1:])):
                raise csv.Error("unexpected end of data")
            if cells:
                yield place, cells
            place = f"{name}, line {reader.line_num + 1}"
    except csv.Error as error:
        is_open = re.search("end of data|field larger", str(error))
        reason = "a quote is opened and never closed" if is_open else f"it is no CSV ({error})"
        raise UserError(f"{place}: {reason}; mend or remove its quotes") from error


def _is_heading(first: Sequence[str], second: Sequence[str] = ()) -> bool:
    """Whether the first line of a file says what the columns are: it names no file, though the line below does."""
    name = first[0].strip().lower()
    return name in _HEADINGS or (not os.path.splitext(name)[1] and any(os.path.splitext(x)[1] for x in second[:1]))


def _json_rows(name: str, text: str) -> Iterator[_Row]:
    try:
        content = json.loads(text, object_pairs_hook=tuple)  # a dict would hide an image that is there twice
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {error}") from error
    for row in content if isinstance(content, tuple) else [None]:
        match row:
            case (image, list(classes)) if all(isinstance(text, str) for text in classes):
                yield name, image, [text.strip() for text in classes]
            case _:
                raise UserError(f'{name} must look like {{"image.jpg": ["class", "class"], ...}}')


def _json_lines(name: str, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
            yield place, str(row["image"]), [{str: str, int: str, float: str}[type(row["label"])](row["label"])]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f'{place} must look like {{"image": "a.jpg", "label": "class"}}') from error
