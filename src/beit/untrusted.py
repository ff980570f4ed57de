"""What a stranger wrote, made fit for use: a JSON object, values as their types, text and names in a message."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beit.config.errors import UserError, require

Facts = Mapping[str, Any]
"""Values by name, as JSON and configurations have them."""
MAX_JSON = 2**24
MAX_NESTING = 32


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object, or None where there is no such file. Raises :class:`UserError` for anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if _is_deep(content):
            raise ValueError("too deep")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download it again") from None
    require(isinstance(content, dict), f"{path} is no JSON object")
    return dict(content)


def checksum_of(content: object) -> str:
    """Of what JSON can say, in whatever order it says it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_deep(content: object) -> bool:
    """Whether lists and objects lie deeper within one another than whatever walks them can follow."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_NESTING):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [part for inner in parts for part in inner if isinstance(part, dict | list)]
    return bool(level)


def printable(text: str, most: int = 80) -> str:
    """Text fit for a message: in one line, short, and without control characters."""
    start = text[: most + 1]
    start = start if start.isprintable() else ascii(start)
    return start if len(start) <= most else f"{start[:most]}..."


def display(name: str) -> str:
    """The name of a file, which may hold any bytes, as a terminal may show it: what is not printable by its escape.
    The name itself stays what it is wherever it is kept or looked up."""
    return in_lines(os.fsencode(name).decode("utf-8", "backslashreplace")).replace("\n", "\\n")


def in_lines(text: str) -> str:
    """Lines that quote what others wrote, as a terminal may show them: control characters by their escapes."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def markup(text: str) -> str:
    """The same for rich, which is to find no markup in it."""
    from rich.markup import escape

    return escape(in_lines(text))


def listed(names: Iterable[str], most: int = 4) -> str:
    """A few names for a message, sorted, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(map(printable, ordered[:most])) + more
