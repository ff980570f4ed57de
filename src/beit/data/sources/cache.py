"""What a run has found out about its images, kept in its folder, so that it need not be found out at every start."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.atomic import replace_file

VERSION = 1
"""Of how listings and choices are made and written; what another release wrote is not used."""
Track = Callable[[Iterable[Any], str], Iterator[Any]]
"""Passes items on, and shows under a title how many went by."""


class ImageCache:
    """Arrays by what they follow from: paths, sizes and times of all files, and what was asked for."""

    def __init__(self, path: Path | None = None, about: object = None, track: Track = lambda x, _: iter(x)) -> None:
        """`path` is the file that an earlier start may have left; `about`, what else all arrays follow from."""
        self._about, self._arrays = (about, VERSION), dict[str, list[NDArray[Any]]]()
        self._stored: dict[str, NDArray[Any]] = {}
        self.listings: dict[tuple[str, ...], list[Any]] = {}
        """What the data of this start hold, by their names."""
        self.track = track
        if path is not None:
            # Whatever is wrong with it: all can be found out anew.
            with suppress(Exception), path.open("rb") as stream, np.load(stream) as file:
                self._stored = dict(file) if file.zip.testzip() is None else {}

    def recall(self, facts: object, find: Callable[[], Iterable[NDArray[Any]]]) -> list[NDArray[Any]]:
        """The arrays that `find` gives, which follow from `facts` and the files listed; found once."""
        files = [(values, [x.members.digest for x in self.listings[values]]) for values in self.listings]
        key = hashlib.blake2b(repr((self._about, facts, files)).encode(), digest_size=16).hexdigest()
        if key not in self._arrays:
            stored = [self._stored[name] for name in self._stored if name.startswith(key)]
            self._arrays[key] = stored or list(find())
        return self._arrays[key]

    def save(self, path: Path) -> None:
        """Write what this start has used, unless it is there."""
        arrays = {f"{key}-{n}": array for key, row in self._arrays.items() for n, array in enumerate(row)}
        if arrays.keys() != self._stored.keys() or not path.exists():
            replace_file(path, lambda draft: np.savez(draft, **arrays))  # type: ignore[arg-type]
