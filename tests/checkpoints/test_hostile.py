"""Hostile files: refused in one line, nothing executed, memory bounded. Honest ones: read as torch reads them."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hostile_files import bombs, descriptions, hostile, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny
from torch import Tensor

from beit import UserError, load_model
from beit.checkpoints.reading.torch_file import open_tensor_file
from beit.checkpoints.store import describe, save_model
from beit.cli.main import main
from beit.config.architecture import DiscreteVAEConfig
from beit.models.segmentation import SemanticSegmenter

pytestmark = pytest.mark.slow

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
    attacks, reasons = bombs(), {}
    for number, (title, (content, reason)) in enumerate({**hostile(str(canary)), **attacks}.items()):
        folder = tmp_path / f"{number:02}"
        folder.mkdir()
        for name in ["encoder.pkl"] if title in attacks else ["checkpoint.pth", "encoder.pkl"]:
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


def test_every_hostile_description_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tiny("mean"), tmp_path, provenance={})
    file = tmp_path / "model.json"
    good = json.loads(file.read_text())
    del good["checksum"]  # which is the last thing to be looked at
    for title, (text, reason) in descriptions(good).items():
        file.write_text(text)
        with pytest.raises(UserError) as error:
            load_model(tmp_path)
        message = str(error.value)
        assert reason in message, (title, message)
        assert str(tmp_path / "model") in message
        assert message.isprintable()
        assert "--" not in message
        assert len(message) < 500, title
        if "safetensors" not in message:  # what only the weights show, a description does not
            with pytest.raises(UserError):
                describe(tmp_path)
    file.write_text(json.dumps({**good, "provenance": {"command": 3}}))
    with pytest.raises(SystemExit) as left:
        main(["info", str(tmp_path)])
    assert left.value.code in (0, None)
    assert "command 3" in capsys.readouterr().out


def test_networks_without_end_are_refused() -> None:
    with pytest.raises(UserError, match="more than 512"):
        DiscreteVAEConfig(blocks_per_group=10**6)
    with pytest.raises(UserError, match="at most 8192, not so large"):
        DiscreteVAEConfig(stride=2**1000, image_size=(2**1000, 2**1000))
    with pytest.raises(UserError, match="ascending numbers"):
        SemanticSegmenter(tiny().encoder, 3, decoder="pup", layers=[1] * 10**6, channels=8)


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
