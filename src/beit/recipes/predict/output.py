"""Files of results, written record by record in little memory; they appear whole or not at all."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from beit.atomic import appearing
from beit.config.errors import RunFailed, UserError

Record = dict[str, Any]
"""What is known of one image: `image`, its name, and arrays or primitives."""


def require_writable_file(out: str) -> None:
    """Make the folder around the file `out`. UserError, before any work, where there can be no such file."""
    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"--out {out}: {error.filename} is in no folder, or is none; choose another"
        ) from error
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error


@contextmanager
def results_file(path: Path) -> Iterator[Callable[[Record], None]]:
    """Takes records, which are in `path` once all is well: CSV, JSON lines or NumPy arrays, as its suffix says.

    RunFailed when they cannot be written.
    """

    def told(error: OSError) -> RunFailed:
        return RunFailed(f"{path} could not be written: {error.strerror or error}")

    with appearing(path) as draft, ExitStack() as open_files:
        try:
            writer = WRITERS[path.suffix](draft, open_files)
        except OSError as error:
            raise told(error) from error

        def write(record: Record) -> None:
            try:
                writer.write(record)
            except OSError as error:
                raise told(error) from error

        yield write
        try:
            writer.finish()
            open_files.close()
        except OSError as error:
            raise told(error) from error


class _Writer(Protocol):
    def __init__(self, path: Path, files: ExitStack) -> None:
        """Open `path`; `files` closes what is opened."""

    def write(self, record: Record) -> None: ...
    def finish(self) -> None: ...


class _Table:
    """image, label, probability, label_2, probability_2, ..."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._rows = csv.writer(files.enter_context(path.open("w", encoding="utf-8", newline="")))
        self._has_heading = False

    def write(self, record: Record) -> None:
        if not self._has_heading:
            marks = ["", *(f"_{rank}" for rank in range(2, len(record["top"]) + 1))]
            self._rows.writerow(
                ["image", *(f"{name}{mark}" for mark in marks for name in ("label", "probability"))]
            )
            self._has_heading = True
        cells = [cell for entry in record["top"] for cell in (entry["label"], entry["probability"])]
        self._rows.writerow([record["image"], *cells])

    def finish(self) -> None: ...


class _Lines:
    """A JSON object in each line."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._file = files.enter_context(path.open("w", encoding="utf-8"))

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, default=np.ndarray.tolist) + "\n")

    def finish(self) -> None: ...


class _Arrays:
    """An array for each key with a row for each record, as np.savez_compressed writes them."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._path, self._files = path, files
        self._columns: dict[str, _Column] = {}

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if key not in self._columns:
                rows = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
                self._columns[key] = _Column(self._files.enter_context(rows), value)
            self._columns[key].add(value)

    def finish(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, column in self._columns.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    column.pour(entry)


class _Column:
    """An array under way. Its head tells the number of rows, which is known last, so they wait in a nameless file."""

    def __init__(self, rows: IO[bytes], first: Any) -> None:
        self._rows, self._count = rows, 0
        self._text, self._longest = isinstance(first, str), 1
        self._like = np.asarray(first)

    def add(self, value: Any) -> None:
        self._count += 1
        if self._text:  # of names that can be printed, which hold no line break
            self._longest = max(self._longest, len(value))
            self._rows.write(f"{value}\n".encode())
        else:
            self._rows.write(np.asarray(value, self._like.dtype).tobytes())

    def pour(self, entry: IO[bytes]) -> None:
        """Write all of it in NumPy's format."""
        dtype = np.dtype(f"<U{self._longest}") if self._text else self._like.dtype
        shape = (self._count, *self._like.shape)
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(entry, head)
        self._rows.seek(0)
        if not self._text:
            shutil.copyfileobj(self._rows, entry)
            return
        while lines := list(islice(self._rows, 4096)):
            entry.write(np.array([line.decode()[:-1] for line in lines], dtype).tobytes())


WRITERS: Mapping[str, type[_Writer]] = {".csv": _Table, ".jsonl": _Lines, ".npz": _Arrays}
