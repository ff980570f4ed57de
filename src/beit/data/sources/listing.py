"""What lies in folders and tar shards: paths first, pixels later.

Both kinds give the same thing, a sorted list of members with paths relative to their root, so that splits and
classes are decided once, on paths alone. Nothing is ever extracted: tar members are read in place by offset.
"""

import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import beit.data.sources.files as files
from beit.config.errors import UserError, require
from beit.config.values import counted
from beit.data.base import split_of
from beit.data.sources.cache import ImageCache

# Folders of thumbnails and resource forks that file systems and archivers leave behind.
_LITTER = frozenset(("__MACOSX", "@eaDir", "lost+found"))
_RUN, _RESULTS = {"config.yaml", "status.json"}, {"maps", "classes.tsv"}
"""What is in the folder of every run, and in that of predicted label maps, which may have overlays too."""
_MOST_CLASSES = 1_000_000  # a number beyond is damage, and a table of that length an attack
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def list_data(values: Sequence[str], cache: ImageCache) -> list[files.Listing]:
    """One listing for each folder among `values`, and one for all the tars together, in order of appearance; once for
    all who share the `cache`."""
    if listings := cache.listings.get(tuple(values), []):
        return listings
    with _about("--data"):
        for value in values:
            if run := _run_around(value):
                raise UserError(f"{value}: what lies in the run {run} is no data; name a folder of images")
        shards = [_tar_paths(value) for value in values]
        listings = [_scan_folder(value, cache) for value, tars in zip(values, shards, strict=True) if tars is None]
        if tars := [tar for part in shards for tar in part or ()]:
            place = next(place for place, part in enumerate(shards) if part)
            listings.insert(place, _scan_tars(tars, cache))
        _require_apart([listing.root for listing in listings if not listing.tars])
        _require_apart([tar for listing in listings for tar in listing.tars])
    cache.listings[tuple(values)] = listings
    return listings


def _require_apart(places: Sequence[str]) -> None:
    """UserError where one of the `places` is another, or lies in it: its images would count twice."""
    for outer, inner in pairwise(sorted(os.path.join(os.path.realpath(place), "") for place in places)):
        require(not inner.startswith(outer), f"names {inner[:-1]} and {outer[:-1]}, which holds it; drop the former")


def _run_around(place: str) -> Path | None:
    """The run that `place` is, or lies in."""
    path = Path(os.path.abspath(place))
    return next((run for run in (path, *path.parents) if all((run / name).is_file() for name in _RUN)), None)


def list_images(value: str) -> files.Listing:
    """What `value` means where layout plays no part: an image file, tar shards, or a folder with images at any depth.

    A folder is read as tar shards when there is no image in it.
    """
    with _about("--images"):
        other_file = os.path.lexists(value) and not os.path.isdir(value)
        if other_file and not _is_tar_name(value) and not value.lower().endswith(".zip"):
            folder, name = os.path.split(value)
            return files.Listing(folder, files.tabulate([_file(value, name) or files.Member(name)]))
        unpacked = os.path.isdir(value) and any(True for _ in _walk(value, Counter(), []))
        tars = None if unpacked else _tar_paths(value)
        return _scan_folder(value, ImageCache()) if tars is None else _scan_tars(tars, ImageCache())


def list_maps(folder: str) -> files.Listing:
    """The label maps in a folder, at any depth."""
    with _about("--label-maps"):
        return _scan_folder(folder, ImageCache())


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
    if any(files.suffix_of(name) in files.IMAGE_SUFFIXES for name in names):
        return None
    splits = [name for name in names if split_of(name) and os.path.isdir(os.path.join(value, name))]
    folders = ["", *(f"{name}/" for name in splits)]
    return [
        (os.path.join(value, folder, name), folder)
        for folder in folders
        for name in _visible_names(os.path.join(value, folder))
        if _is_tar_name(name)
    ] or None


def _visible_names(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _is_tar_name(name: str) -> bool:
    return bool(re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz)$", name.lower()))


# ------------------------------------------------------------------------------------------------------------
# Folders


def _scan_folder(root: str, cache: ImageCache) -> files.Listing:
    """Every image beneath `root`, at any depth. Links are followed, but never in a circle; hidden names are not."""
    omissions: list[str] = []
    others: Counter[str] = Counter()
    members = files.tabulate(cache.track(_walk(root, others, omissions), "looking for images"))
    content = f" (it holds {counted(others.total(), 'other file')})" if others else ""
    mend = "name a folder with files such as .jpg or .png, or tar shards"
    require(bool(members), f"{root} holds no image{content}; {mend}")
    return files.Listing(root, members, omissions=omissions, others=others)


def _walk(
    folder: str, others: Counter[str], omissions: list[str], prefix: str = "", chain: tuple[str, ...] = ()
) -> Iterator[files.Member]:
    """The images, in the order of their paths."""
    chain, place = chain or (os.path.realpath(folder),), os.path.join(folder, "")
    with os.scandir(folder) as entries:
        ends = {x.name: "/" * (os.path.isdir(x.path) if x.is_symlink() else x.is_dir()) for x in entries}
    if prefix and (ends.keys() >= _RUN or ends.keys() - {"overlays"} == _RESULTS):
        omissions.append(f"{folder}: {'a run' if ends.keys() >= _RUN else 'label maps of beit predict'}, ignored")
        return
    for name in sorted(ends, key=lambda name: name + ends[name]):
        if name.startswith(".") or name in _LITTER:
            continue
        path = place + name
        if ends[name]:
            real = os.path.realpath(path) if os.path.islink(path) else f"{chain[-1]}{os.sep}{name}"
            if real in chain:
                omissions.append(f"{path}: a link to a folder that contains it, ignored")
                continue
            yield from _walk(path, others, omissions, f"{prefix}{name}/", (*chain, real))
        elif files.suffix_of(name) not in files.IMAGE_SUFFIXES:
            others[files.suffix_of(name)] += 1
        elif member := _file(path, prefix + name):
            yield member


def _file(path: str, name: str) -> files.Member | None:
    """The file at `path`; None for a pipe, which would block its reader. A dangling link counts as an image, so that
    it is reported as damaged."""
    try:
        status = os.stat(path)
    except OSError:
        return files.Member(name)
    is_file = stat.S_ISREG(status.st_mode)
    return files.Member(name, -1, 0, status.st_size, status.st_mtime_ns) if is_file else None


# ------------------------------------------------------------------------------------------------------------
# Tar shards (WebDataset convention: KEY.jpg beside KEY.cls)


def _scan_tars(tars: Sequence[tuple[str, str]], cache: ImageCache) -> files.Listing:
    """Every image in the tars, its path prefixed as given. Links, devices and paths that lead outside the archive
    are left out with a note.
    """
    paths = [tar for tar, _ in tars]
    root = paths[0] if len(paths) == 1 else f"{paths[0]} .. {os.path.basename(paths[-1])}"
    state = [(*tar, _file(tar[0], "")) for tar in tars]
    text, rows, omissions = cache.recall(("tars", state), lambda: _read_tars(tars, cache))
    require(len(rows) > 0, f"{root} holds no image; a shard is a tar of files such as KEY.jpg")
    return files.Listing(root, files.Members(text.tobytes(), rows), paths, omissions.tolist())


def _read_tars(tars: Sequence[tuple[str, str]], cache: ImageCache) -> Iterator[NDArray[Any]]:
    """The text and the rows of the members, sorted by path, and what is left out."""
    omissions, seen = list[str](), set[str]()

    def images() -> Iterator[files.Member]:
        for shard, (tar, prefix) in enumerate(tars):
            ignored: Counter[str] = Counter()
            contents = list(_tar_members(tar, shard, ignored, omissions))
            # Shards that each number their members from 0: the shard's name keeps their paths apart.
            mark = "" if seen.isdisjoint(member.path for member in contents) else f"{Path(tar).stem}~"
            seen.update(member.path for member in contents)
            with open(tar, "rb") as file:
                ends = ((x, *os.path.splitext(x.path)) for x in contents)
                numbers = {key: _read_number(file, x) for x, key, end in ends if end == ".cls"}
            for member in contents:
                if files.suffix_of(member.path) in files.IMAGE_SUFFIXES:
                    folder, name = os.path.split(member.path)
                    # KEY ends at the last dot, or by WebDataset's rule at the first.
                    keys = os.path.splitext(member.path)[0], os.path.join(folder, name.partition(".")[0])
                    number = next((numbers[key] for key in keys if key in numbers), files.NO_NUMBER)
                    yield member._replace(path=os.path.join(prefix + folder, mark + name), number=number)
            if ignored:
                kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.items())
                omissions.append(f"{tar}: ignored {kinds}")

    members = files.tabulate(sorted(cache.track(images(), "looking for images")))
    yield from (np.frombuffer(members.text, np.uint8), members.rows, np.array(omissions, np.str_))


def _tar_members(tar: str, shard: int, ignored: Counter[str], omissions: list[str]) -> Iterator[files.Member]:
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
                    yield files.Member(path, shard, info.offset_data, info.size)
            # A whole tar ends with empty blocks; one that stops within a header was cut short.
            if 0 < length - archive.offset < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends within a header")
            if length == archive.offset:
                omissions.append(f"{tar}: has no end mark; if it was cut short, fetch it again")
    except PermissionError:
        raise
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{tar} is damaged or no tar ({error}); fetch it again") from error


def _read_number(tar: IO[bytes], member: files.Member) -> int:
    """The class number in ASCII that a member of a tar is."""
    tar.seek(member.offset)
    text = tar.read(min(member.size, 32)).strip()
    return int(text) if text.isdigit() and int(text) < _MOST_CLASSES else files.WRONG_NUMBER
