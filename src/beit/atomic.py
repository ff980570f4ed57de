"""The one way files are written: each appears complete at its place, or not at all.

What is half written is called `.tmp-NAME` and lies beside its place, so that one rename puts it there.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def draft_of(path: Path) -> Path:
    """Where `path` is written before it is renamed."""
    name = os.fsencode(path.name)  # a file system takes 255 bytes
    return path.with_name(f".tmp-{path.name if len(name) < 250 else hashlib.blake2b(name).hexdigest()}")


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Put what `write` writes in the place of `path`: a reader sees the old file or the new one.

    Args:
        durable: also after a power cut.
    """
    draft = draft_of(path)
    try:
        write(draft)
        if durable:
            sync(draft)
        draft.replace(path)
        if durable:
            sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Put `text` in the place of `path`; see :func:`replace_file`. What is no UTF-8, as in names, is escaped as JSON
    does it."""
    content = text.encode("utf-8", "backslashreplace")
    replace_file(path, lambda draft: draft.write_bytes(content), durable=durable)


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Put the folder that `fill` fills in the place of `path`, after all of it is on the disk."""
    draft = draft_of(path)
    try:
        remove(draft)
        draft.mkdir()
        fill(draft)
        for file in draft.iterdir():
            sync(file)
        if path.exists():
            path.rename(_old(path))
        draft.rename(path)
        sync(path.parent)
    finally:
        restore_folder(path)


def restore_folder(path: Path) -> None:
    """Leave the newest whole folder at `path`, wherever :func:`replace_folder` was cut short."""
    shutil.rmtree(draft_of(path), ignore_errors=True)
    old = _old(path)
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    """Where `path` waits while another takes its place."""
    return path.with_name(f".old-{path.name}")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder at; renamed to `path` when all went well.

    Where `path` is a folder, which must be empty, the files move there: somebody may be standing in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    remove(draft)
    try:
        yield draft
        if path.is_dir():
            for part in draft.iterdir():
                part.replace(path / part.name)
        else:
            draft.replace(path)
    finally:
        remove(draft)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, from the system's memory to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
