"""Which classes the label maps of a set have: those of a model, of a table, or the numbers in the maps themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from beit.config.errors import UserError
from beit.config.segment import IGNORE
from beit.data.label_maps.agreement import agreed
from beit.data.label_maps.files import MapFiles
from beit.data.label_maps.table import (
    MAX_CLASSES,
    ClassTable,
    find_class_tables,
    named_table,
    read_class_table,
    reading_of_zero,
)
from beit.data.sources.listing import Listing

_COUNTED = 500  # maps that tell the number of classes where nothing else does


def found_class_table(listings: Sequence[Listing]) -> str | None:
    """The class table that lies in one of the folders, or beside the tars."""
    folders = [os.path.dirname(listing.tars[0]) if listing.tars else listing.root for listing in listings]
    found = [path for folder in folders for path in find_class_tables(folder)]
    if len(found) > 1:
        raise UserError(
            f"--data: {found[0]} and {found[1]} both name classes; keep one, or let `beit segment` know by "
            f"--classes FILE which is meant"
        )
    return found[0] if found else None


def table_of_model(
    classes: Sequence[str], reduce_zero_label: bool, path: str | None
) -> tuple[ClassTable, list[str]]:
    """The classes of a model, which the table at `path` must agree with, and notes."""
    if path is None:
        table, notes = named_table(classes, reduce_zero_label, "the model"), []
    else:
        table, ignored = read_class_table(path, reduce_zero_label, classes)
        table, told = agreed(table, classes)
        notes = [*ignored, *told]
    remedy = f"{reading_of_zero(classes, reduce_zero_label)}; choose data that is numbered like its own"
    return replace(table, remedy=remedy), notes


def table_of_data(
    path: str, reduce_zero_label: bool, seen: Sequence[int], count: int
) -> tuple[ClassTable, list[str]]:
    """The classes in the table at `path`, and notes; one of them where it has many more than the numbers `seen` in
    `count` of the maps, as the table of another set would."""
    table, ignored = read_class_table(path, reduce_zero_label)
    notes = [f"classes from {path}", *ignored, table.zero]
    last = table.first + len(table.names) - 1
    highest = max((number for number in seen if number <= last), default=0)
    if last - highest > len(table.names) / 2:
        notes.append(
            f"{last - highest} of {len(table.names)} classes occur in none of the {count} label maps looked at, nor "
            f"any number above {highest}; is {path} their table?"
        )
    return table, notes


def counted_table(maps: MapFiles, reduce_zero_label: bool) -> tuple[ClassTable, list[str]]:
    """Classes up to the highest number in the maps, or in an even choice of them, and notes; their names are the
    numbers.

    Raises :class:`UserError` where those cannot be classes.
    """
    found, count = maps.numbers(_COUNTED)
    _require_two_classes(found, count, reduce_zero_label)
    highest = max(found.keys() - {IGNORE})
    if highest > MAX_CLASSES:
        raise UserError(
            f"{found[highest]} holds the number {highest}; {MAX_CLASSES} classes at most can be told apart"
        )
    names = [str(number) for number in range(int(reduce_zero_label), highest + 1)]
    table = named_table(names, reduce_zero_label, f"{count:,} of {len(maps):,} label maps")
    told = f"{len(names)} classes, the numbers in {table.origin}; --classes FILE gives them names"
    return table, [told, table.zero]


def _require_two_classes(seen: dict[int, str], count: int, reduce_zero_label: bool) -> None:
    """There is nothing to learn from maps of a single class, nor from a mask of 0 and 255, which has but one."""
    if not seen:
        raise UserError(
            f"none of {count:,} label maps can be read; `beit check` says what is wrong with them"
        )
    if max(seen.keys() - {IGNORE}, default=0) > reduce_zero_label:
        return
    *others, last = sorted(seen)
    held = f"{', '.join(map(str, others))} and {last}" if others else f"{last}"
    none = f"0 (--reduce-zero-label) and {IGNORE} mean" if reduce_zero_label else f"{IGNORE} means"
    classes = "1, 2, 3 ..." if reduce_zero_label else "0, 1, 2 ..."
    raise UserError(
        f"{seen[last]} holds {held} alone, like every other map that was looked at; {none} 'no class', so number "
        f"the classes {classes}, two at least"
    )
