"""Which classes the label maps of a set have: those of a model, of a table, or the numbers in the maps themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from beit.config.errors import UserError
from beit.config.segment import IGNORE
from beit.data.label_maps.files import MapFiles
from beit.data.label_maps.table import (
    MAX_CLASSES,
    TABLE_NAMES,
    ClassTable,
    named_table,
    read_class_table,
    reading_of_zero,
)
from beit.data.sources.listing import Listing

_COUNTED = 500  # maps that tell the number of classes where nothing else does


def find_class_table(listings: Sequence[Listing]) -> str | None:
    """The class table that lies in one of the folders, or beside the tars."""
    folders = [os.path.dirname(listing.tars[0]) if listing.tars else listing.root for listing in listings]
    candidates = [os.path.join(folder, name) for folder in folders for name in TABLE_NAMES]
    tables = [path for path in candidates if os.path.isfile(path)]
    if len(tables) > 1:
        raise UserError(
            f"--data: {tables[0]} and {tables[1]} both name classes; keep one, or let `beit segment` know by "
            f"--classes FILE which is meant"
        )
    return tables[0] if tables else None


def table_of_model(
    classes: Sequence[str], reduce_zero_label: bool, path: str | None
) -> tuple[ClassTable, list[str]]:
    """The classes of a model, which the table at `path` must agree with, and notes."""
    if path is None:
        table, notes = named_table(classes, reduce_zero_label, "the model"), []
    else:
        table, ignored = read_class_table(path, reduce_zero_label, classes)
        table, differences = reconcile(table, classes)
        notes = [*ignored, *differences]
    remedy = f"{reading_of_zero(classes, reduce_zero_label)}; choose data that is numbered like its own"
    return replace(table, remedy=remedy), notes


def table_of_data(
    path: str, reduce_zero_label: bool, numbers: Sequence[int], count: int
) -> tuple[ClassTable, list[str]]:
    """The classes in the table at `path`, and notes; one of them where it has many more than the `numbers` in
    `count` of the maps, as the table of another set would."""
    table, ignored = read_class_table(path, reduce_zero_label)
    notes = [f"classes from {path}", *ignored, table.zero]
    highest = max((number for number in numbers if number <= table.last), default=0)
    if table.last - highest > len(table.names) / 2:
        notes.append(
            f"{table.last - highest} of {len(table.names)} classes occur in none of the {count} label maps looked "
            f"at, nor any number above {highest}; is {path} their table?"
        )
    return table, notes


def counted_table(maps: MapFiles, reduce_zero_label: bool) -> tuple[ClassTable, list[str]]:
    """Classes up to the highest number in the maps, or in an even choice of them, and notes; their names are the
    numbers.

    Raises :class:`UserError` where those cannot be classes.
    """
    file_of, count = maps.numbers(_COUNTED)
    _require_two_classes(file_of, count, reduce_zero_label)
    highest = max(file_of.keys() - {IGNORE})
    if highest > MAX_CLASSES:
        raise UserError(
            f"{file_of[highest]} holds the number {highest}; {MAX_CLASSES} classes at most can be told apart"
        )
    names = [str(number) for number in range(int(reduce_zero_label), highest + 1)]
    table = named_table(names, reduce_zero_label, f"{count:,} of {len(maps):,} label maps")
    note = f"{len(names)} classes, the numbers in {table.origin}; --classes FILE gives them names"
    return table, [note, table.zero]


def _require_two_classes(file_of: dict[int, str], count: int, reduce_zero_label: bool) -> None:
    """There is nothing to learn from maps of a single class, nor from a mask of 0 and 255, which has but one."""
    if not file_of:
        raise UserError(
            f"none of {count:,} label maps can be read; `beit check` says what is wrong with them"
        )
    if max(file_of.keys() - {IGNORE}, default=0) > reduce_zero_label:
        return
    *others, last = sorted(file_of)
    content = f"{', '.join(map(str, others))} and {last}" if others else f"{last}"
    none = f"0 (--reduce-zero-label) and {IGNORE} mean" if reduce_zero_label else f"{IGNORE} means"
    classes = "1, 2, 3 ..." if reduce_zero_label else "0, 1, 2 ..."
    raise UserError(
        f"{file_of[last]} holds {content} alone, like every other map that was looked at; {none} 'no class', so "
        f"number the classes {classes}, two at least"
    )


# ------------------------------------------------------------------------------------------------------------
# Whether a table and a model mean the same by the same numbers, whatever they call it


def reconcile(table: ClassTable, classes: Sequence[str]) -> tuple[ClassTable, list[str]]:
    """`table` under the names that a model has for its numbers, and a note where they are not the same.

    Names agree that are synonyms ("building" and "building;edifice"), or of which one is the number itself. Raises
    :class:`UserError` naming the first class that is another.
    """
    rows = enumerate(zip_longest(table.names, classes, fillvalue=""), table.first)
    renamed = [(number, ours, theirs) for number, (ours, theirs) in rows if ours != theirs]
    if not renamed:
        return table, []
    different = [row for row in renamed if not _agree(*row)]
    number, *names = (different or renamed)[0]
    ours, theirs = (f"'{name}'" if name else "nothing" for name in names)
    first = f"the number {number} is {ours} there and {theirs} in the model"
    if different:
        more = f", and {len(different) - 1:,} more differ" if len(different) > 1 else ""
        raise UserError(
            f"{table.origin} has {len(table.names)} classes, the model {len(classes)}: {first}{more}; "
            f"{reading_of_zero(classes, table.reduce_zero_label)}; choose data with the model's classes"
        )
    note = f"{table.origin}: {len(renamed):,} classes have other names in the model, which are used; {first}"
    return replace(table, names=tuple(classes)), [note]


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
