"""Where results go: files, record by record in little memory, whole or not at all; and what a terminal shows."""

import csv
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from beit.atomic import appearing
from beit.config.errors import RunFailed
from beit.data.loaders import View
from beit.data.sources.files import FileSource
from beit.stages.inference import print_notes
from beit.untrusted import display

Record = dict[str, Any]
"""What is known of one image: `image`, its path in any bytes, and arrays or primitives."""


class Reading(NamedTuple):
    """How a model reads images."""

    noun: str
    """What the results are called."""
    suffixes: tuple[str, ...]
    """Kinds of files they may be written to; none for a folder."""
    view: View
    """An image and a generator -> a sample."""
    apply: Callable[[Any], dict[str, Tensor] | RunFailed]
    """A batch on the device -> results by name, or why there are none."""
    record: Callable[[Mapping[str, NDArray[Any]]], Record] = dict
    """The results of an image -> what is said of it."""
    folder: Callable[[FileSource], Callable[[Record], None]] | None = None
    """The images -> what writes their records to a folder; None where one file holds all."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """RunFailed where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{path} could not be written: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------------------------------
# Files


@contextmanager
def results_file(path: Path) -> Iterator[Callable[[Record], None]]:
    """Takes records, which are in `path` once all is well: CSV, JSON lines or NumPy arrays, as its suffix says.

    RunFailed when they cannot be written.
    """
    with appearing(path) as draft, ExitStack() as open_files:
        with write_errors(path):
            writer = WRITERS[path.suffix](draft, open_files)

        def write(record: Record) -> None:
            with write_errors(path):
                writer.write(record)

        yield write
        with write_errors(path):
            writer.finish()
            open_files.close()


class _Lines:
    """A JSON object in each line. Bytes of a name that are no UTF-8 are surrogate escapes, as Python has them."""

    errors = "backslashreplace"  # which makes of a surrogate what JSON writes for it

    def __init__(self, path: Path, files: ExitStack) -> None:
        """Open `path`; `files` closes what is opened."""
        self.file = files.enter_context(path.open("w", encoding="utf-8", errors=self.errors, newline=""))

    def write(self, record: Record) -> None:
        self.file.write(json.dumps(record, ensure_ascii=False, default=np.ndarray.tolist) + "\n")

    def finish(self) -> None:
        """After the last record."""


class _Table(_Lines):
    """image, label, probability, label_2, probability_2, ... Names keep their bytes."""

    errors = "surrogateescape"

    def __init__(self, path: Path, files: ExitStack) -> None:
        super().__init__(path, files)
        self._rows = csv.writer(self.file)
        self._has_heading = self._has_formula = False

    def write(self, record: Record) -> None:
        row = {"image": record["image"]}
        for rank, entry in enumerate(record["top"], 1):
            mark = f"_{rank}" if rank > 1 else ""
            row |= {f"{name}{mark}": value for name, value in entry.items()}
        if not self._has_heading:
            self._rows.writerow(row)
            self._has_heading = True
        self._rows.writerow(row.values())
        # Not mended, for --labels reads this file.
        if not self._has_formula and any(str(cell).startswith(("=", "+", "-", "@")) for cell in row.values()):
            self._has_formula = True
            print_notes(["some names begin as formulas do (=, +, -, @): let spreadsheets import the table as text"])


class _Arrays(_Lines):
    """An array for each key with a row for each record. Names stay in memory, where the source has them too; other
    rows wait for the last one, and so for their number, in nameless files."""

    def __init__(self, path: Path, files: ExitStack) -> None:
        self._path, self._files = path, files
        self._names: list[str] = []
        self._columns: dict[str, tuple[IO[bytes], NDArray[Any]]] = {}

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if key == "image":
                self._names.append(value)
                continue
            if key not in self._columns:
                rows = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
                self._columns[key] = self._files.enter_context(rows), value
            self._columns[key][0].write(value.tobytes())

    def finish(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("image.npy", "w", force_zip64=True) as entry:
                np.save(entry, np.array(self._names))
            for key, (rows, like) in self._columns.items():
                shape = (len(self._names), *like.shape)
                head = {"descr": like.dtype.str, "fortran_order": False, "shape": shape}
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, head)
                    rows.seek(0)
                    shutil.copyfileobj(rows, entry)


WRITERS: Mapping[str, type[_Lines]] = {".csv": _Table, ".jsonl": _Lines, ".npz": _Arrays}


# ------------------------------------------------------------------------------------------------------------
# Lines


def show_labels(record: Record) -> None:
    """A line with tabs between columns."""
    cells = [f"{name_in_line(entry['label'])}\t{entry['probability']:.4f}" for entry in record["top"]]
    print("\t".join([name_in_line(record["image"]), *cells]))


def name_in_line(name: str) -> str:
    """A path or class in a line for other programs: as it is, but for what would break the line or the output."""
    return display(name) if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name) else name
