"""Files of released models by name: fetched once, whole or not at all, and checked whenever they are used.

A checksum comes from the caller, or was written beside the file when it was fetched first (trust on first use).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from beit.atomic import replace_file, write_text
from beit.checkpoints.reading.torch_file import MAX_FILE
from beit.config.errors import UserError
from beit.config.files import cache_folder

logger = logging.getLogger(__name__)
TIMEOUT = 30.0
"""Seconds without a byte."""
CHUNK = 2**20


def fetched(name: str, addresses: Sequence[str], sha256: Sequence[str] = ()) -> Path:
    """The file of `addresses`, or the folder of several, under `name` in the cache; fetched what is not there yet.

    sha256: of each file; without them that of the first time. Raises :class:`UserError` where a file cannot be
    fetched, or has another checksum.
    """
    if sha256 and len(sha256) != len(addresses):
        raise UserError(f"{name} has {len(addresses)} files; give a sha256 for each, with : between them")
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / address.rpartition("/")[2] for address in addresses]
    with FileLock(folder / ".lock"):  # every rank of a run wants the same files
        for index, (file, address) in enumerate(zip(files, addresses, strict=True)):
            expected = sha256[index] if sha256 else None
            if file.is_file():
                check(file, expected or _recorded(file))
            else:
                _fetch(name, address, file, expected)
    return folder if len(files) > 1 else files[0]


def check(file: Path, sha256: str | None) -> None:
    """UserError unless `file` has this checksum; None passes."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest() if sha256 else None
    if digest != sha256:
        raise UserError(
            f"{file} is not what it was, or not what was stated: its sha256 is {digest}, not {sha256}"
        )


def _record(file: Path) -> Path:
    """Beside the file, as `sha256sum --check` reads it."""
    return file.with_name(f"{file.name}.sha256")


def _recorded(file: Path) -> str | None:
    try:
        return _record(file).read_text(encoding="ascii").split()[0]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError) as error:
        raise UserError(
            f"{_record(file)} cannot be read ({error}); delete it to trust {file.name} anew"
        ) from None


def _fetch(name: str, address: str, file: Path, sha256: str | None) -> None:
    expected = sha256 or _recorded(file)

    def write(draft: Path) -> None:
        digest = _download(name, address, draft)
        if expected not in (None, digest):
            raise UserError(
                f"{address} has the sha256 {digest}, not {expected} as stated or as it had before"
            )
        write_text(_record(file), f"{digest}  {file.name}\n")
        if expected is None:
            logger.warning(
                "%s: sha256 %s, trusted because none is published; kept in %s and checked from now on",
                *(name, digest, _record(file)),
            )

    replace_file(file, write)


def _download(name: str, address: str, target: Path) -> str:
    """Writes what lies at `address` to `target`; gives its SHA-256."""
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response, target.open("wb") as file:
            if address.startswith("https:") and not response.url.startswith("https:"):
                raise OSError(f"it leads to {response.url}, which is not encrypted")
            return _copy(name, response, file)
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"{name} cannot be fetched from {address} ({' '.join(str(reason).split())}); download it where there is "
            f"a network, and give the file"
        ) from None


def _copy(name: str, response: HTTPResponse, file: IO[bytes]) -> str:
    """Copies the body, with progress on a terminal; OSError unless it is as long as, and what, its header says."""
    length = int(response.headers.get("Content-Length") or 0)
    digest, transfer, done = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"fetching {name}", total=length or None)
        while part := response.read(CHUNK):
            done += len(part)
            if done > MAX_FILE:
                raise OSError(f"it is larger than {MAX_FILE >> 30} GiB")
            file.write(part)
            digest.update(part)
            transfer.update(part)
            bar.advance(task, len(part))
    if length and done != length:
        raise OSError(f"it ended after {done:,} of {length:,} bytes")
    md5 = response.headers.get("Content-MD5")
    if md5 and base64.b64encode(transfer.digest()).decode() != md5.strip():
        raise OSError("it was damaged on the way")
    return digest.hexdigest()
