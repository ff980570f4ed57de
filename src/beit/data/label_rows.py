"""Files of labels as rows: the path of an image, and the names of its classes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from beit.config.errors import UserError

_HEADINGS = {"image", "image_path", "path", "file", "filename", "file_name", "name"}
_SEPARATORS = {"\t": "a tab", ";": "a semicolon"}


def read_label_rows(path: Path) -> Mapping[str, Sequence[str]]:
    """Paths of images and their classes as the file at `path` says them; UserError for whatever is no such file."""
    readers = {".csv": _read_csv, ".json": _read_json}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise UserError(f"--labels {path} must end in {' or '.join(readers)}, to say what it holds")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text in UTF-8"
        raise UserError(f"--labels {path} cannot be read: {reason}") from error
    rows = read(path, text)
    if not rows:
        raise UserError(f"--labels {path} is empty; write a line `image,class;class` for each image")
    return {image: [name.strip() for name in names if name.strip()] for image, names in rows.items()}


def _read_csv(path: Path, text: str) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    table = [(f"--labels {path}, line {number}", line, _cells(path, number, line)) for number, line in lines]
    if table and _is_heading(table[0][2], table[1][2] if len(table) > 1 else []):
        del table[0]
    for place, line, cells in table:
        if len(cells) != 2:
            found = [name for mark, name in _SEPARATORS.items() if mark in line and len(cells) == 1]
            said = f"{found[0]} between its columns" if found else f"{len(cells)} columns"
            raise UserError(f"{place} has {said}; write `image,class;class`")
        image = cells[0].strip()
        if image in rows:
            raise UserError(f"{place}: {image} has a line already; join the two")
        rows[image] = cells[1].split(";")
    return rows


def _cells(path: Path, number: int, line: str) -> list[str]:
    """A line's cells. Each is read by itself: a stray quote would otherwise swallow all that follow."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        open_quote = "end of data" in str(error)
        reason = "a quote is opened and never closed" if open_quote else f"it is no CSV ({error})"
        raise UserError(f"--labels {path}, line {number}: {reason}; mend or remove its quotes") from error


def _is_heading(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first line of a file says what the columns are: it names no file, though the line below does."""
    name = first[0].strip().lower()
    return name in _HEADINGS or (
        not os.path.splitext(name)[1] and any(os.path.splitext(x)[1] for x in second[:1])
    )


def _read_json(path: Path, text: str) -> dict[str, list[str]]:
    try:
        content = json.loads(text, object_pairs_hook=partial(_without_repetition, path))
    except ValueError as error:
        raise UserError(f"--labels {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(row, list) and all(isinstance(name, str) for name in row) for row in content.values()
    ):
        raise UserError(f'--labels {path} must look like {{"image.jpg": ["class", "class"], ...}}')
    return content


def _without_repetition(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--labels {path} has {twice} two times; join the two")
    return content
