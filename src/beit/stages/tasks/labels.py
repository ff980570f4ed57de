"""What the images of a run are labelled by, the folders they lie in or a file, and how classes are weighed."""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from beit.config.errors import UserError, require
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig
from beit.data.base import Source, read_text
from beit.data.label_file import LabelFile, Labels, read_label_rows
from beit.data.sources.opening import open_splits
from beit.stages.session import Images, open_images
from beit.untrusted import listed


def label_images(images: Images, path: str | None, *, multilabel: bool = False) -> tuple[Images, Labels]:
    """The images with their labels, and what these mean: from the file at `path`, or from where the images lie."""
    if path is None:
        assert images.train.classes is not None  # open_splits refuses data without labels
        return images, Labels(images.train.classes)
    file = LabelFile(path, multilabel=multilabel)
    train, held_back = file.apply(images.train), file.apply(images.held_back, "val")
    test = images.test and file.apply(images.test, "test")
    assert train is not None and held_back is not None  # only a test may have no labels
    if images.test and test is None:
        train.notes.append(f"test has no labels in {path}, so that nothing is judged on it")
    train.notes += file.unused()
    return images._replace(train=train, held_back=held_back, test=test), file.labels


def labels_for_figures(config: PretrainConfig, images: Images) -> Images | None:
    """The images with their labels, for a verb that learns without: from the file that it is given, from the set, or
    from the folders they lie in; None where they have none, or some have several."""
    if config.labels is not None:
        rows = read_label_rows(Path(config.labels)).values()
        return None if any(len(set(row)) > 1 for row in rows) else label_images(images, config.labels)[0]
    if images.train.classes is not None:
        return images
    try:
        return open_images(config, partial(open_splits, labeled=True), images.holdout)
    except UserError:
        return None


def count_labels(train: Source, labels: Labels) -> Tensor:
    """How many images are of each class, (C,)."""
    kinds = torch.arange(len(labels.classes if labels.sets is None else labels.sets))
    numbers = torch.tensor([train.label(index) for index in range(len(train))], dtype=torch.int64)
    # A row for each image would take gigabytes.
    return numbers.bincount(minlength=len(kinds)) @ labels.targets(kinds).long()


def open_with_labels(
    config: TrainingConfig, *, multilabel: bool = False, choose: Callable[[Images], Images] = lambda images: images
) -> tuple[Images, Labels]:
    """The images of `config.data` with their labels, those to train on as `choose` has them. UserError where a class
    has no image to train on."""
    images = open_images(config, partial(open_splits, labeled=config.labels is None))
    images, labels = label_images(images, config.labels, multilabel=multilabel)
    images = choose(images)
    counts = zip(labels.classes, count_labels(images.train, labels).tolist(), strict=True)
    absent = [name for name, count in counts if not count]
    require(not absent, f"--data: no image to train on is of class {listed(absent)}; add some, or choose more")
    return images, labels


def class_weights(
    stated: str | None, classes: Sequence[str], count: Callable[[], Tensor], device: torch.device
) -> Tensor | None:
    """Weights of the classes in the loss, (C,), as --class-weights has `stated` them: balanced, on average 1 over
    labels of which there are `count` (C,); or those of a file. None for all alike; UserError for a file that does not
    name each class once, and no other, with a number above 0."""
    if stated is None:
        return None
    if stated == "balanced":
        counts = count().double()
        return (counts.sum() / (counts > 0).sum() / counts.clamp(min=1)).float().to(device)
    rows = csv.reader(read_text(stated, flag := f"--class-weights {stated}").splitlines())
    number = re.compile(r"\s*\d*\.?\d+(e[-+]?\d+)?\s*")
    lines = [(row[0], float(row[1])) for row in rows if len(row) == 2 and number.fullmatch(row[1])]
    weights = dict(lines)
    wrong = [name for name in classes if not 0 < weights.get(name, 0) < math.inf]
    require(not wrong, f"{flag} has no line `class,weight`, above 0, for {listed(wrong)}; add it")
    others = [name for name, count in Counter(name for name, _ in lines).items() if count > 1 or name not in classes]
    require(not others, f"{flag} names {listed(others)}, which is no class here or there twice; take it out")
    return torch.tensor([weights[name] for name in classes], device=device)
