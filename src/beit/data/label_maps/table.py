"""What the numbers in label maps mean: classes by number, their names and the colours to draw them in."""

import colorsys
import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.config.errors import UserError, require
from beit.config.segment import IGNORE
from beit.config.values import counted
from beit.data.base import read_text
from beit.data.sources.files import Listing

Color = tuple[int, int, int]

_OUTSIDE = 254  # what a number without a class becomes on its way to a message
MAX_CLASSES = 254
_NO_CLASS = ("unlabel", "ignore", "void")  # in the name of what is rarely meant to be learned

TABLE_NAMES = ("classes.tsv", "classes.csv", "objectInfo150.csv", "objectInfo150.txt")
_VALUE_HEADINGS = ("value", "mask_value", "idx", "id", "index")
_COLOR_HEADINGS = (("r", "g", "b"), ("red", "green", "blue"))


@dataclass(frozen=True)
class ClassTable:
    """The classes of a set of label maps: class i is the number i, or i + 1 where 0 means "no class"."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    reduce_zero_label: bool
    """Whether 0 in a file means "no class", as in ADE20K."""
    origin: str
    """Where the classes come from, for messages."""
    remedy: str = "correct the map, or the table of classes (--classes)"
    """What to do about a number without a class, for messages."""
    notes: tuple[str, ...] = ()
    """What is to be said of them at the start of a run."""

    def __post_init__(self) -> None:
        count = len(self.names)
        two = f"at least two{'' if self.reduce_zero_label else ' (a background counts as one)'}"
        require(count > 1, f"{self.origin} has {'one class' if count else 'no class'}; segmentation needs {two}")
        require(count <= MAX_CLASSES, f"{self.origin} has {count:,} classes; {MAX_CLASSES} at most can be told apart")
        if repeated := [name for name in dict.fromkeys(self.names) if self.names.count(name) > 1]:
            raise UserError(f"{self.origin} has two classes of the name '{repeated[0]}'; rename one")

    @property
    def first(self) -> int:
        """The number in the files that means class 0."""
        return int(self.reduce_zero_label)

    @property
    def last(self) -> int:
        """The highest number with a class."""
        return self.first + len(self.names) - 1

    @property
    def zero(self) -> str:
        """What 0 in a label map means, for the announcement of a run that may choose it."""
        if self.reduce_zero_label:
            return "0 in a label map: no class (--reduce-zero-label)"
        name = self.names[0]
        if is_none(name):
            return f"0 in a label map: the class '{name}', learned like any other; --reduce-zero-label ignores it"
        return f"0 in a label map: the class '{name}' (--reduce-zero-label would ignore it)"

    def indices(self, numbers: NDArray[np.integer[Any]], name: str) -> Tensor:
        """Numbers of the file `name`, (H, W), as uint8 class indices with 255 = no class.

        Raises :class:`UserError` where a number has no class.
        """
        if numbers.dtype != np.uint8:
            self.require(int(numbers.min()), name)
            self.require(int(numbers.max()), name)
            numbers = numbers.astype(np.uint8)
        meanings = [IGNORE] * self.first + [*range(len(self.names))]
        meanings += [_OUTSIDE] * (IGNORE - len(meanings)) + [IGNORE]
        # A translation of bytes takes a fourth of the time of numpy's take.
        translation = bytearray(numbers.tobytes()).translate(bytes(meanings))
        classes = np.frombuffer(translation, dtype=np.uint8).reshape(numbers.shape)
        if (outside := classes == _OUTSIDE).any():
            self.require(int(numbers[outside].max()), name)
        return torch.from_numpy(classes)

    def require(self, number: int, name: str) -> None:
        """UserError naming the file `name` unless `number` has a class, or means "no class"."""
        known = f"the classes of {self.origin} run from {self.first} to {self.last} ({IGNORE}: no class)"
        fits = 0 <= number <= self.last or number == IGNORE
        require(fits, f"{name} holds the number {number}, but {known}; {self.remedy}")


def is_none(name: str) -> bool:
    """Whether a class is called as if it were none."""
    return any(word in name.lower() for word in _NO_CLASS)


def named_table(names: Sequence[str], reduce_zero_label: bool, origin: str) -> ClassTable:
    """Classes of these names in generated colours."""
    return ClassTable(tuple(names), generated_palette(len(names)), reduce_zero_label, origin)


def reading_of_zero(classes: Sequence[str], reduce_zero_label: bool) -> str:
    """For messages: what a model of these classes makes of 0 in a label map, which nobody can change any more."""
    return f"the model reads 0 as {'no class' if reduce_zero_label else repr(classes[0])}"


def generated_palette(count: int) -> tuple[Color, ...]:
    """Colours for `count` classes, all different; the first ones lie far apart."""
    return tuple(_color(index) for index in range(count))


def _color(index: int) -> Color:
    # Hues a golden angle apart; every seventh class takes the next of three shades.
    saturation, value = ((0.75, 0.9), (0.5, 0.65), (0.95, 0.55))[index // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.6180339887 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


# ------------------------------------------------------------------------------------------------------------
# Files


def read_class_table(path: str, reduce_zero_label: bool, classes: Sequence[str] | None = None) -> ClassTable:
    """The classes that a tab- or comma-separated file names, with notes on what of it is not used.

    A first line says which columns are the number (value, mask_value, idx, id or index), the name, and, where there
    are any, the colour (r, g, b). The numbers must run without a gap, from 0, or from 1 with `reduce_zero_label`.
    `classes` are those of a model that is to be judged, for messages.
    """
    first = int(reduce_zero_label)
    lines = sorted(read_class_rows(path))
    rows = [row for row in lines if row[0] not in (IGNORE, first - 1)]
    if rows and rows[0][0] == 1 and not reduce_zero_label:
        remedy = "add --reduce-zero-label to ignore 0, or name it in the table"
        if classes is not None:
            remedy = f"{reading_of_zero(classes, False)}, so choose data that does"
        raise UserError(f"{path} numbers its classes from 1, so that 0 has no class; {remedy}")
    for number, (value, _, _) in enumerate(rows, first):
        what = f"names {value} twice" if value == number - 1 else f"has no class {number}"
        require(value == number, f"{path} {what}; the numbers of classes must run from {first} without a gap")
    table = named_table([name for _, name, _ in rows], reduce_zero_label, path)
    palette = tuple(own or color for (_, _, own), color in zip(rows, table.palette, strict=True))
    notes = tuple(f"{path}: {row[0]} ('{row[1]}') is ignored" for row in lines if row not in rows)
    return replace(table, palette=palette, notes=notes)


def read_class_rows(path: str) -> list[tuple[int, str, Color | None]]:
    """Number, name and colour of every line of a class table, as they stand there."""
    text = read_text(path, f"the table of classes {path}")
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    cells = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",")
    heading, *table = [[cell.strip() for cell in row] for row in cells]
    heading = [name.lower() for name in heading]
    value = next((name for name in _VALUE_HEADINGS if name in heading), None)
    columns = "must start with a line that names its columns, `value,name` or `value,name,r,g,b`"
    if value is None or "name" not in heading:
        raise UserError(f"the table of classes {path} {columns}")
    color = next((names for names in _COLOR_HEADINGS if set(names) <= set(heading)), None)
    rows = []
    for row in table:
        try:
            content = dict(zip(heading, row, strict=False))
            number, name = int(content[value]), content["name"]
            shades = color and (int(content[color[0]]), int(content[color[1]]), int(content[color[2]]))
            if number < 0 or not name or not all(0 <= shade <= 255 for shade in shades or ()):
                raise ValueError
            rows.append((number, name, shades))
        except (KeyError, ValueError) as error:
            line = f"the line '{','.join(row)}' has no number from 0, a name, and colours up to 255"
            raise UserError(f"{path}: {line}") from error
    return rows


# ------------------------------------------------------------------------------------------------------------
# Which classes a set has: those of a model, of a table, or the numbers in the maps themselves


def find_class_table(listings: Sequence[Listing]) -> str | None:
    """The class table that lies in one of the folders, or beside the tars."""
    folders = [os.path.dirname(listing.tars[0]) if listing.tars else listing.root for listing in listings]
    candidates = [os.path.join(folder, name) for folder in folders for name in TABLE_NAMES]
    tables = [path for path in candidates if os.path.isfile(path)]
    if len(tables) > 1:
        both = f"{tables[0]} and {tables[1]} both name classes"
        raise UserError(f"--data: {both}; keep one, or let `beit segment` know by --classes FILE which is meant")
    return tables[0] if tables else None


def table_of_model(classes: Sequence[str], reduce_zero_label: bool, path: str | None) -> ClassTable:
    """The classes of a model, which the table at `path` must agree with."""
    if path is None:
        table = named_table(classes, reduce_zero_label, "the model")
    else:
        table = reconcile(read_class_table(path, reduce_zero_label, classes), classes)
    remedy = f"{reading_of_zero(classes, reduce_zero_label)}; choose data that is numbered like its own"
    return replace(table, remedy=remedy)


def table_of_data(path: str, reduce_zero_label: bool, numbers: Sequence[int], count: int) -> ClassTable:
    """The classes in the table at `path`, with a note where it has many more than the `numbers` in
    `count` of the maps, as the table of another set would."""
    table = read_class_table(path, reduce_zero_label)
    notes = [f"classes from {path}", *table.notes, table.zero]
    highest = max((number for number in numbers if number <= table.last), default=0)
    if table.last - highest > len(table.names) / 2 or highest == 0:  # as black and white masks have it
        absent = f"{table.last - highest} of {len(table.names)} classes occur in none"
        maps = f"{counted(count, 'label map')} looked at"
        notes.append(f"{absent} of {maps}, nor any number above {highest}; is {path} their table?")
    return replace(table, notes=tuple(notes))


def counted_table(
    file_of: Mapping[int, str], count: int, shades: str | None, total: int, reduce_zero_label: bool
) -> ClassTable:
    """Classes up to the highest of the numbers in `count` of `total` maps, which `file_of` has the name of a map for;
    their names are the numbers.

    Raises :class:`UserError` where those cannot be classes, nor where they are `shades` in the map of that name.
    """
    none = f"of {counted(count, 'label map')} none can be read"
    require(bool(file_of), f"{none}; `beit check` says what is wrong with them")
    highest = max(file_of.keys() - {IGNORE}, default=0)
    most = f"{MAX_CLASSES} classes at most can be told apart"
    require(highest <= MAX_CLASSES, f"{file_of[max(file_of)]} holds the number {highest}; {most}")
    smooth = "many numbers with few pixels each, as a map has that was resized with smoothing or was a JPEG"
    again = "make it again from its source, by nearest neighbour, or name its numbers in a table (--classes)"
    require(shades is None, f"{shades} holds {smooth}; {again}")
    # Nothing is learned from maps of a single class, nor from a mask of 0 and 255, which has but one.
    if highest <= reduce_zero_label:
        *others, last = sorted(file_of)
        content = f"{', '.join(map(str, others))} and {last}" if others else f"{last}"
        none = f"0 (--reduce-zero-label) and {IGNORE} mean" if reduce_zero_label else f"{IGNORE} means"
        classes = "1, 2, 3 ..." if reduce_zero_label else "0, 1, 2 ..."
        alone = f"{file_of[last]} holds {content} alone, like every other map that was looked at"
        raise UserError(f"{alone}; {none} 'no class', so number the classes {classes}, two at least")
    numbers = sorted(file_of.keys() - {IGNORE, *range(int(reduce_zero_label))})
    if highest > 4 * len(numbers):
        listed = ", ".join(map(str, numbers[:4])) + (" ..." if len(numbers) > 4 else "")
        hold = f"{counted(count, 'map', 'holds/hold')} {counted(len(numbers), 'number')} alone"
        few = f"{hold} ({listed}), like shades of gray"
        mend = f"write {', '.join(map(str, range(len(numbers))[:3]))} ... for them in their order"
        mend += f", or name the classes up to {highest} in a table (--classes)"
        raise UserError(f"{file_of[highest]} holds the number {highest}, but {few}; {mend}")
    names = [str(number) for number in range(int(reduce_zero_label), highest + 1)]
    table = named_table(names, reduce_zero_label, f"{count:,} of {counted(total, 'label map')}")
    note = f"{len(names)} classes, the numbers in {table.origin}; --classes FILE gives them names"
    return replace(table, notes=(note, table.zero))


# ------------------------------------------------------------------------------------------------------------
# Whether a table and a model mean the same by the same numbers, whatever they call it


def reconcile(table: ClassTable, classes: Sequence[str]) -> ClassTable:
    """`table` under the names that a model has for its numbers, with a note where they are not the same.

    Names agree that are synonyms ("building" and "building;edifice"), or of which one is the number itself. Raises
    :class:`UserError` naming the first class that is another.
    """
    rows = enumerate(zip_longest(table.names, classes, fillvalue=""), table.first)
    renamed = [(number, ours, theirs) for number, (ours, theirs) in rows if ours != theirs]
    if not renamed:
        return table
    different = [row for row in renamed if not _agree(*row)]
    number, *names = (different or renamed)[0]
    ours, theirs = (f"'{name}'" if name else "nothing" for name in names)
    first = f"the number {number} is {ours} there and {theirs} in the model"
    if different:
        more = f", and {counted(len(different) - 1, 'other', 'differs/differ')}" if different[1:] else ""
        counts = f"{table.origin} has {len(table.names)} classes, the model {len(classes)}: {first}{more}"
        zero = reading_of_zero(classes, table.reduce_zero_label)
        raise UserError(f"{counts}; {zero}; choose data with the model's classes")
    others = counted(len(renamed), "class", "has another name/have other names")
    note = f"{table.origin}: {others} in the model, as used here; {first}"
    return replace(table, names=tuple(classes), notes=(*table.notes, note))


def _agree(number: int, ours: str, theirs: str) -> bool:
    """Whether two names, "" for none, are the same or synonyms. A name that is the number itself agrees with any: the
    model, or the table, was made before there were names.

    ADE20K's table has semicolons for spaces as well ("traffic;light;traffic;signal"), so synonyms go by words.
    """
    if not (ours and theirs) or str(number) in (ours, theirs):
        return bool(ours and theirs)
    for name, synonyms in ((ours, theirs), (theirs, ours)):
        choices = {_words(name), _words(re.split("[;,]", name)[0])} - {""}
        if re.search("[;,]", synonyms) and any(f" {x} " in f" {_words(synonyms)} " for x in choices):
            return True
    return ours.lower() == theirs.lower()


def _words(name: str) -> str:
    return " ".join(re.split(r"[;,\s]+", name.lower())).strip()
