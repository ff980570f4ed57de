"""What may be written where a model is wanted: PLACE, or PLACE@NAME=VALUE,NAME=VALUE.

PLACE is a path, hf://owner/name, or the name of a released model. Behind the @ stands what a file of another library
cannot tell, so that it travels with the path: into config.yaml, and to every verb that reads it from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beit.checkpoints.foreign.infer import Stated, agreed
from beit.checkpoints.remote import fetch, hub
from beit.config.architecture import PIXEL_STATISTICS
from beit.config.errors import UserError
from beit.presets.released import RELEASED

FORM = (
    "PATH@num_heads=6,grid=24x16,pixel_mean=0.485:0.456:0.406,pixel_std=imagenet,layers=3:5:7:11,"
    "reduce_zero_label=no,strict=no,sha256=HEX"
)


class Located(NamedTuple):
    """Files on this machine, and what is said of them."""

    path: Path
    stated: Stated


def locate(reference: str | Path, stated: Stated | None = None) -> Located:
    """Where the files of `reference` lie, fetched when need be, and what it and `stated` say together.

    Raises :class:`UserError` for statements that are none or contradict one another, and for what cannot be fetched.
    A place that does not exist is given back as it is.
    """
    place, said, sha256 = parse(str(reference))
    stated = said if stated is None else _together(said, stated)
    release = RELEASED.get(place.removeprefix(hub.SCHEME))
    if release and release.stated and not Path(place).exists():
        stated = _together(stated, parse(f"{place}@{release.stated}")[1])
    if place.startswith(hub.SCHEME) or (release and release.hub and not Path(place).exists()):
        if sha256:
            raise UserError(f"{place}: drop sha256; the Hub has a checksum of its own, which is compared")
        return Located(hub.fetched(place), stated)
    if release and not Path(place).exists():
        return Located(fetch.fetched(place, release.files, sha256), stated)
    path = Path(place)
    if near := [] if path.exists() else difflib.get_close_matches(place, RELEASED, n=1, cutoff=0.9):
        raise UserError(f"{place} does not exist; did you mean {near[0]}?")
    if sha256:
        if not path.is_file() or len(sha256) > 1:
            raise UserError(f"{place}: sha256 is of one file, or of a released model by name")
        fetch.check(path, sha256[0])
    return Located(path, stated)


def parse(reference: str) -> tuple[str, Stated, tuple[str, ...]]:
    """The place, what is stated of it, and its SHA-256 sums. A path that exists as it stands is a place alone."""
    place, mark, said = reference.rpartition("@")
    if not mark or "=" not in said or Path(reference).exists():
        return reference, Stated(), ()
    values: dict[str, Any] = {}
    for statement in said.split(","):
        name, _, value = statement.partition("=")
        if name not in _READERS or name in values:
            raise UserError(f"{reference}: {name!r} cannot be stated, or not twice; the form is {FORM}")
        try:
            values[name] = _READERS[name](value)
        except (ValueError, KeyError):
            raise UserError(f"{reference}: {name} cannot be {value!r}; the form is {FORM}") from None
    sha256 = values.pop("sha256", ())
    return place, Stated(**values), sha256


def _grid(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def _pixel(position: int) -> Callable[[str], tuple[float, float, float]]:
    def read(text: str) -> tuple[float, float, float]:
        if text in PIXEL_STATISTICS:
            return PIXEL_STATISTICS[text][position]
        red, green, blue = map(float, text.split(":"))
        return red, green, blue

    return read


def _layers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(":")))


def _sha256(text: str) -> tuple[str, ...]:
    if not re.fullmatch(r"[0-9a-f]{64}(:[0-9a-f]{64})*", text.lower()):
        raise ValueError
    return tuple(text.lower().split(":"))


_READERS: Mapping[str, Callable[[str], Any]] = {
    "num_heads": int,
    "grid": _grid,
    "pixel_mean": _pixel(0),
    "pixel_std": _pixel(1),
    "layers": _layers,
    "reduce_zero_label": {"yes": True, "no": False}.__getitem__,
    "strict": {"yes": True, "no": False}.__getitem__,
    "sha256": _sha256,
}


def _together(one: Stated, other: Stated) -> Stated:
    names = [field.name for field in dataclasses.fields(Stated) if field.name != "strict"]
    values = {name: agreed(name, getattr(one, name), getattr(other, name)) for name in names}
    return Stated(**values, strict=one.strict and other.strict)
