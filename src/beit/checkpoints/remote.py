"""Files of released models by name, and the Hugging Face Hub: fetched once, whole or not at all, and checked whenever
they are used.

A checksum is written beside the file when it is fetched first (trust on first use); one that stands there holds.
"""

import hashlib
import logging
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from beit.atomic import replace_file, write_text
from beit.checkpoints.reading.torch_file import MAX_FILE
from beit.config.errors import UserError, require
from beit.config.files import cache_folder
from beit.presets.released import HUB
from beit.untrusted import file_hash

logger = logging.getLogger(__name__)
TIMEOUT = 30.0
"""Seconds without a byte."""
CHUNK = 2**20


def fetched(name: str, addresses: Sequence[str]) -> Path:
    """The file of `addresses`, or the folder of several, under `name` in the cache; fetched what is not there yet.

    Raises :class:`UserError` where a file cannot be fetched, or has another checksum than its NAME.sha256.
    """
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / address.rpartition("/")[2] for address in addresses]
    with FileLock(folder / ".lock"):  # every rank of a run wants the same files
        for file, address in zip(files, addresses, strict=True):
            record = file.with_name(f"{file.name}.sha256")  # as `sha256sum --check` reads it
            known = record.read_text(encoding="utf-8", errors="replace") if record.exists() else ""
            expected = known.partition(" ")[0] or None
            if file.is_file():
                check(file, expected)
            else:
                replace_file(file, partial(_fetch, name, address, record, expected))
    return folder if len(files) > 1 else files[0]


def check(file: Path, sha256: str | None) -> None:
    """UserError unless `file` has this checksum; None passes."""
    digest = file_hash(file) if sha256 else None
    mend = "delete it and what is kept beside it, and fetch it again"
    require(digest == sha256, f"{file} is not what it was: its sha256 is {digest}, not {sha256}; {mend}")


def _fetch(name: str, address: str, record: Path, expected: str | None, target: Path) -> None:
    """Writes what lies at `address` to `target`, and its SHA-256 to `record`."""
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response, target.open("wb") as file:
            if address.startswith("https:") and not response.url.startswith("https:"):
                raise OSError(f"it leads to {response.url}, which is not encrypted")
            digest = _copy(name, response, file)
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        failed = f"{name} cannot be fetched from {address} ({' '.join(str(reason).split())})"
        raise UserError(f"{failed}; download it where there is a network, and give its path instead") from None
    require(expected in (None, digest), f"{address} has the sha256 {digest}, not {expected} as stands in {record}")
    write_text(record, f"{digest}  {record.stem}\n")
    if expected is None:
        message = "%s: sha256 %s, trusted because none is published; kept in %s and checked from now on"
        logger.warning(message, name, digest, record)


def _copy(name: str, response: HTTPResponse, file: IO[bytes]) -> str:
    """Copies the body, with progress on a terminal; OSError unless it is as long as its header says."""
    length = int(response.headers.get("Content-Length") or 0)
    digest = hashlib.sha256()
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        body = bar.wrap_file(response, length or None, description=f"fetching {name}")
        while part := body.read(CHUNK):
            file.write(part)
            digest.update(part)
            if file.tell() > MAX_FILE:
                raise OSError(f"it is larger than {MAX_FILE >> 30} GiB")
    if length and file.tell() != length:
        raise OSError(f"it ended after {file.tell():,} of {length:,} bytes")
    return digest.hexdigest()


_SMALL = ("config.json", "preprocessor_config.json", "model.json")
_WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*.bin"),
)
"""The first kind that a repository has: in one file, or in several with their index."""


def fetched_from_hub(text: str) -> Path:
    """The folder that the files of hf://owner/name were fetched to (or lie in, when there is no network).

    The Hub names the SHA-256 of every large file, and its cache calls the file so: what has another is refused.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = text.removeprefix(HUB)
    try:
        for patterns in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, *patterns]))
            if files := [file for pattern in patterns[1:] for file in folder.glob(pattern)]:
                break
    except RepositoryNotFoundError:
        raise UserError(f"{text} does not exist, or is private and `hf auth login` has not been run") from None
    except Exception as error:  # whatever a network, its client and the library's checks of names raise
        reason = f"{error}".strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{text} cannot be fetched ({reason}); download its files, give their folder") from None
    for file in files:
        called = file.resolve().name
        check(file, called if re.fullmatch("[0-9a-f]{64}", called) else None)
    return folder
