"""What may be written where a model is wanted: PLACE, or PLACE@NAME=VALUE,NAME=VALUE.

PLACE is a path, hf://owner/name, or the name of a released model. Behind the @ stands what a file of another library
cannot tell, so that it travels with the path: into config.yaml, and to every verb that reads it from there.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from beit.config.architecture import PIXEL_STATISTICS
from beit.config.errors import UserError, require
from beit.models.position import Grid
from beit.untrusted import read_json

FORM = (
    "PATH@num_heads=6,grid=24x16,pixel_mean=0.485:0.456:0.406,pixel_std=imagenet,layers=3:5:7:11,"
    "reduce_zero_label=no,weights=ema,strict=no"
)
Pixel = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stated:
    """What the caller says of a file that cannot tell it; None: not said."""

    num_heads: int | None = None
    """By default the file's own, or one for every 64 dimensions."""
    grid: Grid | None = None
    """Rows and columns of patches or tokens that the file's position information is for; by default a square."""
    pixel_mean: Pixel | None = None
    pixel_std: Pixel | None = None
    """By default the file's own, or 0.5 for every channel, as for all released BEiT models but ADE20K's."""
    layers: tuple[int, ...] | None = None
    """Blocks, 0 the first, that a segmenter's decoder reads; by default those of a configuration beside the weights,
    or those that the released code reads in an encoder of this depth."""
    reduce_zero_label: bool | None = None
    """Whether the label maps of a segmenter count from 1, with 0 for no class; by default what a configuration tells,
    or yes for the 150 classes of ADE20K."""
    weights: str | None = None
    """`ema` for averaged weights beside those as trained; by default they are read where there are no others."""
    strict: bool = True
    """Refuse unknown weights, which are left out otherwise; missing ones are refused in any case."""

    def __post_init__(self) -> None:
        heads, grid, layers = self.num_heads, self.grid, self.layers
        require(heads is None or heads > 0, f"num_heads must be positive, not {heads}")
        places = grid is None or (len(grid) == 2 and min(grid) > 0)
        require(places, f"grid must be positive numbers of rows and columns, not {grid}")
        ascend = layers is None or (len(layers) == 4 and sorted(layers) == [*layers])
        require(ascend, f"layers must be four numbers in ascending order, not {layers}")
        for name, pixel, least in (("mean", self.pixel_mean, -(2**20)), ("std", self.pixel_std, 1e-6)):
            fits = pixel is None or (len(pixel) == 3 and all(least <= x < 2**20 for x in pixel))
            require(fits, f"pixel_{name} must be three numbers for images in [0, 1], not {pixel}")

    def names(self) -> list[str]:
        """Names of what is said."""
        return [x.name for x in dataclasses.fields(self) if getattr(self, x.name) != x.default]

    def text(self) -> str:
        """What :func:`parse` reads as this, from the @ on; nothing where nothing is said."""
        values = [f"{name}={_written(name, getattr(self, name))}" for name in self.names()]
        return f"@{','.join(values)}" if values else ""

    def combine(self, other: "Stated") -> "Stated":
        """Both statements in one. Raises :class:`UserError` where they contradict one another."""
        names = [field.name for field in dataclasses.fields(Stated) if field.name != "strict"]
        values = {name: agreed(name, getattr(self, name), getattr(other, name)) for name in names}
        return Stated(**values, strict=self.strict and other.strict)


PARTS: Mapping[str, tuple[str, ...]] = {
    "model": ("classifier", "segmenter", "pretrain"),
    "init": ("pretrain", "classifier", "segmenter"),
    "teacher": ("pretrain",),
    "tokenizer": ("tokenizer",),
}
"""The parts of a run of `beit train` that stand for it, by what it is given as: the first that is there, for one that
has a start of its own is not pre-trained."""


def part_of(reference: str, use: str) -> str:
    """`reference`, or where it is a run of `beit train` the part that is meant, given as `use` of :data:`PARTS`.

    Raises :class:`UserError` where that part is not there.
    """
    path = Path(reference)
    status = path / "status.json"
    if not status.is_file() or (read_json(status) or {}).get("verb") != "train":
        return reference
    for name in PARTS[use]:
        if (path / name).is_dir():
            return str(path / name)
    missing = " or ".join(PARTS[use])
    raise UserError(f"{reference} is a run of `beit train` without a {missing}; continue it with its command")


def locate(reference: str | Path, stated: Stated | None = None) -> tuple[Path, Stated]:
    """Where the files of `reference` lie, fetched when need be, and what it and `stated` say together; of a run of
    `beit train` its classifier or segmenter, else its encoder.

    Raises :class:`UserError` for statements that are none or contradict one another, and for what cannot be fetched.
    A place that does not exist is given back as it is.
    """
    place, statement = parse(part_of(str(reference), "model"))
    stated = statement if stated is None else statement.combine(stated)
    path = Path(place)
    if path.exists():
        return path, stated
    from beit.presets.released import HUB, RELEASED

    release = RELEASED.get(place.removeprefix(HUB))
    if release and release.stated:
        stated = stated.combine(parse(f"{place}@{release.stated}")[1])
    if release or place.startswith(HUB):
        from beit.checkpoints import remote

        if release and not release.hub and not place.startswith(HUB):
            return remote.fetched(place, release.files), stated
        return remote.fetched_from_hub(place), stated
    if near := difflib.get_close_matches(place, RELEASED, n=1, cutoff=0.9):
        raise UserError(f"{place} does not exist; did you mean {near[0]}?")
    return path, stated


def parse(reference: str) -> tuple[str, Stated]:
    """The place, and what is stated of it. A path that exists as it stands is a place alone."""
    place, mark, statements = reference.rpartition("@")
    if not mark or "=" not in statements or Path(reference).exists():
        return reference, Stated()
    values: dict[str, Any] = {}
    for statement in statements.split(","):
        name, _, value = statement.partition("=")
        if name not in _READERS or name in values:
            raise UserError(f"{reference}: {name!r} cannot be stated, or not twice; the form is {FORM}")
        try:
            values[name] = _READERS[name](value)
        except (ValueError, KeyError):
            raise UserError(f"{reference}: {name} cannot be {value!r}; the form is {FORM}") from None
    return place, Stated(**values)


def agreed(name: str, *values: Any) -> Any:
    """The one value that is not None, or None. Raises :class:`UserError` where several differ."""
    accounts = [tuple(x) if isinstance(x, list | tuple) else x for x in values if x is not None]
    if any(value != accounts[0] for value in accounts):
        raise UserError(f"{name} is {accounts[0]} by one account and {accounts[-1]} by another; drop or mend it")
    return accounts[0] if accounts else None


def _written(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ("x" if name == "grid" else ":").join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pixel(text: str, place: int) -> Pixel:
    return PIXEL_STATISTICS[text][place] if text in PIXEL_STATISTICS else tuple(map(float, text.split(":")))


_READERS: Mapping[str, Callable[[str], Any]] = {
    "num_heads": int,
    "grid": lambda text: tuple(map(int, text.split("x"))),
    "pixel_mean": lambda text: _pixel(text, 0),
    "pixel_std": lambda text: _pixel(text, 1),
    "layers": lambda text: tuple(map(int, text.split(":"))),
    "reduce_zero_label": {"yes": True, "no": False}.__getitem__,
    "weights": {"ema": "ema"}.__getitem__,
    "strict": {"yes": True, "no": False}.__getitem__,
}
