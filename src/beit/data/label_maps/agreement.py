"""Whether a table of classes and a model mean the same by the same numbers, whatever they call it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from beit.config.errors import UserError
from beit.data.label_maps.table import ClassTable, reading_of_zero


def agreed(table: ClassTable, classes: Sequence[str]) -> tuple[ClassTable, list[str]]:
    """`table` under the names that a model has for its numbers, and a note where they are not the same.

    Names agree that are synonyms ("building" and "building;edifice"), or of which one is the number itself. Raises
    :class:`UserError` naming the first class that is another.
    """
    pairs = list(enumerate(zip_longest(table.names, classes), table.first))
    different = [(number, mine, its) for number, (mine, its) in pairs if mine != its]
    others = [x for x in different if not _agree(*x)]
    if others:
        number, mine, its = others[0]
        more = f", and {len(others) - 1:,} more differ" if len(others) > 1 else ""
        raise UserError(
            f"{table.origin} has {len(table.names)} classes, the model {len(classes)}: the number {number} is "
            f"{_quoted(mine)} there and {_quoted(its)} in the model{more}; "
            f"{reading_of_zero(classes, table.reduce_zero_label)}; choose data with the model's classes"
        )
    if not different:
        return table, []
    number, mine, its = different[0]
    note = (
        f"{table.origin}: {len(different):,} classes have other names in the model, the first being {number}, "
        f"{_quoted(mine)} there and {_quoted(its)} in the model; the model's are used"
    )
    return replace(table, names=tuple(classes)), [note]


def _agree(number: int, mine: str | None, its: str | None) -> bool:
    if mine is None or its is None:
        return False
    if str(number) in (mine, its):  # the model, or the table, was made before there were names
        return True
    return mine.lower() == its.lower() or _is_one_of(mine, its) or _is_one_of(its, mine)


def _is_one_of(name: str, synonyms: str) -> bool:
    """Whether `name`, or its first synonym, is among `synonyms`.

    ADE20K's table has semicolons for spaces as well ("traffic;light;traffic;signal"), so it goes by words.
    """
    if not re.search("[;,]", synonyms):
        return False
    first = re.split("[;,]", name)[0]
    return any(f" {_words(x)} " in f" {_words(synonyms)} " for x in (name, first) if _words(x))


def _words(name: str) -> str:
    return " ".join(re.split(r"[;,\s]+", name.lower())).strip()


def _quoted(name: str | None) -> str:
    return "nothing" if name is None else f"'{name}'"
