"""Image files in folders and tar shards as a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from beit.config.errors import UserError
from beit.data.base import Split, stable_hash
from beit.data.decode import ImageError, decode_image, upright_size
from beit.data.sources.folder_labels import label_members
from beit.data.sources.listing import Listing, Member, list_data, list_images
from beit.data.sources.splits import find_splits


class FileSource:
    """Image files on disk or inside tars. All tables are tensors, so that loader processes share them."""

    def __init__(
        self,
        listings: Sequence[Listing],
        chosen: Sequence[Sequence[Member]],
        labels: Sequence[int] | None = None,
        classes: tuple[str, ...] | None = None,
        *,
        max_megapixels: float = 64,
        pillow: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        """`chosen[i]` are the members to use of `listings[i]`; `labels` runs over all of them in order."""
        members = [member for part in chosen for member in part]
        self._paths = _Strings([member.path for member in members])
        self._spans = torch.tensor([(m.shard, m.offset, m.size) for m in members], dtype=torch.int64).view(
            -1, 3
        )
        self._ends = np.cumsum([len(part) for part in chosen])  # where each listing's members end
        self._roots = [listing.root for listing in listings]
        self._tars = [listing.tars for listing in listings]
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self._max_megapixels, self._pillow = max_megapixels, pillow
        self.classes = classes
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self._spans)

    def _place(self, index: int) -> tuple[str, str, int, int]:
        """Name for messages, file to open, offset, size (-1: to the end)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        path = self._paths[index]
        shard, offset, size = self._spans[index].tolist()
        if shard < 0:
            file = os.path.join(self._roots[part], path)
            return file, file, 0, -1
        tar = self._tars[part][shard]
        return f"{tar}:{path}", tar, offset, size

    def name(self, index: int) -> str:
        return _printable(self._place(index)[0])

    def key(self, index: int) -> str:
        return self._paths[index]

    def read(self, index: int) -> bytes:
        """The file's bytes; :class:`ImageError` when it cannot be read."""
        name, file, offset, size = self._place(index)
        # The largest sensible file: 8 bytes for every allowed pixel, and room for metadata.
        limit = int(self._max_megapixels * 8e6) + (64 << 20)
        try:
            with open(file, "rb", buffering=0) as stream:
                available = os.fstat(stream.fileno()).st_size - offset if size < 0 else size
                if available > limit:
                    raise ImageError(
                        _printable(name), f"the file has {available:,} bytes, too many for an image"
                    )
                stream.seek(offset)
                data = stream.read(available)
        except OSError as error:
            raise ImageError(_printable(name), error.strerror or str(error)) from error
        if size >= 0 and len(data) < size:
            raise ImageError(_printable(name), "the tar has been cut short")
        return data

    def decode(self, data: bytes, index: int) -> Tensor:
        """The image in the file's bytes, as uint8 (3, H, W)."""
        return decode_image(data, self.name(index), self._max_megapixels, pillow=self._pillow)

    def image(self, index: int) -> Tensor:
        return self.decode(self.read(index), index)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image, from its header alone."""
        return upright_size(self.read(index), self.name(index), self._max_megapixels)

    def label(self, index: int) -> int:
        if self._labels is None:
            raise TypeError("this source was opened without labels")
        return int(self._labels[index])

    def describe(self) -> str:
        classes = f", {len(self.classes):,} classes" if self.classes else ""
        return f"{len(self):,} images{classes}, from {', '.join(self._roots)}"

    @property
    def fingerprint(self) -> str:
        return f"{len(self):,} files {self._paths.digest()}"


def open_files(
    values: Sequence[str],
    split: Split,
    holdout: float,
    labeled: bool,
    classes: Sequence[str] | None,
    **options: Any,
) -> FileSource:
    listings = list_data(values)
    training, chosen, prefixes, notes = choose_members(listings, split, holdout)
    if not labeled:
        return FileSource(listings, chosen, notes=notes, **options)
    chosen, labels, names_found, told = label_members(listings, training, chosen, prefixes, split, classes)
    return FileSource(listings, chosen, labels, names_found, notes=notes + told, **options)


class Chosen(NamedTuple):
    """The members of listings that a split consists of."""

    training: list[list[Member]]
    """For each listing what is trained on, whatever the split."""
    members: list[list[Member]]
    """For each listing what belongs to the split."""
    prefixes: list[tuple[str | None, str | None]]
    """For each listing the (training, evaluation) folders."""
    notes: list[str]


def choose_members(
    listings: Sequence[Listing], split: Split, holdout: float, *, paired: bool = False
) -> Chosen:
    """What of `listings` belongs to `split`; :class:`UserError` when that is nothing."""
    training: list[list[Member]] = []
    evaluation: list[list[Member]] = []
    prefixes: list[tuple[str | None, str | None]] = []
    notes: list[str] = []
    for listing in listings:
        train, held, places, told = _split(listing, holdout, paired)
        training.append(train)
        evaluation.append(held)
        prefixes.append(places)
        notes += told
    chosen = training if split == "train" else evaluation
    if not any(chosen):
        names = ", ".join(listing.root for listing in listings)
        if split == "train":
            remedy = "add images/training" if paired else "name that folder itself to train on it"
            raise UserError(f"--data {names} holds an evaluation split alone; {remedy}")
        raise UserError(f"--data {names} leaves no image for evaluation; add images or raise --holdout")
    return Chosen(training, chosen, prefixes, notes)


def open_images(values: Sequence[str], max_megapixels: float = 64) -> FileSource:
    """The image files, and every image in the folders and tar shards that `values` name, in their order, whatever the
    layout."""
    listings = [list_images(value, "--images") for value in values]
    notes = [note for listing in listings for note in listing.notes]
    members = [listing.members for listing in listings]
    return FileSource(listings, members, max_megapixels=max_megapixels, notes=notes)


def _split(
    listing: Listing, holdout: float, paired: bool
) -> tuple[list[Member], list[Member], tuple[str | None, str | None], list[str]]:
    """Members to train on, members to evaluate on, the two prefixes their classes follow, and notes."""
    found = find_splits(listing.root, [member.path for member in listing.members], paired=paired)
    notes = [*listing.notes, *found.notes]

    def beneath(prefix: str | None) -> list[Member]:
        return [] if prefix is None else [m for m in listing.members if m.path.startswith(prefix)]

    train, evaluation = beneath(found.train), beneath(found.evaluation)
    if found.evaluation is not None:
        return train, evaluation, (found.train, found.evaluation), notes
    held = _held_back([member.path for member in train], holdout)
    evaluation = [m for m, h in zip(train, held, strict=True) if h]
    if evaluation:
        notes.append(f"{listing.root}: {len(evaluation):,} of {len(train):,} images held back for evaluation")
    train = [m for m, h in zip(train, held, strict=True) if not h]
    return train, evaluation, (found.train, found.train), notes


def _held_back(paths: Sequence[str], share: float) -> list[bool]:
    """The images whose hash falls into the first `share` of all hashes; at least one, where there are two."""
    if share <= 0 or len(paths) < 2:
        return [False] * len(paths)
    hashes = [stable_hash(path) for path in paths]
    bound = max(int(share * 2**64), min(hashes) + 1)
    return [value < bound for value in hashes]


class _Strings:
    """A list of strings as two tensors: a million paths take 50 MB, once for all loader processes."""

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=np.uint8))
        self._ends = torch.from_numpy(np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    def __getitem__(self, index: int) -> str:
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        return os.fsdecode(self._bytes[start:end].numpy().tobytes())

    def digest(self) -> str:
        both = self._bytes.numpy().tobytes() + self._ends.numpy().tobytes()
        return hashlib.blake2b(both, digest_size=16).hexdigest()


def _printable(name: str) -> str:
    """Names of files may hold anything; messages may not."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
