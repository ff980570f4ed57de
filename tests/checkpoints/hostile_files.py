"""Files that attack their reader."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


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
        "keys that recurse": (program(b"\x80\x02}" + b")" + b"\x85" * 2 * 10**5 + b"Ns."), "tuple as a key"),
        "a memory without end": (program(b"\x80\x02Nr\xff\xff\xff\x7f."), "NoneType"),
        "a list within itself": (program(b"\x80\x02]q\x00h\x00a."), "holds a list"),
        "a pickle that ends nowhere": (program(b"\x80\x02}"), "pickle"),
        "text": (b"<!DOCTYPE html><p>Public access is not permitted", "no known format"),
        "nothing": (b"", "no known format"),
        "a zip of something else": (
            edited(lambda name, x: x).replace(b"data.pkl", b"data.txt"),
            "torch.save did not",
        ),
        "a safetensors header of 2^60 bytes": (struct.pack("<Q", 2**60) + b'{"a":1}', "larger than 4 MiB"),
    }


def memoized(values: Iterable[bytes]) -> bytes:
    """A list of `values`, remembered as the first thing of its pickle."""
    return b"\x80\x04](" + b"".join(values) + b"e\x94"


def safetensors_header(offsets: dict[str, tuple[int, int]]) -> bytes:
    """A safetensors file of vectors of one number at these offsets, whether they fit or not."""
    header = {key: {"dtype": "F32", "shape": [1], "data_offsets": place} for key, place in offsets.items()}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that a simple reader would need hours or all memory for, and what the refusal has to say."""
    # Each level holds the one below it twice: 2^60 leaves.
    tree = b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (level, level) for level in range(60))
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    number = [struct.pack("<BH", ord("M"), value) for value in range(65536)]
    pairs = memoized(value + b"N\x86" for value in number)
    call = b"h\x01h\x00\x85R"
    legacy = (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    )
    module = b"ctorch.nn.modules.container\nSequential\n"
    network = b"\x80\x04" + module + b")R\x94"  # every further module holds the one before it fifty times
    for level in range(8):
        children = b"".join(b"X\x02\x00\x00\x00%02dh%c" % (child, level) for child in range(50))
        network += module + b")R}X\x08\x00\x00\x00_modules}(" + children + b"usb\x94"
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for index in range(40_000):
            archive.writestr(f"x/{index}", b"")
    steps = "takes more than"
    return {
        "a class named by a tree": (program(tree + b"\x8c\x01x\x93."), "by something else than text"),
        "a shape that is a tree": (
            program(tree + tensor + b"(" + storage + b"K\x00h\x3ch\x3ct" + b"R."),
            "impossible shape",
        ),
        "a list of storages that is a tree": (
            legacy + pickle.dumps({}, 2) + tree + b"]h\x3ca.",
            "list of storages",
        ),
        "a dict copied again and again": (
            program(pairs + b"ccollections\nOrderedDict\n\x94" + call * 10**5 + b"."),
            steps,
        ),
        "a size copied again and again": (
            program(memoized([b"N"] * 10**5) + b"ctorch\nSize\n\x94" + call * 10**5 + b"."),
            steps,
        ),
        "a size copied from text": (
            program(
                b"\x80\x04X"
                + struct.pack("<I", 10**6)
                + b"a" * 10**6
                + b"\x94ctorch\nSize\n\x94"
                + b"h\x01h\x00\x85R" * 10**5
                + b"."
            ),
            "torch.Size of a str",
        ),
        "attributes set again and again": (
            program(
                b"\x80\x04}(" + b"".join(value + b"N" for value in number) + b"u\x94"
                b"cargparse\nNamespace\n)R" + b"h\x00b" * 10**5 + b"."
            ),
            steps,
        ),
        "a long reference again and again": (
            program(b"\x80\x04" + storage[:-2] + b"N" * 10**5 + b"t\x94" + b"h\x00Q" * 10**5 + b"."),
            steps,
        ),
        "four million empty dicts": (program(b"\x80\x04(" + b"}" * (2**22 - 10) + b"t."), steps),
        "keys of one hash": (
            program(
                b"\x80\x04}("
                + b"".join(b"\x8a\x0e" + (k * (2**61 - 1)).to_bytes(14, "little") + b"N" for k in range(2, 10**5))
                + b"u."
            ),
            "as a key",
        ),
        "a number of a million digits": (
            program(b"\x80\x04\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."),
            "128 bits",
        ),
        "modules within one another": (program(network + b"."), "10,000 modules"),
        "a zip of forty thousand parts": (many.getvalue(), "list of its parts"),
        "a thousand blocks": (
            saved(
                {
                    "cls_token": torch.zeros(1, 1, 64),
                    "patch_embed.proj.weight": torch.zeros(64, 3, 2, 2),
                    **{f"blocks.{block}.mlp.fc1.weight": torch.zeros(1, 64) for block in range(1000)},
                }
            ),
            "more than 512 blocks",
        ),
        "an error that quotes the file": (program(b"\x80\x02S" + b"a" * 10**6 + b"\n."), "no string quotes"),
        "a safetensors key of two lines": (
            safetensors_header({"a\nb": (8, 12), "c": (0, 4)}),
            "invalid offset",
        ),
        "braces in a key": (
            saved(
                {
                    "blocks.{}.norm1.weight": torch.zeros(2),
                    "blocks.{0.__class__}.norm1.weight": torch.zeros(2),
                    "patch_embed.proj.weight": torch.zeros(64, 3, 2, 2),
                }
            ),
            "no BEiT encoder",
        ),
        "keys of several lines": (
            saved(
                {
                    "patch_embed.proj.weight": torch.zeros(2),
                    "\n\x1b[31mbeit: all is well\n" * 1000: torch.zeros(2),
                }
            ),
            "no BEiT encoder",
        ),
    }


def descriptions(good: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Texts of model.json for the weights that `good` describes (five classes), and what the refusal has to say."""

    def told(**changes: Any) -> str:
        return json.dumps({**good, **changes})

    def shaped(**changes: Any) -> str:
        architecture = {**good["architecture"], **changes}
        doubled = ("image_size", "pixel_mean", "pixel_std")
        return told(architecture=architecture, **{name: architecture[name] for name in doubled})

    wrong_types = {
        "width": ["32", None, [32], 32.0, True],
        "depth": ["2", None],
        "patch_size": [8.0],
        "image_size": ["big", None, 32, [8, 8, 8]],
        "pixel_mean": ["abc", None],
        "layer_norm_eps": ["x"],
        "position": ["weird", ["absolute"]],
        "drop_path_rate": [None, {}],
    }
    impossible = {
        "width": [0, -32, 10**18, 10**4000],
        "depth": [0, 513, 30_000, 10**9],
        "num_heads": [0, 5],
        "patch_size": [0],
        "image_size": [[0, 0], [2**62, 2**62]],
        "mlp_ratio": [float("nan"), float("inf"), 1e308],
        "layer_norm_eps": [float("nan"), -1],
        "pixel_mean": [[0.5]],
        "pixel_std": [[0, 0, 0], [float("inf")] * 3],
        "drop_path_rate": [2],
    }
    shapes = {
        f"{name} {value!r:.20}": (shaped(**{name: value}), reason)
        for cases, reason in ((wrong_types, ", but must be "), (impossible, ""))
        for name, values in cases.items()
        for value in values
    }
    return shapes | {
        "a list as the kind": (told(kind=["classifier"]), "kind is ['classifier'], not one of"),
        "an architecture of text": (told(architecture="base"), "architecture is missing"),
        "a key of two lines": (shaped(**{"a\nb": 1}), "is unknown"),
        "no classes": (told(num_classes=0), "num_classes must be positive"),
        "less than none": (told(num_classes=-5), "num_classes must be positive"),
        "classes by name": (told(num_classes="5"), "num_classes is '5', but must be a whole number"),
        "a pool of its own": (told(pool="max"), "pool is 'max', but must be one of"),
        "a number as names": (told(classes=3), "classes is 3"),
        "two names for five": (told(classes=["a", "b"]), "names 2 classes, and its head has 5"),
        "names that are lists": (told(classes=[["a"]] * 5), "classes is "),
        "an origin of text": (told(provenance="abc"), "provenance is 'abc', but must be an object"),
        "a crop of text": (told(crop_pct="all"), "crop_pct is 'all'"),
        "a checksum of another": (told(weights_sha256="0" * 64), "checksum differs"),
        "lists within lists": ("[" * 100_000 + "]" * 100_000, "cannot be read"),
        "a few lists within lists": (told(more=json.loads("[" * 600 + "]" * 600)), "too deep"),
        "a number of 5,000 digits": ('{"kind": ' + "9" * 5000 + "}", "cannot be read"),
        "nothing": ("null", "no JSON object"),
        "seventeen megabytes": (told(more="x" * 17 * 2**20), "too large"),
    }
