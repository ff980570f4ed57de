"""Files of tensors, opened without reading the tensors: safetensors, and both containers of `torch.save`.

Why not `torch.load(weights_only=True)`: it refuses OpenAI's modules in the older container, it reads all of a
training checkpoint to give a third of it, and it inflates a zip of 1 MB to 1 GiB of memory (torch 2.15). Here no
tensor is made before its bytes are known to lie in the file.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from beit.checkpoints.reading.safe_pickle import Inert, Refused, Storage, StoredTensor, read_pickle
from beit.config.errors import UserError, require
from beit.untrusted import listed, printable, read_json

INDEX = ".index.json"
"""How the names of indices of several files end."""
MAX_SHARDS = 1000
MAX_FILE = 16 * 2**30
MAX_PICKLE = 4 * 2**20
"""Ten times what the largest training checkpoint needs. Also the most for a safetensors header."""
MAX_DIRECTORY = 2**21
"""Bytes of a zip's list of parts: some 30,000 parts, of which a training checkpoint of BEiT-large has 1,500."""
MAX_MODULES = 10_000
"""Modules of a pickled network; OpenAI's have 150. A few that hold one another could seem to be without end."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_FAULTS = (*(OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, SafetensorError),)
"""What a damaged file may raise."""


class Place(NamedTuple):
    """Where the numbers of a storage begin, and their checksum where the container has one."""

    path: Path
    start: int
    crc: int | None = None


class TensorFile(NamedTuple):
    """An open file. Tensors are those of :mod:`safetensors`, or :class:`StoredTensor` until they are loaded."""

    path: Path
    contents: Any
    """What was saved: dicts, lists and plain values, with tensors at the leaves."""
    places: Mapping[str, Place]
    """Of every storage, by its key."""
    size: int
    """Bytes of the file, or of all files that these tensors lie in."""

    def load(self, tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, Tensor]:
        """The tensors themselves, on the CPU, each with memory of its own."""
        views: dict[Storage, list[str]] = {}  # every storage is read once, however many tensors lie in it
        for key, tensor in tensors.items():
            if isinstance(tensor, StoredTensor):
                views.setdefault(tensor.storage, []).append(key)
        needed = sum(tensor.nbytes for tensor in tensors.values()), sum(storage.nbytes for storage in views)
        require(max(needed) <= self.size, f"{self.path} is refused: its tensors add up to more bytes than it has")
        loaded = {key: tensor.clone() for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
        try:
            for storage, keys in views.items():
                numbers = _numbers(storage, self.places[storage.key])
                loaded |= {key: _view(numbers, tensors[key]) for key in keys}
        except _FAULTS as error:
            raise UserError(f"{self.path} is damaged ({printable(str(error))}); copy or download it again") from None
        return {key: loaded[key] for key in tensors}

    def tensors(self, tree: Any) -> dict[str, Tensor | StoredTensor]:
        """The tensors of a state dict, or of a pickled module by their names in it; no other values."""
        if isinstance(tree, Inert):
            return dict(self._parameters(tree))
        values = tree.items() if isinstance(tree, dict) else ()
        return {str(key): x for key, x in values if isinstance(x, Tensor | StoredTensor)}

    def _parameters(self, network: Inert) -> Iterator[tuple[str, StoredTensor]]:
        waiting, visited = [("", network)], 0
        while waiting:
            prefix, module = waiting.pop()
            visited += 1
            children = _dict_of(module, "_modules")
            if visited + len(waiting) + len(children) > MAX_MODULES:
                raise UserError(f"{self.path} is refused: it has more than {MAX_MODULES:,} modules")
            for key, value in _dict_of(module, "_parameters").items():
                if isinstance(value, StoredTensor):
                    yield f"{prefix}{key}", value
            waiting += [(f"{prefix}{key}.", child) for key, child in children.items() if isinstance(child, Inert)]


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
    except _FAULTS as error:
        raise UserError(f"{path} cannot be read ({printable(str(error))}); copy or download it again") from None
    known = "neither safetensors nor written by torch.save"
    raise UserError(f"{path} is of no known format: it is {known}; download it again")


def _numbers(storage: Storage, place: Place) -> Tensor:
    if not storage.numel:
        return torch.empty(0, dtype=storage.dtype)
    with place.path.open("rb") as file:
        file.seek(place.start)
        content = bytearray(file.read(storage.nbytes))
    if len(content) < storage.nbytes or place.crc not in (None, zlib.crc32(content)):
        raise ValueError(f"its part {storage.key[:40]!r} is not what was written")
    return torch.frombuffer(content, dtype=storage.dtype)


def _view(numbers: Tensor, stored: Tensor | StoredTensor) -> Tensor:
    assert isinstance(stored, StoredTensor)
    if not stored.nbytes:
        return numbers.new_empty(stored.shape)
    return numbers.as_strided(stored.shape, stored.stride, stored.offset).clone()


def _dict_of(module: Inert, name: str) -> dict[Any, Any]:
    value = module.attributes.get(name)
    return value if isinstance(value, dict) else {}


def _open_safetensors(path: Path) -> TensorFile:
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    if header > MAX_PICKLE:
        raise Refused(f"its header is larger than {MAX_PICKLE >> 20} MiB")
    # Its tensors are there at once, mapped into memory.
    return TensorFile(path, load_file(path), {}, path.stat().st_size)


def _open_zip(path: Path) -> TensorFile:
    with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        file.most = MAX_FILE
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
        if f"{folder}byteorder" in records:
            with archive.open(f"{folder}byteorder") as order:
                if order.read(8) != b"little":
                    raise Refused("it was written on a big-endian machine")
        contents = read_pickle(io.BytesIO(archive.read(pickles[0])))
        places = {}
        for key, storage in _storages(contents).items():
            record = records.get(f"{folder}data/{key}")
            if record is None or record.file_size != storage.nbytes:
                raise Refused(f"its part {key[:40]!r} does not hold {storage.numel} {storage.dtype}")
            file.seek(record.header_offset + 26)  # the lengths of its name and of what else comes before its content
            before = sum(struct.unpack("<HH", file.read(4)))
            places[key] = Place(path, record.header_offset + 30 + before, record.CRC)
    return TensorFile(path, contents, places, path.stat().st_size)


class _ShortReads(io.FileIO):
    """Refuses a zip whose list of parts is long: in memory it takes ten times what the file holds."""

    most = MAX_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise Refused(f"the list of its parts is larger than {self.most >> 20} MiB")
        return super().read(size)


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
        keys, storages = read_pickle(head), _storages(contents)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*storages}:
            raise Refused("its list of storages does not fit its tensors")
        start, size, places = head.tell(), path.stat().st_size, {}
        for key in keys:
            file.seek(start)
            length = file.read(8)
            places[key], storage = Place(path, start + 8), storages[key]
            start += 8 + storage.nbytes
            if len(length) < 8 or struct.unpack("<q", length)[0] != storage.numel or start > size:
                raise Refused("it is cut off or damaged")
    return TensorFile(path, contents, places, size)


def _storages(contents: Any) -> dict[str, Storage]:
    """Every storage that the contents refer to."""
    storages: dict[str, Storage] = {}
    waiting, seen = [contents], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor):
            if storages.setdefault(value.storage.key, value.storage) != value.storage:
                raise Refused(f"its storage {value.storage.key[:40]!r} is of two kinds")
        elif isinstance(value, dict | list | tuple | Inert) and id(value) not in seen:
            seen.add(id(value))
            parts = value.attributes if isinstance(value, Inert) else value
            waiting += parts.values() if isinstance(parts, dict) else parts
    return storages


# ------------------------------------------------------------------------------------------------------------
# Weights in several files beside an index, as Hugging Face's libraries write large models


def open_shards(index: Path) -> TensorFile:
    """All files that `index` names, which lie beside it, as one."""
    named = (read_json(index) or {}).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index} has no weight_map")
    names = sorted({*named.values()})
    if strange := [name for name in names if not re.fullmatch(r"[\w-][\w.-]*", name) or name.endswith(INDEX)]:
        raise UserError(f"{index} is refused: it names {printable(strange[0])}, which is no file beside it")
    require(len(names) <= MAX_SHARDS, f"{index} is refused: it names {len(names):,} files")
    files = [open_tensor_file(index.with_name(name)) for name in names]
    contents: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for number, file in enumerate(files):
        tensors = file.tensors(file.contents)
        if twice := contents.keys() & tensors.keys():
            raise UserError(f"{file.path} has {listed(twice)}, which another file of {index.name} has as well")
        contents |= {key: _of(number, tensor) for key, tensor in tensors.items()}
        places |= {f"{number}/{key}": place for key, place in file.places.items()}
    if lost := named.keys() - contents.keys():
        raise UserError(f"{index} names {listed(lost)}, which its files do not have")
    return TensorFile(index, contents, places, sum(file.size for file in files))


def _of(number: int, tensor: Any) -> Any:
    """The tensor with its storage named after its file: each file counts its own from 0."""
    if not isinstance(tensor, StoredTensor):
        return tensor
    return tensor._replace(storage=tensor.storage._replace(key=f"{number}/{tensor.storage.key}"))
