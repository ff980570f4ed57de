"""Image files in folders and tar shards as a source."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from beit.config.values import counted
from beit.data.base import Source
from beit.data.decode import USUAL, Decoding, ImageError, decode_image, upright_size
from beit.data.sources.listing import Listing
from beit.data.sources.subsets import origin
from beit.untrusted import display


class Files(NamedTuple):
    """What a source is opened with."""

    listings: list[Listing]
    """Whose members are those to use."""
    notes: list[str]
    labels: list[int] | None = None
    """Of all members in order."""
    classes: tuple[str, ...] | None = None


PASSING = (errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE)
NEED = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Trouble of a file system that may pass, and what a machine is short of: no damage of the file."""
SAMPLE, ENDING = 1000, 1 << 14
"""Files of which the fingerprint knows the last bytes, and how many."""


class FileSource:
    """Image files on disk or inside tars. All tables are tensors, so that loader processes share them.

    `memory`: bytes of decoded images that are kept at most, in all the loader processes of a device together; 0 for
    images that are read once.
    """

    def __init__(self, files: Files, decoding: Decoding = USUAL, memory: int = 512 << 20) -> None:
        members = [member for listing in files.listings for member in listing.members]
        self._paths = _Strings([member.path for member in members])
        spans = [(member.shard, member.offset, member.size) for member in members]
        self._spans = torch.tensor(spans, dtype=torch.int64).view(-1, 3)
        # Where each listing's members end.
        self._ends = np.cumsum([len(listing.members) for listing in files.listings])
        self._roots = [listing.root for listing in files.listings]
        self._tars = [listing.tars for listing in files.listings]
        self._labels = torch.tensor(files.labels or [], dtype=torch.int64)
        self.decoding, self._memory = decoding, memory
        self._decoded: dict[int, Tensor] = {}
        self.classes = files.classes
        self.notes = list(files.notes)

    def __len__(self) -> int:
        return len(self._spans)

    def _place(self, index: int) -> tuple[str, str, int, int]:
        """Path, file to open, offset, size (-1: to the end)."""
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

    def path(self, index: int) -> str:
        """Where the image lies, in a tar as TAR:PATH: the name that results and labels go by, of any bytes."""
        return self._place(index)[0]

    def name(self, index: int) -> str:
        return display(self.path(index))

    def key(self, index: int) -> str:
        return self._paths[index]

    def length(self, index: int) -> int:
        """Bytes of the file; :class:`ImageError` when there is none."""
        path, file, _, size = self._place(index)
        try:
            return os.path.getsize(file) if size < 0 else size
        except OSError as error:
            raise ImageError(display(path), error.strerror or str(error)) from error

    def read(self, index: int, last: int | None = None, trials: int = 3) -> bytes:
        """The file's bytes, or no more than the `last`; :class:`ImageError` when it cannot be read, in several trials
        where the trouble may pass, MemoryError for the need of the machine."""
        path, file, offset, size = self._place(index)
        name = display(path)
        # The largest sensible file: 8 bytes for every allowed pixel, and room for metadata.
        limit = int(self.decoding.limits.megapixels * 8e6) + (64 << 20)
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe would block its reader
                raise ImageError(name, "it is no regular file")
            with open(file, "rb", buffering=0) as stream:
                available = os.fstat(stream.fileno()).st_size - offset if size < 0 else size
                if available > limit:
                    raise ImageError(name, f"the file has {available:,} bytes, too many for an image")
                skipped = 0 if last is None else max(0, available - last)
                stream.seek(offset + skipped)
                data = stream.read(available - skipped)
        except OSError as error:
            if trials and error.errno in (*NEED, *PASSING):
                time.sleep(4.0 / 4**trials)
                return self.read(index, last, trials - 1)
            if error.errno in NEED:
                raise MemoryError(error.strerror) from error
            raise ImageError(name, error.strerror or str(error)) from error
        if size >= 0 and len(data) < size - skipped:
            raise ImageError(name, "the tar has been cut short")
        return data

    def image(self, index: int) -> Tensor:
        """(C, H, W), uint8 or of more bits float32 in [0, 1], not to be changed: where all images fit into memory,
        each is decoded once."""
        image = self._decoded.get(index)
        if image is None:
            image = decode_image(self.read(index), self.name(index), self.decoding)
            worker = get_worker_info()  # every one of which has images of its own
            if len(self) * image.nbytes * (worker.num_workers if worker else 1) <= self._memory:
                self._decoded[index] = image
        return image

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image, from its header alone."""
        return upright_size(self.read(index), self.name(index), self.decoding.limits)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def describe(self) -> str:
        classes = f", {counted(len(self.classes), 'class')}" if self.classes else ""
        return f"{counted(len(self), 'image')}{classes}, from {', '.join(self._roots)}"

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)  # of the sizes of all files, and the ends of some
        for index in range(len(self)):
            with suppress(ImageError):  # which whoever reads it is told
                digest.update(b"%d " % self.length(index))
                if index % (1 + len(self) // SAMPLE) == 0:
                    digest.update(self.read(index, ENDING))
        return f"{len(self):,} files {self._paths.digest()} {digest.hexdigest()}"


def decoding_in(source: Source) -> Decoding:
    """How the images of `source` are decoded; those of sets by name are RGB of 8 bits."""
    inner, _ = origin(source, 0)
    return inner.decoding if isinstance(inner, FileSource) else USUAL


def path_of(source: Source, index: int) -> str:
    """Where an image lies, as data and not for display: its path in any bytes, or its place in a set."""
    source, index = origin(source, index)
    return source.path(index) if isinstance(source, FileSource) else source.name(index)


_without_links = lru_cache(4096)(os.path.realpath)


def full_name(source: Source, index: int) -> str:
    """What an image is called from everywhere: its path, by whatever link its folder was named, or its place in a
    set."""
    source, index = origin(source, index)
    if not isinstance(source, FileSource):
        return source.name(index)
    folder, name = os.path.split(source.path(index))
    return os.path.join(_without_links(os.path.abspath(folder)), name)


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
