"""Which images a run was trained on, and which it held back: kept in the run for whoever goes on from it or judges
it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.atomic import replace_file, write_text
from beit.config.errors import UserError
from beit.config.values import counted
from beit.data.base import Source, read_text, stable_hash
from beit.data.sources.files import full_name
from beit.training.run.directory import HELD_BACK, TRAINED_ON, run_of


def write_images(run: Path, train: Source, held_back: Source) -> None:
    """Keep in `run` the names of the images that are `held_back`, one a line, and hashes of those trained on.

    A name that is not printable is written with Python's escapes, after a quote, with which no path begins.
    """
    names = (full_name(held_back, index) for index in range(len(held_back)))
    lines = (x if x.isprintable() else '"' + x.encode("unicode_escape").decode() for x in names)
    write_text(run / HELD_BACK, "".join(f"{line}\n" for line in lines))
    hashes = np.sort(image_hashes(train))
    replace_file(run / TRAINED_ON, lambda draft: np.save(draft, hashes, allow_pickle=False))


def held_back_of(model: str) -> frozenset[str]:
    """The full names of the images that were held back from the run in which `model` lies, if it lies in one."""
    run = run_of(model)
    if run is None or not (run / HELD_BACK).is_file():
        return frozenset()
    lines = read_text(run / HELD_BACK, str(run / HELD_BACK)).splitlines()
    return frozenset(
        line[1:].encode().decode("unicode_escape", "ignore") if line.startswith('"') else line for line in lines
    )


def count_trained_on(model: str, source: Source) -> int | None:
    """How many images of `source` the run was trained on in which `model` lies; None where nobody can tell."""
    run = run_of(model.partition("@")[0])
    if run is None or not (run / TRAINED_ON).is_file():
        return None
    try:
        hashes = np.load(run / TRAINED_ON, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{run / TRAINED_ON} cannot be read ({error}); remove it to do without") from error
    return int(np.isin(image_hashes(source), hashes).sum())


def notes_on_start(flag: str, model: str, judged: Mapping[str, Source]) -> list[str]:
    """A line that says how many of the images that are `judged`, by the name of their split, the `model` that `flag`
    gave has been trained on."""
    counts = {name: count_trained_on(model, source) for name, source in judged.items()}
    if not counts or None in counts.values():
        return [f"{flag} {model}: which images it was trained on is not known"] if counts else []
    shares = [f"{counts[name]:,} of the {counted(len(source), f'{name} image')}" for name, source in judged.items()]
    return [f"{flag} {model} was trained on {' and '.join(shares)}, by their paths"]


def image_hashes(source: Source) -> NDArray[np.uint64]:
    """A number for each image, the same in every run."""
    hashes = (stable_hash(full_name(source, index)) for index in range(len(source)))
    return np.fromiter(hashes, dtype=np.uint64, count=len(source))
