"""`beit check`: look a data set over before anything is trained on it."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import cast

import numpy as np

from beit.config.errors import UserError
from beit.config.run import DataConfig, TrainingConfig
from beit.config.segment import IGNORE
from beit.config.use import CheckConfig, Outcome
from beit.data.base import SPLITS, Source, Split, grouped
from beit.data.decode import ImageError
from beit.data.label_file import classes_in_file
from beit.data.label_maps.pairs import IMAGES, PairSource, names_beside, open_pairs
from beit.data.label_maps.table import is_none
from beit.data.sources.files import path_of
from beit.data.sources.holdout import ClassesOf, Pool
from beit.data.sources.opening import classes_of_images, open_splits
from beit.data.sources.subsets import limited, origin
from beit.data.workers import fetch_each
from beit.recipes.check.alike import groups_alike, look_of
from beit.recipes.check.report import LABELED, UNLABELED, CheckedImage, DataReport, MapReport, present
from beit.stages.inference import require_writable_file
from beit.stages.session import holdout_of, open_data, open_images
from beit.stages.tasks.labels import open_with_labels
from beit.training.console import bar


def check(config: CheckConfig) -> Outcome:
    """Read every image of `config.data` once, print what was found, and write the page that `config.html` names: a
    :class:`DataReport`, `results` by its fields."""
    if config.html is not None:
        require_writable_file(config.html, "--html")
    sources = open_all(config)
    report = inspect(config, sources)
    present(report, config, sources)
    return Outcome(config, vars(report))


def inspect(config: CheckConfig, sources: Mapping[Split, Source] | None = None) -> DataReport:
    """Decode every image of all splits, by default those that :func:`open_all` opens; prints nothing but a bar on a
    terminal.

    Raises :class:`UserError` for what no verb opens: no such folder, no image, a compressed tar.
    """
    sources = sources or open_all(config)
    labeled = _open_labeled(config)
    classes_of = classes_in_file(config.labels) if config.labels else _classes_in_folders(labeled)
    images: dict[str, CheckedImage] = {}
    with bar("reading images", sum(map(len, sources.values()))) as progress:
        for split, source in sources.items():
            rows = classes_of_images(source, classes_of)
            for row, image in zip(rows, fetch_each(_inspect, source, config.workers), strict=True):
                images[source.name(image.number)] = image._replace(split=split, classes=row)
                progress.move()
    groups = grouped(images, lambda name: images[name].digest)
    classes: dict[str, Counter[Split]] = {x: Counter() for source in labeled.values() for x in source.classes or ()}
    for image in images.values():
        for name in image.classes:
            classes.setdefault(name, Counter())[image.split] += 1
    has_maps = config.label_maps or any(source.key(0).startswith(IMAGES) for source in sources.values())
    return DataReport(
        splits={split: source.describe() for split, source in sources.items()},
        images=images,
        classes=classes,
        duplicates=[group for group in groups if len(group) > 1],
        alike=groups_alike({name: look for *_, name in groups if (look := images[name].look) is not None}),
        refusals=_refusals(config),
        notes=list(dict.fromkeys(note for of in (sources, labeled) for part in of.values() for note in part.notes)),
        maps=inspect_maps(config) if has_maps else None,
    )


def open_all(config: CheckConfig) -> dict[Split, Source]:
    """The splits that have images, labelled or not. UserError where none has."""
    splits = open_data(config, open_splits, holdout_of(config))
    return {split: limited(source, config.limit, 0) for split, source in splits.items()}


def _open_labeled(config: CheckConfig) -> dict[Split, Source]:
    """The splits whose images have labels by where they lie."""
    sources: dict[Split, Source] = {}
    with suppress(UserError):  # no labels, or wrong ones
        splits = open_data(config, partial(open_splits, labeled=True), holdout_of(config))
        for split in splits:
            with suppress(UserError):
                sources[split] = splits[split]
    return sources


def _classes_in_folders(labeled: Mapping[Split, Source]) -> ClassesOf:
    """The class of an image of `labeled`, told by where it lies; none of others."""
    rows = {path_of(s, i): row for s in labeled.values() for i, row in enumerate(classes_of_images(s, None))}
    return lambda _, place: rows.get(place, ())


def _refusals(config: CheckConfig) -> dict[str, str]:
    """What the verbs say against the data, which open it as they would."""
    values = {field.name: getattr(config, field.name) for field in fields(DataConfig)}
    training, refusals = TrainingConfig(out="", **values), dict[str, str]()
    labeled = partial(open_with_labels, multilabel=config.labels is not None)
    for verbs, opener in ((UNLABELED, open_images), (LABELED, labeled)):
        try:
            opener(training)
        except UserError as error:
            refusals[verbs] = str(error)
    return refusals


def _inspect(source: Source, index: int) -> CheckedImage:
    image, (pool, place) = CheckedImage("train", index), origin(source, index)
    try:
        image = image._replace(digest=hashlib.blake2b(cast(Pool, pool).read(place), digest_size=16).digest())
        pixels = pool.image(place)
        return image._replace(shorter_side=min(pixels.shape[1:]), look=look_of(pixels))
    except ImageError as error:
        return image._replace(damage=error.reason)


# ------------------------------------------------------------------------------------------------------------
# Label maps


def inspect_maps(config: CheckConfig) -> MapReport:
    """Read every label map of `config.data` as segmentation would."""
    report = MapReport()
    try:
        holdout = holdout_of(config)
        path, names = names_beside(config, holdout.cache)
        from_one = bool(names) and 0 not in names
        report.ignores_zero = from_one or is_none(names.get(0, ""))
        if from_one:
            report.notes.append(f"{path} numbers its classes from 1: segment with --reduce-zero-label")
        opener = partial(open_pairs, label_maps=config.label_maps, reduce_zero_label=from_one)
        splits = open_data(config, opener, holdout)
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
        for counts, mistake in fetch_each(_inspect_map, pairs, config.workers):
            report.pixels[split].update({(*pairs.classes, "no class")[index]: counts[index] for index in counts})
            report.mistakes.extend(filter(None, [mistake]))
    # What is wrong with a listing is said for each split.
    report.mistakes[:] = dict.fromkeys(report.mistakes)
    return report


def _inspect_map(pairs: PairSource, index: int) -> tuple[dict[int, int], str]:
    """Pixels of every class in a map, -1 for none, or what is wrong with it."""
    try:
        numbers, counts = np.unique(pairs.label(index).numpy(), return_counts=True)
    except (ImageError, UserError) as error:
        return {}, str(error)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return {-1 if number == IGNORE else number: count for number, count in found.items()}, ""
