"""What the images of a run are labelled by, the folders they lie in or a file, and how many labels are used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from beit.config.errors import UserError
from beit.data.label_file import LabelFile, Labels, read_label_rows
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import label_share, labels_per_class
from beit.stages.session import Images, open_images
from beit.untrusted import listed

if TYPE_CHECKING:
    from beit.config.finetune import FinetuneConfig
    from beit.config.pretrain import PretrainConfig


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
        return open_images(config, partial(open_splits, labeled=True))
    except UserError:
        return None


def require_classes(images: Images, labels: Labels) -> None:
    """UserError where a class has no image to train on."""
    train = images.train
    there = labels.targets(torch.tensor(sorted({train.label(i) for i in range(len(train))}))).any(0).tolist()
    if absent := [name for name, is_there in zip(labels.classes, there, strict=True) if not is_there]:
        raise UserError(f"--data: no image to train on is of class {listed(absent)}; add some, or choose more")


def few_labels(config: FinetuneConfig, images: Images) -> Images:
    """As few images to train on as `config` asks for."""
    train = images.train
    if config.label_share is not None:
        train = label_share(train, config.label_share, config.seed, balanced=not config.multilabel)
    if config.labels_per_class is not None:
        train = labels_per_class(train, config.labels_per_class, config.seed)
    return images._replace(train=train)
