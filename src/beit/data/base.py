"""What every set of images offers, whatever it is stored in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from beit.config.errors import UserError

Split = Literal["train", "eval"]
"""Images to learn from, or images to judge by."""


class Source(Protocol):
    """Images by index. Everything is fixed when the source is opened; files that vanish later are damaged files."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names when the source was opened with labels (and always for sets that bring them)."""

    notes: list[str]
    """What was ignored or decided, one line each, for the first lines of a run."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """What messages call the image: a path, printable."""

    def key(self, index: int) -> str:
        """The image's lasting identity, for choices by hash: its path relative to the root."""

    def image(self, index: int) -> Tensor:
        """uint8 (3, H, W); raises :class:`ImageError`."""

    def label(self, index: int) -> Any:
        """What the view takes beside the image: an index into `classes`, or a map of them, uint8 (H, W). Only where
        labels were asked for."""

    def describe(self) -> str:
        """One phrase: count, classes, origin."""

    @property
    def fingerprint(self) -> str:
        """Changes when images are added, removed or renamed; a run compares it when it is resumed."""


def check_classes(classes: Sequence[str], names: Iterable[str], data: str, origin: str) -> None:
    """UserError unless there are two `classes`, all `names` in `data` among them. They come from `origin`."""
    if unknown := sorted(set(names) - set(classes)):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise UserError(
            f"{data} has classes that are unknown to {origin}: {', '.join(map(repr, unknown[:5]))}{more}; "
            f"rename or remove them"
        )
    if len(classes) < 2:
        content = f"one class only ('{classes[0]}')" if classes else "no class"
        raise UserError(f"{data} holds {content}; a classifier needs at least two")


def read_text(path: str | Path, name: str) -> str:
    """The text of the file at `path`, which messages call `name`; UserError unless it is text in UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text in UTF-8"
        raise UserError(f"{name} cannot be read: {reason}") from error


def stable_hash(text: str) -> int:
    """64 bits that depend on nothing but `text` (which may be a file name of any bytes)."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "big")
