"""The label maps of a data set, for `beit check`: what they hold, and which of them segmentation would refuse."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np

from beit.config.errors import UserError
from beit.config.segment import IGNORE
from beit.config.use import CheckConfig
from beit.data.base import SPLITS, Split
from beit.data.decode import ImageError
from beit.data.label_maps.pairs import PairSource, open_pairs
from beit.data.label_maps.table import find_class_table, read_class_rows
from beit.data.sources.listing import list_data, list_maps
from beit.data.workers import fetch_each
from beit.stages.session import holdout_of, open_data


@dataclass(frozen=True)
class MapReport:
    """What the label maps of a set hold."""

    images: set[str] = field(default_factory=set)
    """The names of those that have one."""
    pixels: dict[Split, Counter[str]] = field(default_factory=dict)
    """How many pixels have a class, in each split."""
    mistakes: list[str] = field(default_factory=list)
    """What segmentation would refuse, or leave out as damaged, one line each."""
    notes: list[str] = field(default_factory=list)


def inspect_maps(config: CheckConfig) -> MapReport:
    """Read every label map of `config.data` as segmentation would."""
    report = MapReport()
    try:
        apart = [list_maps(config.label_maps)] if config.label_maps else []
        path = find_class_table([*list_data(config.sources), *apart]) if "demo" not in config.sources else None
        numbers = [] if path is None else [number for number, _, _ in read_class_rows(path)]
        from_one = bool(numbers) and 0 not in numbers
        if from_one:
            report.notes.append(f"{path} numbers its classes from 1: segment with --reduce-zero-label")
        opener = partial(open_pairs, label_maps=config.label_maps, reduce_zero_label=from_one)
        splits = open_data(config, opener, holdout_of(config))
    except UserError as error:
        report.mistakes.append(str(error))
        return report
    for split in filter(splits.__contains__, SPLITS):
        try:
            pairs = cast(PairSource, splits[split])
        except UserError as error:
            report.mistakes.append(str(error))
            continue
        report.notes.extend(pairs.notes)
        report.images.update(map(pairs.name, range(len(pairs))))
        report.pixels[split] = Counter()
        for counts, mistake in fetch_each(_inspect, pairs, config.workers):
            report.pixels[split].update({(*pairs.classes, "no class")[index]: counts[index] for index in counts})
            report.mistakes.extend(filter(None, [mistake]))
    # What is wrong with a listing is said for each split.
    report.mistakes[:] = dict.fromkeys(report.mistakes)
    return report


def _inspect(pairs: PairSource, index: int) -> tuple[dict[int, int], str]:
    """Pixels of every class in a map, -1 for none, or what is wrong with it."""
    try:
        numbers, counts = np.unique(pairs.label(index).numpy(), return_counts=True)
    except (ImageError, UserError) as error:
        return {}, str(error)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return {-1 if number == IGNORE else number: count for number, count in found.items()}, ""


def shares(report: MapReport) -> list[str]:
    """The share of each class of `report` in the pixels of each split, one line each."""
    names = dict.fromkeys(name for counts in report.pixels.values() for name in sorted(counts))
    parts = {split: (counts, max(1, counts.total())) for split, counts in report.pixels.items()}
    return [f"{x}: {', '.join(f'{n[x] / total:.2%} {split}' for split, (n, total) in parts.items())}" for x in names]
