"""Public sets by name: torchvision knows where they are and what their checksums are."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.datasets
from filelock import FileLock
from torch import Tensor

from beit.config.errors import UserError
from beit.config.files import cache_folder
from beit.data.decode import ImageError, to_rgb


class NamedSet(NamedTuple):
    """How torchvision is asked for the two splits of a set."""

    type_name: str
    train: dict[str, Any]
    evaluation: dict[str, Any]
    labeled: bool = True


NAMED_SETS = {
    "cifar10": NamedSet("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": NamedSet("CIFAR100", {"train": True}, {"train": False}),
    "imagenette": NamedSet(
        "Imagenette", {"split": "train", "size": "320px"}, {"split": "val", "size": "320px"}
    ),
    "flowers102": NamedSet("Flowers102", {"split": "train"}, {"split": "val"}),
    "food101": NamedSet("Food101", {"split": "train"}, {"split": "test"}),
    "oxford_iiit_pet": NamedSet("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "stl10": NamedSet("STL10", {"split": "train"}, {"split": "test"}),
    "stl10_unlabeled": NamedSet("STL10", {"split": "unlabeled"}, {"split": "test"}, labeled=False),
}


class NamedSource:
    """One split of a set of :data:`NAMED_SETS`, downloaded at its first use."""

    def __init__(self, name: str, split: str) -> None:
        entry = NAMED_SETS[name]
        self._name, self._split = name, split
        self._dataset = _download(
            name, entry.type_name, entry.train if split == "train" else entry.evaluation
        )
        self.classes = _class_names(self._dataset) if entry.labeled else None
        self.notes: list[str] = []
        self._pictures: Tensor | None = None
        self._labels: Tensor | None = None
        if isinstance(data := getattr(self._dataset, "data", None), np.ndarray):
            # Kept as a tensor, which loader processes share; an array would be copied into each of them.
            self._pictures = torch.from_numpy(data if data.shape[1] == 3 else np.moveaxis(data, -1, 1))
            targets = getattr(self._dataset, "targets", getattr(self._dataset, "labels", None))
            self._labels = torch.as_tensor(np.asarray(targets), dtype=torch.int64)
            self._dataset = range(len(data))

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, index: int) -> str:
        return f"{self._split}/{index}"

    def name(self, index: int) -> str:
        return f"{self._name}/{self.key(index)}"

    def image(self, index: int) -> Tensor:
        if self._pictures is not None:
            return self._pictures[index]
        try:
            image, _ = self._dataset[index]
            return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
        except Exception as error:
            raise ImageError(self.name(index), str(error)) from error

    def label(self, index: int) -> int:
        if self._labels is not None:
            return int(self._labels[index])
        # The sets that keep files keep their labels in a list under one of these names.
        for attribute in ("_labels", "_samples"):
            if (table := getattr(self._dataset, attribute, None)) is not None:
                entry = table[index]
                return int(entry[-1] if isinstance(entry, tuple) else entry)
        return int(self._dataset[index][1])

    def describe(self) -> str:
        classes = f", {len(self.classes):,} classes" if self.classes else ""
        return f"{len(self):,} images{classes}, from {self._name} ({self._split})"

    @property
    def fingerprint(self) -> str:
        return self.describe()


def _download(name: str, type_name: str, arguments: dict[str, Any]) -> Any:
    root = cache_folder() / "datasets"
    dataset_type = getattr(torchvision.datasets, type_name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(root / f"{name}.lock"),
            warnings.catch_warnings(),
        ):  # one rank downloads, the others wait
            warnings.simplefilter("ignore")
            try:
                return dataset_type(str(root), download=False, **arguments)
            except RuntimeError:
                return dataset_type(str(root), download=True, **arguments)
    except Exception as error:  # no connection, a moved file, a wrong checksum, a full disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--data {name}: no folder of that name exists, and the download into {root} failed ({reason}); "
            f"check the path or the connection"
        ) from error


def _class_names(dataset: Any) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None)
    if names is None:
        return tuple(str(number) for number in range(1 + max(dataset._labels)))
    return tuple(name if isinstance(name, str) else name[0] for name in names)
