"""The label maps of a data set, for `beit check`: what numbers they hold, and which do not fit their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from beit.config.errors import UserError
from beit.config.segment import IGNORE
from beit.config.use import CheckConfig
from beit.data.base import SPLITS, Split
from beit.data.decode import ImageError
from beit.data.label_maps.colors import ColorKey
from beit.data.label_maps.maps import MapFiles
from beit.data.label_maps.pairs import check_layout, notes_on_spare_maps, open_map_files, split_pairs
from beit.data.label_maps.table import ClassTable, counted_table, find_class_table, read_class_names, read_class_table
from beit.data.sources.listing import Listing, list_data
from beit.recipes.check.inspection import inspect_all
from beit.stages.session import decoding_of, holdout_of
from beit.untrusted import markup


@dataclass(frozen=True)
class MapReport:
    """What the label maps of a set hold."""

    names: dict[int, str] = field(default_factory=dict)
    """Names of the numbers, from a table that lies with the maps."""
    pixels: dict[Split, Counter[int]] = field(default_factory=dict)
    """How many pixels have a number, in each split."""
    mistakes: list[str] = field(default_factory=list)
    """What segmentation would refuse, or leave out as damaged, one line each."""
    notes: list[str] = field(default_factory=list)

    def label(self, number: int) -> str:
        """The number with what it means."""
        unnamed = "not in the table of classes" if self.names and number else ""
        meaning = self.names.get(number, "no class" if number == IGNORE else unnamed)
        return f"{number} {meaning}".rstrip()


def inspect_maps(config: CheckConfig) -> MapReport | None:
    """Read every label map of `config.data`; None where it has no images/ beside annotations/."""
    try:
        listings = list_data(config.sources)
        for listing in listings:
            check_layout(listing)
    except UserError:  # no label maps, or no folder at all
        return None
    report = MapReport()
    files: dict[Split, MapFiles] = {}
    try:
        parts = split_pairs(listings, holdout_of(config))
        key = ColorKey(find_class_table(listings))
    except UserError as error:
        report.mistakes.append(str(error))
        return report
    for split in SPLITS:
        try:
            if split in parts:
                _, files[split] = open_map_files(parts[split], decoding_of(config), key)
        except UserError as error:
            report.mistakes.append(str(error))
    table = _classes(report, listings, next(iter(files.values()), None))
    for split, maps in files.items():
        with suppress(UserError):
            maps.numbers(16)  # so that every process knows the same palettes
        report.pixels[split] = Counter()
        for index, (counts, mistake) in enumerate(inspect_all(_inspect, maps, config.workers)):
            report.pixels[split].update(counts)
            if mistake := mistake or _misfit(table, counts, maps.name(index)):
                report.mistakes.append(mistake)
    # What is wrong with a listing is said for each split.
    report.mistakes[:] = dict.fromkeys(report.mistakes)
    return report


def _classes(report: MapReport, listings: Sequence[Listing], to_count: MapFiles | None) -> ClassTable | None:
    """The classes that segmentation would read or count; None where it would refuse, which `report` then says."""
    try:
        report.notes.extend(notes_on_spare_maps(listings))
        if (path := find_class_table(listings)) is None:
            return counted_table(*to_count.numbers(), len(to_count), False) if to_count else None
        report.names.update(read_class_names(path))
        from_one = bool(report.names) and 0 not in report.names
        table = read_class_table(path, from_one)
        if from_one:
            report.notes.append(f"{path} numbers its classes from 1: segment with --reduce-zero-label")
        report.notes.extend(table.notes)
        return table
    except UserError as error:
        report.mistakes.append(str(error))
        return None


def _misfit(table: ClassTable | None, numbers: Iterable[int], name: str) -> str | None:
    """What segmentation would say against the map `name`, for a number in it without a class."""
    if table is None:
        return None
    try:
        for number in numbers:
            table.require(number, name)
    except UserError as error:
        return str(error)
    return None


def _inspect(maps: MapFiles, index: int) -> tuple[dict[int, int], str | None]:
    """Pixels of every number in a map, or what is wrong with it."""
    try:
        numbers, counts = np.unique(maps.label_map(index), return_counts=True)
    except (ImageError, UserError) as error:
        return {}, str(error)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True)), None


def show_maps(report: MapReport, console: Console) -> None:
    """Print the notes and shares of `report` for people."""
    for note in report.notes:
        console.print(f"  {markup(note)}", soft_wrap=True)
    table = Table("share of pixels", *report.pixels, box=None)
    numbers = sorted(set().union(*report.pixels.values()))
    for number in numbers[: IGNORE + 1]:
        shares = [counts[number] / max(1, counts.total()) for counts in report.pixels.values()]
        table.add_row(markup(report.label(number)), *(f"{share:.2%}" for share in shares))
    if len(numbers) > IGNORE + 1:
        table.add_row(f"... and {len(numbers) - IGNORE - 1:,} more numbers")
    console.print(table)
