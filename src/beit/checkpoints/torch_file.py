"""Files of tensors, opened without reading the tensors: safetensors, and both containers of `torch.save`.

Why not `torch.load(weights_only=True)`: it refuses OpenAI's modules in the older container, it reads all of a
training checkpoint to give a third of it, and it inflates a zip of 1 MB to 1 GiB of memory (torch 2.15). Here no
tensor is made before its bytes are known to lie in the file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from beit.checkpoints.safe_pickle import Inert, Refused, Storage, StoredTensor, read_pickle
from beit.config import UserError

MAX_FILE = 16 * 2**30
MAX_PICKLE = 4 * 2**20
"""Ten times what the largest training checkpoint needs; a pickle takes up to a hundred times its size in memory."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class TensorFile(NamedTuple):
    """An open file. Tensors are those of :mod:`safetensors`, or :class:`StoredTensor` until they are loaded."""

    path: Path
    contents: Any
    """What was saved: dicts, lists and plain values, with tensors at the leaves."""
    reader: Callable[[], AbstractContextManager[Callable[[StoredTensor], bytearray]]]
    """Opens the file for reading tensors: each -> all bytes of its storage."""

    def load(self, tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, Tensor]:
        """The tensors themselves, on the CPU, each with memory of its own."""
        total = sum(x.nbytes for x in tensors.values())
        if total > self.path.stat().st_size:
            raise UserError(f"{self.path} is refused: its tensors add up to more bytes than it has")
        try:
            with self.reader() as read:
                return {
                    key: x.clone() if isinstance(x, Tensor) else _made(x, read) for key, x in tensors.items()
                }
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is damaged ({error}); copy or download it again") from None

    def tensors(self, tree: Any) -> dict[str, Tensor | StoredTensor]:
        """The tensors of a state dict, or of a pickled module by their names in it; no other values."""
        if isinstance(tree, Inert):
            return dict(self._parameters(tree, "", 0))
        found = tree.items() if isinstance(tree, dict) else ()
        return {str(key): x for key, x in found if isinstance(x, Tensor | StoredTensor)}

    def _parameters(self, module: Inert, prefix: str, depth: int) -> Iterator[tuple[str, StoredTensor]]:
        if depth > 8:
            raise UserError(f"{self.path} is refused: its modules lie too deep within one another")
        for key, value in _dict_of(module, "_parameters").items():
            if isinstance(value, StoredTensor):
                yield f"{prefix}{key}", value
        for key, value in _dict_of(module, "_modules").items():
            if isinstance(value, Inert):
                yield from self._parameters(value, f"{prefix}{key}.", depth + 1)


def open_tensor_file(path: Path) -> TensorFile:
    """The file at `path`. Raises :class:`UserError`, in one line, for what is damaged, hostile or no such file."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise Refused(f"it is larger than {MAX_FILE >> 30} GiB")
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] == b"{":
            return _open_safetensors(path)
        if start[:4] == b"PK\x03\x04":
            return _open_zip(path)
        if start[:1] == b"\x80":
            return _open_legacy(path)
    except Refused as reason:
        raise UserError(f"{path} is refused: {reason}") from None
    except (
        *(OSError, EOFError, ValueError, RuntimeError, struct.error),
        *(zipfile.BadZipFile, SafetensorError),
    ) as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download it again") from None
    raise UserError(
        f"{path} is of no known format: it is neither safetensors nor written by torch.save; download it again"
    )


def _made(stored: StoredTensor, read: Callable[[StoredTensor], bytearray]) -> Tensor:
    if not stored.nbytes:
        return torch.empty(stored.shape, dtype=stored.storage.dtype)
    numbers = torch.frombuffer(read(stored), dtype=stored.storage.dtype)
    return numbers.as_strided(stored.shape, stored.stride, stored.offset).clone()


def _dict_of(module: Inert, name: str) -> dict[Any, Any]:
    value = module.attributes.get(name)
    return value if isinstance(value, dict) else {}


def _open_safetensors(path: Path) -> TensorFile:
    # Its tensors are there at once, mapped into memory.
    return TensorFile(path, load_file(path), lambda: nullcontext(lambda tensor: bytearray()))


def _open_zip(path: Path) -> TensorFile:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise Refused("it is a compressed zip, and torch.save compresses nothing")
        if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
            raise Refused("its parts add up to more bytes than it has")
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Refused("it is a zip that torch.save did not write")
        if records[pickles[0]].file_size > MAX_PICKLE:
            raise Refused(f"its pickle is larger than {MAX_PICKLE >> 20} MiB")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("it was written on a big-endian machine")
        contents = read_pickle(io.BytesIO(archive.read(pickles[0])))
    for key, storage in _storages(contents).items():
        record = records.get(f"{folder}data/{key}")
        if record is None or record.file_size != storage.numel * storage.dtype.itemsize:
            raise Refused(f"its part {key[:40]!r} does not hold {storage.numel} {storage.dtype}")

    @contextmanager
    def reader() -> Iterator[Callable[[StoredTensor], bytearray]]:
        with zipfile.ZipFile(path) as archive:
            yield lambda tensor: bytearray(archive.read(f"{folder}data/{tensor.storage.key}"))

    return TensorFile(path, contents, reader)


def _open_legacy(path: Path) -> TensorFile:
    """The container of torch up to 1.5: five pickles, then each storage as its length and its numbers."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE))
        if read_pickle(head) != _LEGACY_MAGIC or read_pickle(head) != _LEGACY_PROTOCOL:
            raise Refused("it is a pickle that torch.save did not write")
        system = read_pickle(head)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused("it was written on a big-endian machine")
        contents = read_pickle(head)
        keys = read_pickle(head)
        places = _legacy_places(file, head.tell(), keys, _storages(contents))

    @contextmanager
    def reader() -> Iterator[Callable[[StoredTensor], bytearray]]:
        with path.open("rb") as file:

            def read(tensor: StoredTensor) -> bytearray:
                file.seek(places[tensor.storage.key])
                return bytearray(file.read(tensor.storage.numel * tensor.storage.dtype.itemsize))

            yield read

    return TensorFile(path, contents, reader)


def _legacy_places(file: IO[bytes], start: int, keys: Any, storages: Mapping[str, Storage]) -> dict[str, int]:
    """Where each storage's numbers begin, checked to end within the file."""
    size, places = file.seek(0, io.SEEK_END), {}
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Refused("its list of storages does not fit its tensors")
    for key in map(str, keys):
        storage = storages[key]
        file.seek(start)
        length = file.read(8)
        end = start + 8 + storage.numel * storage.dtype.itemsize
        if len(length) < 8 or struct.unpack("<q", length)[0] != storage.numel or end > size:
            raise Refused("it is cut off or damaged")
        places[key] = start + 8
        start = end
    return places


def _storages(contents: Any) -> dict[str, Storage]:
    """Every storage that the contents refer to."""
    found: dict[str, Storage] = {}
    waiting, seen = [contents], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            if found.setdefault(value.storage.key, value.storage) != value.storage:
                raise Refused(f"its storage {value.storage.key[:40]!r} is of two kinds")
        elif isinstance(value, dict | list | tuple | Inert) and id(value) not in seen:
            seen.add(id(value))
            parts = value.attributes if isinstance(value, Inert) else value
            waiting += parts.values() if isinstance(parts, dict) else parts
    return found
