"""Files of folders and tar shards: what a listing of them is, and images in them as a source."""

import errno
import hashlib
import os
import stat
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from beit.config.values import counted
from beit.data.base import Source
from beit.data.decode import USUAL, Decoding, ImageError, decode_image, upright_size
from beit.data.sources.subsets import origin
from beit.untrusted import display

NO_NUMBER, WRONG_NUMBER = -1, -2


class Member(NamedTuple):
    """One file of a listing."""

    path: str
    """POSIX path relative to the root."""
    shard: int = -1
    """Which tar of the listing holds it; -1 for a plain file."""
    offset: int = 0
    """Where its bytes start in the tar."""
    size: int = -1
    """How many there are; -1 for a plain file that cannot be found."""
    time: int = 0
    """When a plain file was changed last, in nanoseconds."""
    number: int = NO_NUMBER
    """Of its class, as the `KEY.cls` beside it in a tar has it; `WRONG_NUMBER` for one that holds none."""


_ROW = np.dtype("i8, i4, i4, i4, i8, i8, i8, i4")
_ROW.names = ("start", "length", "folder", *Member._fields[1:])


class Members(Sequence[Member]):
    """Members by index, a million in about 80 MB: the `text` of all paths, and `rows` with their places there
    and the other fields. Rows of one folder share a number."""

    def __init__(self, text: bytes, rows: NDArray[Any]) -> None:
        self.text, self.rows = text, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Member:  # type: ignore[override]
        start, length, _, *others = self.rows[index].item()
        return Member(os.fsdecode(self.text[start : start + length]), *others)

    @cached_property
    def folders(self) -> tuple[list[str], NDArray[np.int64]]:
        """Where they lie, "" or ending in "/", each once, and of every member the number of its folder there."""
        _, first, codes = np.unique(self.rows["folder"], return_index=True, return_inverse=True)
        paths = (self[index].path for index in first.tolist())
        return [path[: path.rfind("/") + 1] for path in paths], codes

    @cached_property
    def digest(self) -> str:
        """Of their paths, places, sizes and times."""
        return hashlib.blake2b(self.text + self.rows.tobytes(), digest_size=16).hexdigest()

    def take(self, indices: NDArray[Any]) -> "Members":
        """Some of them, by number, or marked."""
        return Members(self.text, self.rows[indices])


def tabulate(members: Iterable[Member]) -> Members:
    """The `members` in arrays."""
    text, folders = bytearray(), dict[str, int]()

    def rows() -> Iterator[tuple[int, ...]]:
        for path, *others in members:
            encoded = os.fsencode(path)
            yield len(text), len(encoded), folders.setdefault(path[: path.rfind("/") + 1], len(folders)), *others
            text.extend(encoded)

    table = np.fromiter(rows(), _ROW)
    return Members(bytes(text), table)


@dataclass(frozen=True)
class Listing:
    """The images of one root."""

    root: str
    """A folder as the user named it, or the tars' common description."""
    members: Members
    """Sorted by path."""
    tars: list[str] = field(default_factory=list)
    omissions: list[str] = field(default_factory=list)
    """What would be an image, but is not used, and why, one line each."""
    others: Counter[str] = field(default_factory=Counter)
    """Files in a folder that are no images, by suffix."""

    @property
    def is_numbered(self) -> bool:
        """Whether images have class numbers."""
        return bool((self.members.rows["number"] != NO_NUMBER).any())

    @property
    def notes(self) -> list[str]:
        """What is not used, one line each."""
        if not self.others:
            return self.omissions
        most = self.others.most_common(4)
        kinds = ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in most)
        return [*self.omissions, f"{self.root}: {counted(self.others.total(), 'other file')} ignored ({kinds})"]

    def using(self, path: str) -> "Listing":
        """This listing, of whose other files `path` is used, if it is one of them."""
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.root))
        return replace(self, others=self.others - Counter({suffix_of(path): int(inside)}))


def suffix_of(name: str) -> str:
    """The ending of a file's name, with its dot."""
    return "".join(name.rpartition(".")[1:]).lower() if "." in name else ""


class Files(NamedTuple):
    """What a source is opened with."""

    listings: list[Listing]
    """Whose members are those to use."""
    notes: list[str]
    labels: NDArray[np.int64] | None = None
    """Of all members in order."""
    classes: tuple[str, ...] | None = None


IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
    | {".jpx", ".avif", ".heic", ".heif", ".hif", ".npy", ".dcm", ".dicom"}
)
PASSING = (errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE)
NEED = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Trouble of a file system that may pass, and what a machine is short of: no damage of the file."""
SAMPLE, ENDING = 1000, 1 << 14
"""Files of which the fingerprint knows the last bytes, and how many."""


class FileSource:
    """Image files on disk or inside tars. All tables are arrays, which loader processes share from their fork on.

    `memory`: bytes of decoded images that are kept at most, in all the loader processes of a device together; 0 for
    images that are read once.
    """

    def __init__(self, files: Files, decoding: Decoding = USUAL, memory: int = 512 << 20) -> None:
        self._listings = files.listings
        # Where each listing's members begin, and where all end.
        self._bounds = [0, *accumulate(len(listing.members) for listing in files.listings)]
        self._labels = np.zeros(0, np.int64) if files.labels is None else files.labels
        self.decoding, self._memory = decoding, memory
        self._decoded: dict[int, Tensor] = {}
        self.classes = files.classes
        self.notes = list(files.notes)

    def __len__(self) -> int:
        return self._bounds[-1]

    def _find(self, index: int) -> tuple[Listing, Member]:
        """The image, and the listing that it is in."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._bounds, index) - 1
        return self._listings[part], self._listings[part].members[index - self._bounds[part]]

    def _place(self, index: int) -> tuple[str, str, int, int]:
        """Path, file to open, offset, size (-1: to the end)."""
        listing, (path, shard, offset, size, *_) = self._find(index)
        if shard < 0:
            file = os.path.join(listing.root, path)
            return file, file, 0, -1
        return f"{listing.tars[shard]}:{path}", listing.tars[shard], offset, size

    def path(self, index: int) -> str:
        """Where the image lies, in a tar as TAR:PATH: the name that results and labels go by, of any bytes."""
        return self._place(index)[0]

    def name(self, index: int) -> str:
        return display(self.path(index))

    def key(self, index: int) -> str:
        return self._find(index)[1].path

    def length(self, index: int) -> int:
        """Bytes of the file as it was listed; :class:`ImageError` when there is none."""
        if (size := self._find(index)[1].size) < 0:
            raise ImageError(self.name(index), os.strerror(errno.ENOENT))
        return size

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
        return f"{counted(len(self), 'image')}{classes}, from {', '.join(listing.root for listing in self._listings)}"

    @cached_property
    def fingerprint(self) -> str:
        names, contents = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        tables = [listing.members for listing in self._listings]
        lengths, sizes = (np.concatenate([table.rows[x] for table in tables]) for x in ("length", "size"))
        for table in tables:
            for start, length in zip(table.rows["start"], table.rows["length"], strict=True):
                names.update(table.text[start : start + length])
        names.update(np.cumsum(np.append(0, lengths)).tobytes())
        for index, size in enumerate(sizes.tolist()):  # of all files, and the ends of some
            contents.update(b"%d " % size if size >= 0 else b"")
            if index % (1 + len(self) // SAMPLE) == 0:
                with suppress(ImageError):  # which whoever reads it is told
                    contents.update(self.read(index, ENDING))
        return f"{len(self):,} files {names.hexdigest()} {contents.hexdigest()}"


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
