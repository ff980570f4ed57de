"""Public sets by name: torchvision knows where they are and what their checksums are."""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.datasets
from filelock import FileLock
from torch import Tensor

from beit.config.errors import UserError
from beit.config.files import cache_folder
from beit.config.values import counted
from beit.data.base import Split
from beit.data.decode import ImageError, to_rgb


class NamedSet(NamedTuple):
    """How torchvision is asked for the splits of a set."""

    type_name: str
    splits: dict[Split, dict[str, Any]]
    labeled: bool = True


_CIFAR: dict[Split, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
NAMED_SETS = {
    "cifar10": NamedSet("CIFAR10", _CIFAR),
    "cifar100": NamedSet("CIFAR100", _CIFAR),
    "imagenette": NamedSet(
        "Imagenette", {"train": {"split": "train", "size": "320px"}, "val": {"split": "val", "size": "320px"}}
    ),
    "flowers102": NamedSet(
        "Flowers102", {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
    ),
    "food101": NamedSet("Food101", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "oxford_iiit_pet": NamedSet("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "stl10": NamedSet("STL10", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "stl10_unlabeled": NamedSet("STL10", {"train": {"split": "unlabeled"}, "test": {"split": "test"}}, labeled=False),
}


class NamedSource:
    """One split of a set of :data:`NAMED_SETS`, downloaded at its first use."""

    def __init__(self, name: str, split: Split) -> None:
        entry = NAMED_SETS[name]
        self._name, self._split = name, split
        self._dataset = _download(name, entry, split)
        self.classes = _class_names(self._dataset) if entry.labeled else None
        self.notes: list[str] = []
        # Kept as tensors, which loader processes share; arrays would be copied into each of them.
        samples = _of(self._dataset, "_samples") or ()
        labels = [label for _, label in samples] or _of(self._dataset, "targets", "labels", "_labels")
        self._labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        self._pictures: Tensor | None = None
        self._files = [path for path, _ in samples] or _of(self._dataset, "_image_files", "_images")
        if isinstance(data := getattr(self._dataset, "data", None), np.ndarray):
            self._pictures = torch.from_numpy(data if data.shape[1] == 3 else np.moveaxis(data, -1, 1))
            self._dataset = None

    def __len__(self) -> int:
        return len(self._labels)

    def key(self, index: int) -> str:
        return f"{self._split}/{index}"

    def name(self, index: int) -> str:
        return f"{self._name}/{self.key(index)}"

    def length(self, index: int) -> int:
        return os.path.getsize(self._files[index]) if self._pictures is None else self._pictures[index].numel()

    def read(self, index: int, last: int | None = None) -> bytes:
        """What tells the image from others: its file, or its pixels."""
        pictures = self._pictures
        content = Path(self._files[index]).read_bytes() if pictures is None else bytes(pictures[index].numpy())
        return content[-(last or 0) :]

    def image(self, index: int) -> Tensor:
        if self._pictures is not None:
            return self._pictures[index]
        try:
            image, _ = self._dataset[index]
            return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
        except Exception as error:
            raise ImageError(self.name(index), str(error)) from error

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def describe(self) -> str:
        classes = f", {counted(len(self.classes), 'class')}" if self.classes else ""
        return f"{counted(len(self), 'image')}{classes}, from {self._name} ({self._split})"

    @property
    def fingerprint(self) -> str:
        return self.describe()


def _download(name: str, entry: NamedSet, split: Split) -> Any:
    root = cache_folder() / "datasets"
    dataset_type = getattr(torchvision.datasets, entry.type_name)
    arguments = entry.splits[split]
    try:
        root.mkdir(parents=True, exist_ok=True)
        # One rank downloads, the others wait.
        with FileLock(root / f"{name}.lock"), warnings.catch_warnings(action="ignore"):
            try:
                return dataset_type(str(root), download=False, **arguments)
            except RuntimeError:
                return dataset_type(str(root), download=True, **arguments)
    except Exception as error:  # no connection, a moved file, a wrong checksum, a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        failed = f"no folder of that name exists, and the download into {root} failed ({reason})"
        raise UserError(f"--data {name}: {failed}; check the path or the connection") from error


def _of(dataset: Any, *names: str) -> Any:
    """What torchvision keeps under one of various names; None where it has none of them."""
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), None)


def _class_names(dataset: Any) -> tuple[str, ...]:
    names = _of(dataset, "classes")
    if names is None:
        return tuple(str(number) for number in range(1 + max(dataset._labels)))
    return tuple(name if isinstance(name, str) else name[0] for name in names)
