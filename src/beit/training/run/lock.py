"""At most one run on a directory. The kernel holds the lock: it goes away with its process, however that ends."""

import errno
import os
import platform
import sys
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from beit.config.errors import RunFailed, UserError, require
from beit.untrusted import printable

HELD = (errno.EACCES, errno.EAGAIN)
LOCK = ".lock"
"""The file in a run directory that is locked."""


class RunLock:
    """The right to write to one run directory."""

    _own_files: ClassVar[set[Path]] = set()
    """Files locked by this process: the kernel would let it lock them again."""

    def __init__(self, path: Path, file: IO[str] | None) -> None:
        self._path, self._file = path, file
        self._own_files.add(path)

    @classmethod
    def take(cls, run: Path) -> Self:
        """Lock the run directory `run`.

        Raises:
            UserError: another process holds it; the message says which.
        """
        path = (run / LOCK).resolve()
        require(path not in cls._own_files, _refusal(run, ""))
        file = path.open("a+", encoding="utf-8")
        is_granted = _ask(file, exclusive=True)
        if is_granted is False:
            with file:
                raise UserError(_refusal(run, path.read_text(encoding="utf-8")))
        if is_granted is None:
            file.close()
            return cls(path, None)
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        return cls(path, file)

    @classmethod
    def is_held(cls, run: Path) -> bool | None:
        """Whether a process, this one or another, holds the lock of `run`; None where nobody can tell."""
        path = (run / LOCK).resolve()
        if path in cls._own_files:  # asked first: to open and close the file would give up a lock of our own
            return True
        try:
            with path.open("rb") as file:
                is_granted = _ask(file, exclusive=False)
        except OSError as error:
            return False if error.errno == errno.ENOENT else None
        return None if is_granted is None else not is_granted

    def require_own(self) -> None:
        """RunFailed where the directory was deleted, moved or replaced since: what is there now is not this run's."""
        own = None if self._file is None else self._file.fileno()
        if own is not None and not (self._path.exists() and os.path.samefile(self._path, own)):
            raise RunFailed(f"--out {self._path.parent} was deleted, moved or begun anew; this run stops")

    def release(self) -> None:
        """Let others have the directory."""
        self._own_files.discard(self._path)
        if self._file is not None:
            self._file.close()
            self._file = None


def _ask(file: IO[Any], exclusive: bool) -> bool | None:
    """Whether the kernel grants this process the lock on `file`; None on Windows, and on a file system without
    locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        # A record lock, not flock: loader workers that outlive a killed run must not inherit it.
        fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def _refusal(run: Path, holder: str) -> str:
    who = printable(holder.strip()) or "another run"
    return f"--out {run} is in use by {who}; wait until it ends, stop it, or choose another --out"
