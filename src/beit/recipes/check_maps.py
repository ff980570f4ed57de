"""The label maps of a data set, for `beit check`: what numbers they hold, and which do not fit their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from beit.config import UserError
from beit.data.base import Split
from beit.data.class_table import IGNORE, read_class_names
from beit.data.decode import ImageError
from beit.data.files import choose_members
from beit.data.listing import list_data
from beit.data.map_files import MapFiles, check_layout, notes_on_spare_maps, open_map_files
from beit.data.pairs import found_class_table
from beit.recipes.examination import examine_all


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


def inspect_maps(
    data: Sequence[str], *, holdout: float, max_megapixels: float, workers: int
) -> MapReport | None:
    """Read every label map of `data`; None where it has no images/ beside annotations/."""
    try:
        listings = list_data(data)
        for listing in listings:
            check_layout(listing)
    except UserError:  # no label maps, or no folder at all
        return None
    report = MapReport()
    try:
        if (table := found_class_table(listings)) is not None:
            report.names.update(read_class_names(table))
        report.notes.extend(notes_on_spare_maps(listings))
    except UserError as error:
        report.mistakes.append(str(error))
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        try:
            members = choose_members(listings, split, holdout, paired=True).members
        except UserError:  # this split is empty
            continue
        try:
            _, maps = open_map_files(listings, members, max_megapixels=max_megapixels)
        except UserError as error:
            report.mistakes.append(str(error))
            continue
        report.pixels[split] = Counter()
        for part in examine_all(_examine, maps, workers):
            for counts, mistake in part:
                report.pixels[split].update(counts)
                report.mistakes.extend([mistake] if mistake else [])
    return report


def _examine(maps: MapFiles, indices: Sequence[int]) -> list[tuple[dict[int, int], str | None]]:
    """Pixels of every number, or what is wrong, for each map."""
    seen: list[tuple[dict[int, int], str | None]] = []
    for index in indices:
        try:
            numbers, counts = np.unique(maps.label_map(index), return_counts=True)
            seen.append((dict(zip(numbers.tolist(), counts.tolist(), strict=True)), None))
        except (ImageError, UserError) as error:
            seen.append(({}, str(error)))
    return seen


def show_maps(report: MapReport, console: Console) -> None:
    """Print the notes and shares of `report` for people."""
    for note in report.notes:
        console.print(f"  {escape(note)}", soft_wrap=True)
    headings = {"train": "training", "eval": "evaluation"}
    table = Table("share of pixels", *(headings[split] for split in report.pixels), box=None)
    numbers = sorted(set().union(*report.pixels.values()))
    for number in numbers[: IGNORE + 1]:
        shares = [counts[number] / max(1, counts.total()) for counts in report.pixels.values()]
        table.add_row(escape(report.label(number)), *(f"{share:.2%}" for share in shares))
    if len(numbers) > IGNORE + 1:
        table.add_row(f"... and {len(numbers) - IGNORE - 1:,} more numbers")
    console.print(table)
