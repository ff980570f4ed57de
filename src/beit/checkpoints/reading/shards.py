"""Weights in several files beside an index, as Hugging Face's libraries write large models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from beit.checkpoints.reading.safe_pickle import StoredTensor
from beit.checkpoints.reading.torch_file import Read, TensorFile, open_tensor_file
from beit.config.errors import UserError
from beit.untrusted import listed, printable, read_json

INDEX = ".index.json"
MAX_SHARDS = 1000


def open_shards(index: Path) -> TensorFile:
    """All files that `index` names, which lie beside it, as one."""
    named = (read_json(index) or {}).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index} has no weight_map")
    names = sorted({*named.values()})
    if strange := [name for name in names if not re.fullmatch(r"[\w-][\w.-]*", name) or name.endswith(INDEX)]:
        raise UserError(f"{index} is refused: it names {printable(strange[0])}, which is no file beside it")
    if len(names) > MAX_SHARDS:
        raise UserError(f"{index} is refused: it names {len(names):,} files")
    files = [open_tensor_file(index.with_name(name)) for name in names]
    contents: dict[str, Any] = {}
    for number, file in enumerate(files):
        tensors = file.tensors(file.contents)
        if twice := contents.keys() & tensors.keys():
            raise UserError(
                f"{file.path} has {listed(twice)}, which another file of {index.name} has as well"
            )
        contents |= {key: _of(number, tensor) for key, tensor in tensors.items()}
    if lost := named.keys() - contents.keys():
        raise UserError(f"{index} names {listed(lost)}, which its files do not have")

    @contextmanager
    def reader() -> Iterator[Read]:
        with ExitStack() as stack:
            reads = [stack.enter_context(file.reader()) for file in files]

            def read(storage: Any) -> bytearray:
                number, _, key = storage.key.partition("/")
                return reads[int(number)](storage._replace(key=key))

            yield read

    return TensorFile(index, contents, reader, sum(file.size for file in files))


def _of(number: int, tensor: Any) -> Any:
    """The tensor with its storage named after its file: each file counts its own from 0."""
    if not isinstance(tensor, StoredTensor):
        return tensor
    return tensor._replace(storage=tensor.storage._replace(key=f"{number}/{tensor.storage.key}"))
