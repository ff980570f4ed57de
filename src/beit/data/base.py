"""What every set of images offers, whatever it is stored in."""

import hashlib
import os
import re
import unicodedata
from collections import UserDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from torch import Tensor

from beit.config.errors import UserError, require
from beit.untrusted import listed

Split = Literal["train", "val", "test"]
"""Images to learn from, to choose by on the way, or to judge by once, at the end."""
SPLITS: tuple[Split, ...] = ("train", "val", "test")


_ADDITION = r"[\W_]*(?:images?|imgs?|pictures?|photos?|sets?|data|split|\d{4})"
_SPLIT = re.compile(
    r"(?:(?:images?|imgs?)[\W_]*)?"
    r"(?:(?P<train>train|training|trn|trainval)"
    r"|(?P<val>val|validation|valid|dev)"
    r"|(?P<test>test|testing|eval|evaluation))"
    rf"(?:{_ADDITION})*",
    re.IGNORECASE,
)


def split_of(folder: str) -> Split | None:
    """The split that a folder of this name holds: `train`, `Training`, `trn`, `train_images`, `train-set`,
    `train2017` and the like; None for any other name."""
    match = _SPLIT.fullmatch(folder)
    return None if match is None else cast(Split, match.lastgroup)


class Source(Protocol):
    """Images by index. Everything is fixed when the source is opened; files that vanish later are damaged files."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names when the source was opened with labels (and always for sets that bring them)."""

    notes: list[str]
    """What was ignored or decided, one line each, for the first lines of a run."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """What messages call the image: a path, printable. See :func:`beit.data.sources.files.path_of`."""

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
        """Changes when images are added, removed, renamed or changed; a run compares it when it is resumed."""


SourceOfSplit = TypeVar("SourceOfSplit", bound=Source)
Item = TypeVar("Item")


class Splits(UserDict[Split, SourceOfSplit]):
    """The images of each split that has any, opened when they are asked for: who judges need not read what is trained
    on."""

    def __init__(self, openers: Mapping[Split, Callable[[], SourceOfSplit]]) -> None:
        super().__init__(cast(Any, openers))

    def __getitem__(self, split: Split) -> SourceOfSplit:
        if callable(opener := self.data[split]):
            self.data[split] = opener()
        return self.data[split]


def check_classes(classes: Sequence[str], names: Iterable[str], data: str, origin: str) -> None:
    """UserError unless there are two `classes`, all `names` in `data` among them. They come from `origin`."""
    unknown = [repr(name) for name in {*names} - {*classes}]
    others = f"{data} has classes that are unknown to {origin}: {listed(unknown, 5)}"
    require(not unknown, f"{others}; rename or remove them")
    content = f"one class only ('{classes[0]}')" if classes else "no class"
    require(len(classes) > 1, f"{data} holds {content}; a classifier needs at least two")


def read_text(path: str | Path, name: str, errors: str = "strict", newline: str | None = None) -> str:
    """The text of the file at `path`, which messages call `name`; UserError unless it is text in UTF-8.

    `errors` and `newline` are those of :func:`open`.
    """
    try:
        with open(path, encoding="utf-8-sig", errors=errors, newline=newline) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text in UTF-8"
        raise UserError(f"{name} cannot be read: {reason}") from error


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Those of the `items` that share a key, in order; none of those whose key is None."""
    groups: defaultdict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    groups.pop(None, None)
    return list(groups.values())


def notes_on_names(classes: Iterable[str], origin: str) -> list[str]:
    """A line about classes that differ in capitals, spaces, invisible marks, or the spelling of accents or numbers
    alone."""

    def look(name: str) -> str:
        seen = unicodedata.normalize("NFKC", name).casefold()
        plain = "".join(x for x in seen if not x.isspace() and unicodedata.category(x) != "Cf")
        return str(Decimal(plain).normalize()) if re.fullmatch(r"\d+(\.\d*)?", plain, re.ASCII) else plain

    alike = [listed(map(ascii, group)) for group in grouped(classes, look) if group[1:]]
    return [
        f"{origin} has classes that look alike: {'; '.join(alike[:3])}; give them one name if they are one"
    ] * bool(alike)


def stable_hash(text: str) -> int:
    """64 bits that depend on nothing but `text` (which may be a file name of any bytes)."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "big")
