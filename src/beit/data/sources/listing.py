"""What lies in folders and tar shards: paths first, pixels later.

Both kinds give the same thing, a sorted list of members with paths relative to their root, so that splits and
classes are decided once, on paths alone. Nothing is ever extracted: tar members are read in place by offset.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from beit.config.errors import UserError, require
from beit.config.values import counted
from beit.data.base import split_of

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
    | {".jpx", ".avif", ".heic", ".heif", ".hif", ".npy", ".dcm", ".dicom"}
)
# Folders of thumbnails and resource forks that file systems and archivers leave behind.
_LITTER = frozenset(("__MACOSX", "@eaDir", "lost+found"))
_RUN, _RESULTS = {"config.yaml", "status.json"}, {"maps", "classes.tsv"}
"""What is in the folder of every run, and in that of predicted label maps, which may have overlays too."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """One file of a listing."""

    path: str
    """POSIX path relative to the root."""
    shard: int = -1
    """Which tar of the listing holds it; -1 for a plain file."""
    offset: int = 0
    """Where its bytes start in the tar."""
    size: int = -1
    """How many there are; -1 for a plain file: all of it."""


@dataclass(frozen=True)
class Listing:
    """The images of one root."""

    root: str
    """A folder as the user named it, or the tars' common description."""
    members: list[Member]
    """Sorted by path."""
    tars: list[str] = field(default_factory=list)
    numbers: dict[str, Member] = field(default_factory=dict)
    """`KEY.cls` members of tars by their key prefixed with the shard: class numbers in ASCII."""
    omissions: list[str] = field(default_factory=list)
    """What would be an image, but is not used, and why, one line each."""
    others: Counter[str] = field(default_factory=Counter)
    """Files in a folder that are no images, by suffix."""

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
        return replace(self, others=self.others - Counter({_suffix(path): int(inside)}))


def list_data(values: Sequence[str]) -> list[Listing]:
    """One listing for each folder among `values`, and one for all the tars together, in order of appearance."""
    with _about("--data"):
        for value in values:
            if run := _run_around(value):
                raise UserError(f"{value}: what lies in the run {run} is no data; name a folder of images")
        shards = [_tar_paths(value) for value in values]
        listings = [_scan_folder(value) for value, tars in zip(values, shards, strict=True) if tars is None]
        if tars := [tar for part in shards for tar in part or ()]:
            place = next(place for place, part in enumerate(shards) if part)
            listings.insert(place, _scan_tars(tars))
        _require_apart([listing.root for listing in listings if not listing.tars])
        _require_apart([tar for listing in listings for tar in listing.tars])
    return listings


def _require_apart(places: Sequence[str]) -> None:
    """UserError where one of the `places` is another, or lies in it: its images would count twice."""
    for outer, inner in pairwise(sorted(os.path.join(os.path.realpath(place), "") for place in places)):
        require(not inner.startswith(outer), f"names {inner[:-1]} and {outer[:-1]}, which holds it; drop the former")


def _run_around(place: str) -> Path | None:
    """The run that `place` is, or lies in."""
    path = Path(os.path.abspath(place))
    return next((run for run in (path, *path.parents) if all((run / name).is_file() for name in _RUN)), None)


def list_images(value: str) -> Listing:
    """What `value` means where layout plays no part: an image file, tar shards, or a folder with images at any depth.

    A folder is read as tar shards when there is no image in it.
    """
    with _about("--images"):
        other_file = os.path.lexists(value) and not os.path.isdir(value)
        if other_file and not _is_tar_name(value) and not value.lower().endswith(".zip"):
            folder, name = os.path.split(value)
            return Listing(folder, [Member(name)])
        unpacked = os.path.isdir(value) and any(True for _ in _walk(value, Counter(), []))
        tars = None if unpacked else _tar_paths(value)
        return _scan_folder(value) if tars is None else _scan_tars(tars)


def list_maps(folder: str) -> Listing:
    """The label maps in a folder, at any depth."""
    with _about("--label-maps"):
        return _scan_folder(folder)


@contextmanager
def _about(flag: str) -> Iterator[None]:
    """Puts `flag`, which named the files, in front of what is wrong with them."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag} {error}") from error
    except PermissionError as error:
        path = error.filename
        raise UserError(f"{flag}: {path} cannot be read; grant permission: chmod -R u+rX '{path}'") from error


def _tar_paths(value: str) -> list[tuple[str, str]] | None:
    """The tars that a value means, each with a prefix for its paths; None when it is a folder of images."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", value):
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [value[: match.start()] + f"{n:0{len(first)}d}" + value[match.end() :] for n in numbers]
        missing = [path for path in paths if not os.path.exists(path)]
        first = f"the first being {[*missing, value][0]}; correct the range or fetch the missing shards"
        whole = bool(paths) and not missing
        require(whole, f"{value}: {len(missing)} of {counted(len(paths), 'shard')} missing, {first}")
        return [(path, "") for path in paths]
    require(os.path.exists(value), f"{value}: no such folder or file; check the path")
    if os.path.isfile(value):
        archive = f"a zip archive; unpack it: unzip {value} -d {value[:-4]}"
        kind = archive if value.lower().endswith(".zip") else "a file; name a folder of images or a tar shard"
        require(_is_tar_name(value), f"{value} is {kind}")
        return [(value, "")]
    names = _visible_names(value)
    if any(_suffix(name) in IMAGE_SUFFIXES for name in names):
        return None
    splits = [name for name in names if split_of(name) and os.path.isdir(os.path.join(value, name))]
    folders = ["", *(f"{name}/" for name in splits)]
    return [
        (os.path.join(value, folder, name), folder)
        for folder in folders
        for name in _visible_names(os.path.join(value, folder))
        if _is_tar_name(name)
    ] or None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _visible_names(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _is_tar_name(name: str) -> bool:
    return bool(re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz)$", name.lower()))


# ------------------------------------------------------------------------------------------------------------
# Folders


def _scan_folder(root: str) -> Listing:
    """Every image beneath `root`, at any depth. Links are followed, but never in a circle; hidden names are not."""
    omissions: list[str] = []
    others: Counter[str] = Counter()
    paths = sorted(_walk(root, others, omissions))
    content = f" (it holds {counted(others.total(), 'other file')})" if others else ""
    mend = "name a folder with files such as .jpg or .png, or tar shards"
    require(bool(paths), f"{root} holds no image{content}; {mend}")
    return Listing(root, [Member(path) for path in paths], omissions=omissions, others=others)


def _walk(
    folder: str, others: Counter[str], omissions: list[str], prefix: str = "", chain: tuple[str, ...] = ()
) -> Iterator[str]:
    chain = chain or (os.path.realpath(folder),)
    entries = list(os.scandir(folder))
    names = {entry.name for entry in entries}
    if prefix and (names >= _RUN or names - {"overlays"} == _RESULTS):
        omissions.append(f"{folder}: {'a run' if names >= _RUN else 'label maps of beit predict'}, ignored")
        return
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name in _LITTER:
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            real = os.path.realpath(entry.path) if entry.is_symlink() else f"{chain[-1]}{os.sep}{name}"
            if real in chain:
                omissions.append(f"{entry.path}: a link to a folder that contains it, ignored")
                continue
            yield from _walk(entry.path, others, omissions, f"{prefix}{name}/", (*chain, real))
        elif _suffix(name) not in IMAGE_SUFFIXES:
            others[_suffix(name)] += 1
        # A dangling link counts as an image, so that it is reported as damaged; a pipe would block its reader.
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
            yield prefix + name


# ------------------------------------------------------------------------------------------------------------
# Tar shards (WebDataset convention: KEY.jpg beside KEY.cls)


def _scan_tars(tars: Sequence[tuple[str, str]]) -> Listing:
    """Every image in the tars, its path prefixed as given. Links, devices and paths that lead outside the archive
    are left out with a note.
    """
    members: list[Member] = []
    numbers: dict[str, Member] = {}
    omissions: list[str] = []
    seen: set[str] = set()
    for shard, (tar, prefix) in enumerate(tars):
        ignored: Counter[str] = Counter()
        contents = list(_tar_members(tar, shard, ignored, omissions))
        # Shards that each number their members from 0: the shard's name keeps their paths apart.
        mark = "" if seen.isdisjoint(member.path for member in contents) else f"{Path(tar).stem}~"
        seen.update(member.path for member in contents)
        for member in contents:
            folder, name = os.path.split(prefix + member.path)
            path = os.path.join(folder, mark + name)
            stem, suffix = os.path.splitext(path)
            if suffix.lower() in IMAGE_SUFFIXES:
                members.append(member._replace(path=path))
            elif suffix == ".cls":
                numbers[f"{shard}:{stem}"] = member
        if ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.items())
            omissions.append(f"{tar}: ignored {kinds}")
    paths = [tar for tar, _ in tars]
    root = paths[0] if len(paths) == 1 else f"{paths[0]} .. {os.path.basename(paths[-1])}"
    require(bool(members), f"{root} holds no image; a shard is a tar of files such as KEY.jpg")
    return Listing(root, sorted(members), paths, numbers, omissions)


def _tar_members(tar: str, shard: int, ignored: Counter[str], omissions: list[str]) -> Iterator[Member]:
    try:
        if not os.path.isfile(tar):  # a pipe would block its reader
            raise tarfile.ReadError("it is no regular file")
        length = os.path.getsize(tar)
        with open(tar, "rb") as file:
            head = file.read(6)
        for magic, kind in _COMPRESSED.items():
            packed = f"{tar} is compressed with {kind}, so its members cannot be read in place"
            require(not head.startswith(magic), f"{packed}; unpack it: {kind} -dk '{tar}'")
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                vars(archive)["members"] = []  # or a shard of a million members stays in memory
                path = os.path.normpath(info.name).replace(os.sep, "/")
                hidden = any(part.startswith(".") or part in _LITTER for part in path.split("/"))
                if info.isdir() or (hidden and not path.startswith("..")):
                    continue
                if not info.isreg() or info.issparse():
                    ignored["links, devices and sparse files"] += 1
                elif path.startswith(("/", "..")):
                    ignored["paths that lead outside the archive"] += 1
                elif info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"the member {path} is cut short")
                else:
                    yield Member(path, shard, info.offset_data, info.size)
            # A whole tar ends with empty blocks; one that stops within a header was cut short.
            if 0 < length - archive.offset < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends within a header")
            if length == archive.offset:
                omissions.append(f"{tar}: has no end mark; if it was cut short, fetch it again")
    except PermissionError:
        raise
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{tar} is damaged or no tar ({error}); fetch it again") from error
