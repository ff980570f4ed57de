"""Hostile files: refused in one line, nothing executed, memory bounded. Honest ones: read as torch reads them."""

from __future__ import annotations

import ast
import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from beit import UserError
from beit.checkpoints.torch_file import open_tensor_file


class Evil:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def saved(content: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def edited(edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of torch.save with a 2x8 tensor of floats, each of its records changed by `edit`."""
    source, target = zipfile.ZipFile(io.BytesIO(saved({"cls_token": torch.zeros(2, 8)}))), io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for record in source.infolist():
            name = record.filename.rpartition("/")[2]
            archive.writestr(record.filename, edit(name, source.read(record.filename)))
    return target.getvalue()


def swap(old: bytes, new: bytes) -> bytes:
    """The zip with `old` replaced in its pickle, once."""

    def edit(name: str, content: bytes) -> bytes:
        if name != "data.pkl":
            return content
        assert content.count(old) == 1, old
        return content.replace(old, new)

    return edited(edit)


def program(body: bytes) -> bytes:
    """A zip of torch.save whose pickle is `body`."""
    return edited(lambda name, content: body if name == "data.pkl" else content)


def write_canary(canary: str) -> str:
    return f"open({canary!r}, 'w').close()"


def hostile(canary: str) -> dict[str, tuple[bytes, str]]:
    """Files, and what the refusal has to say."""
    system = Evil(os.system, f"touch {canary}")
    honest = saved({"cls_token": torch.zeros(2, 8)})
    older = saved({"cls_token": torch.zeros(2, 8)}, legacy=True)
    run = Evil(exec, write_canary(canary))
    legacy_head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    legacy_head += pickle.dumps({"little_endian": True}, 2)
    huge = b"J\x00\x00\x00\x10"
    return {
        "os.system": (saved({"model": system}), "system"),
        "os.system, older container": (saved({"model": system}, legacy=True), "system"),
        "os.system as a magic number": (pickle.dumps(system, 2), "system"),
        "exec": (saved(OrderedDict(weight=torch.zeros(2), bias=run)), "exec"),
        "exec in the older list of storages": (
            legacy_head + pickle.dumps({}, 2) + pickle.dumps(run, 2),
            "exec",
        ),
        "a module": (saved(torch.nn.Sequential(torch.nn.Linear(2, 2))), "torch.nn.modules"),
        "an unexpected class": (saved({"model": Path, "x": zipfile.ZipFile}), "ZipFile"),
        "getattr by dots": (program(b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93."), "torch.os.system"),
        "a call of a tensor": (program(b"\x80\x02N)R."), "calls a NoneType"),
        "attributes of a class": (program(b"\x80\x02ccollections\nOrderedDict\n}b."), "sets attributes"),
        "a zip cut off": (honest[:-40], "cannot be read"),
        "an older file cut off": (older[:-40], "cut off"),
        "a zip bomb": (
            edited(lambda name, x: bytes(2**28) if name == "0" else x, zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "a storage larger than the file": (swap(b"K\x10t", huge + b"t"), "does not hold"),
        "a tensor larger than its storage": (
            swap(b"K\x02K\x08\x86", b"K\x02" + huge + b"\x86"),
            "storage of 16",
        ),
        "a negative shape": (swap(b"K\x02K\x08\x86", b"J\xfe\xff\xff\xffK\x08\x86"), "shape"),
        "a negative offset": (swap(b"QK\x00", b"QJ\xff\xff\xff\xff"), "shape"),
        "a shape of text": (swap(b"K\x02K\x08\x86", b"K\x02N\x86"), "shape"),
        "a storage of two bytes a number": (swap(b"FloatStorage", b"HalfStorage"), "does not hold"),
        "a record without its storage": (swap(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"), "does not hold"),
        "keys that recurse": (program(b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"Ns."), "tuple as a key"),
        "a memory without end": (program(b"\x80\x02Nr\xff\xff\xff\x7f."), "NoneType"),
        "a list within itself": (program(b"\x80\x02]q\x00h\x00a."), "holds a list"),
        "a pickle that ends nowhere": (program(b"\x80\x02}"), "pickle"),
        "text": (b"<!DOCTYPE html><p>Public access is not permitted", "no known format"),
        "nothing": (b"", "no known format"),
        "a zip of something else": (
            edited(lambda name, x: x).replace(b"data.pkl", b"data.txt"),
            "torch.save did not",
        ),
        "a safetensors header of 2^60 bytes": (struct.pack("<Q", 2**60) + b'{"a":1}', "cannot be read"),
    }


READER = """
import pathlib, resource, sys
import beit, beit.checkpoints
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sorted(pathlib.Path(sys.argv[1]).glob("*/*.p*")):
    try:
        beit.load_model(file)
    except beit.UserError as error:
        print(repr((str(file), str(error))))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
"""


def test_every_hostile_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """In a process of its own, which must neither grow nor die."""
    canary = tmp_path / "executed"
    files = hostile(str(canary))
    reasons = {}
    for number, (content, reason) in enumerate(files.values()):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        for name in ("checkpoint.pth", "encoder.pkl"):
            (folder / name).write_bytes(content)
            reasons[str(folder / name)] = reason
    output = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert output.returncode == 0, output.stderr
    *lines, megabytes = output.stdout.splitlines()
    refused = dict(ast.literal_eval(line) for line in lines)
    assert refused.keys() == reasons.keys()
    for file, message in refused.items():
        assert reasons[file] in message
        assert file in message
        assert "\n" not in message
        assert len(message) < 400
    assert not canary.exists()
    # The largest allowed pickle of a million nested tuples; the zip bomb alone would be 256.
    assert int(megabytes) < 150


def test_the_hostile_files_would_work_on_a_careless_reader(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    files = hostile(str(canary))
    for title in ("os.system", "exec", "os.system, older container"):
        torch.load(io.BytesIO(files[title][0]), weights_only=False)
        assert canary.exists(), title
        canary.unlink()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """A byte changed anywhere gives tensors or a refusal, and never anything else."""
    legacy = data.draw(st.booleans())
    content = bytearray(saved({"a": torch.arange(6.0).view(2, 3), "b": {"c": [1, None, "x", 2.5]}}, legacy))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.pth"
        file.write_bytes(content)
        try:
            opened = open_tensor_file(file)
            loaded = opened.load(opened.tensors(opened.contents))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(tensor, Tensor) for tensor in loaded.values())


@pytest.mark.parametrize("legacy", [False, True])
def test_honest_files_are_read_as_torch_reads_them(legacy: bool, tmp_path: Path) -> None:
    shared = torch.arange(24.0).view(4, 6)
    content = {
        "rows": shared[1:3],
        "transposed": shared.t(),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "integers": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    file = tmp_path / "x.pth"
    torch.save(OrderedDict(content), file, _use_new_zipfile_serialization=not legacy)
    opened = open_tensor_file(file)
    loaded = opened.load(opened.tensors(opened.contents))
    expected = torch.load(file, weights_only=True)
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        assert tensor.dtype == expected[key].dtype
        assert torch.equal(tensor, expected[key].detach())
