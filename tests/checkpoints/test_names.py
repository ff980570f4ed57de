"""What stands for a model: released names, hf://owner/name, and statements behind an @."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import shaken, tiny

import beit
from beit import UserError, load_encoder, load_model
from beit.checkpoints import convert
from beit.checkpoints.own import save_model
from beit.checkpoints.reference import Stated, locate, parse
from beit.checkpoints.store import describe
from beit.cli.main import main
from beit.config.architecture import DiscreteVAEConfig
from beit.presets import released
from beit.presets.released import RELEASED, Release
from beit.tokenizers.dvae import DiscreteVAE

PIXELS = st.tuples(*[st.floats(1e-3, 255.0)] * 3)


@given(
    st.builds(
        Stated,
        num_heads=st.none() | st.integers(1, 99),
        grid=st.none() | st.tuples(st.integers(1, 99), st.integers(1, 99)),
        pixel_mean=st.none() | PIXELS,
        pixel_std=st.none() | PIXELS,
        reduce_zero_label=st.none() | st.booleans(),
        strict=st.booleans(),
    )
)
def test_a_statement_is_read_as_it_was_written(stated: Stated) -> None:
    assert parse(f"a/x@2.pth{stated.text()}") == ("a/x@2.pth", stated)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("heads=4", "'heads' cannot be stated"),
        ("num_heads=4,num_heads=4", "not twice"),
        ("num_heads=four", "num_heads cannot be 'four'"),
        ("num_heads=0", "num_heads must be positive"),
        ("grid=4", "grid must be positive numbers of rows and columns, not (4,)"),
        ("grid=0x4", "grid must be positive"),
        ("pixel_mean=0.5:0.5", "pixel_mean must be three numbers"),
        ("pixel_std=0:1:1", "pixel_std must be"),
        ("pixel_mean=nan:0:0", "pixel_mean must be"),
        ("layers=last", "layers cannot be 'last'"),
        ("layers=3:1:2:3", "layers must be four numbers in ascending order"),
        ("strict=maybe", "strict cannot be"),
    ],
)
def test_statements_that_are_none_are_refused(said: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        locate(f"x.pth@{said}")


def test_what_a_file_cannot_tell_stands_behind_it(tmp_path: Path) -> None:
    model = tiny("mean", image_size=(16, 64), position="absolute", pixel_mean=(0.485, 0.456, 0.406))
    save_model(model, tmp_path / "own", provenance={})
    (note,) = convert(tmp_path / "own", tmp_path / "x.pth", "unilm")
    # What the converter says is what is read: it can be pasted.
    statement = note.rpartition("PATH")[2]
    file = f"{tmp_path / 'x.pth'}{statement}"
    assert load_encoder(file).config.num_heads == describe(file)["architecture"]["num_heads"] == 4
    assert load_encoder(file).grid == (2, 8)
    assert load_encoder(file).config.pixel_mean == (0.485, 0.456, 0.406)
    named = f"{tmp_path / 'x.pth'}@num_heads=4,grid=2x8,pixel_mean=imagenet"
    assert load_encoder(named).config == load_encoder(file).config
    with pytest.raises(UserError, match="num_heads is 4 by one account and 2"):
        load_model(named, num_heads=2)
    with pytest.raises(UserError, match="drop num_heads"):
        load_model(f"{tmp_path / 'own'}@num_heads=4")
    # A name that is a file's own is no statement.
    (tmp_path / "x.pth").rename(tmp_path / "x.pth@num_heads=2")
    stated: Any = load_model(tmp_path / "x.pth@num_heads=2", num_heads=4, grid=(2, 8))
    assert stated.encoder.config.num_heads == 4


# ------------------------------------------------------------------------------------------------------------
# Released models


class Shelf(BaseHTTPRequestHandler):
    """Serves `files`: name -> (content, further headers)."""

    files: dict[str, tuple[bytes, dict[str, str]]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.files:
            self.send_error(404)
            return
        content, headers = self.files[self.path]
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of this machine with a classifier and a tokenizer, and their names."""
    handler = type("Handler", (Shelf,), {"files": {}, "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    names = {
        "beit_tiny": Release("a classifier", "", (f"{at}/beit_tiny.pth",)),
        "dvae": Release("a tokenizer", "", (f"{at}/encoder.pkl", f"{at}/decoder.pkl")),
    }
    monkeypatch.setattr(released, "RELEASED", names)
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    save_model(tiny("mean", position="block_bias"), tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "x.pth", "unilm")
    handler.files["/beit_tiny.pth"] = ((tmp_path / "x.pth").read_bytes(), {})
    yield handler
    server.shutdown()
    server.server_close()


def test_a_name_is_fetched_once_and_checked_from_then_on(
    shelf: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "cache" / "beit_tiny" / "beit_tiny.pth"
    record = file.with_name("beit_tiny.pth.sha256")
    first = load_model("beit_tiny")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record.read_text() == f"{digest}  beit_tiny.pth\n"
    assert f"sha256 {digest}, trusted because none is published" in caplog.text
    caplog.clear()
    again: Any = load_model("beit_tiny")
    assert all(torch.equal(again.state_dict()[key], x) for key, x in first.state_dict().items())
    convert("beit_tiny", tmp_path / "converted", "beit")
    assert describe(tmp_path / "converted")["provenance"]["converted_from"] == "beit_tiny"
    assert shelf.asked == ["/beit_tiny.pth"]
    assert not caplog.records
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"is not what it was.*not {digest}"):
        load_model("beit_tiny")
    # What lies at the address now is not what lay there.
    file.unlink()
    shelf.files["/beit_tiny.pth"] = (bytes(content), {})
    with pytest.raises(UserError, match=f"not {digest} as stands in {record}"):
        load_model("beit_tiny")
    assert sorted(path.name for path in file.parent.iterdir()) == [".lock", record.name]
    # A local file of that name is meant first.
    assert locate(tmp_path / "own")[0] == tmp_path / "own"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Length": "9999999"}, "it ended after|IncompleteRead"),
        (None, "Not Found"),
    ],
)
def test_what_arrives_damaged_is_not_kept(
    shelf: Any, headers: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    content, _ = shelf.files.pop("/beit_tiny.pth")
    if headers:
        shelf.files["/beit_tiny.pth"] = content, headers
    with pytest.raises(UserError, match=message) as error:
        load_model("beit_tiny")
    assert "download it where there is a network, and give its path instead" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "cache/beit_tiny").iterdir()] == [".lock"]
    shelf.files["/beit_tiny.pth"] = content, {}
    # Whoever knows the sum writes it before the first use.
    record = tmp_path / "cache" / "beit_tiny" / "beit_tiny.pth.sha256"
    record.write_text("0" * 64)
    with pytest.raises(UserError, match="not 000"):
        load_model("beit_tiny")
    record.unlink()
    load_model("beit_tiny")


def test_a_tokenizer_has_two_files(shelf: Any, tmp_path: Path) -> None:
    small = {"vocab_size": 512, "width": 64, "stride": 8, "blocks_per_group": 1, "code_width": 8}
    save_model(shaken(DiscreteVAE(DiscreteVAEConfig(**small))), tmp_path / "dvae", provenance={})
    convert(tmp_path / "dvae", tmp_path / "dalle", "dalle")
    for half in ("encoder.pkl", "decoder.pkl"):
        shelf.files[f"/{half}"] = (tmp_path / "dalle" / half).read_bytes(), {}
    assert beit.load_tokenizer("dvae").vocab_size == 512
    assert beit.load_tokenizer("dvae@grid=4x6").image_size == (32, 48)


def test_no_network_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path))
    nowhere = {"beit_tiny": Release("", "", ("http://127.0.0.1:9/beit_tiny.pth",))}
    monkeypatch.setattr(released, "RELEASED", nowhere)
    with pytest.raises(SystemExit) as leave:
        main(["info", "beit_tiny"])
    error = capsys.readouterr().err
    assert leave.value.code == 2
    assert "beit_tiny cannot be fetched from http://127.0.0.1:9/beit_tiny.pth" in error
    assert error.count("\n") == 1


def test_the_table_names_what_the_libraries_name() -> None:
    hub_names = {name for name, release in RELEASED.items() if release.hub}
    assert {name for name in hub_names if name.startswith("timm/")} == {
        f"timm/{name}" for name in timm.list_pretrained("beit_*")
    }
    for name, release in RELEASED.items():
        assert bool(release.files) != bool(release.hub)
        assert release.hub in (None, name)
        assert all(address.startswith("https://") for address in release.files)
        if release.files:
            with pytest.raises(UserError, match=f"did you mean {re.escape(name)}"):
                locate(f"{name}s")
        if name.startswith("beit_"):
            assert release.files == (f"{release.files[0].rpartition('/')[0]}/{name}.pth",)


# ------------------------------------------------------------------------------------------------------------
# The Hugging Face Hub


def test_the_hub_through_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    fetched: list[Any] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        fetched.append((name, allow_patterns[-1]))
        return str(tmp_path / "hf")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = tiny()
    save_model(model, tmp_path / "own", provenance={})
    convert(tmp_path / "own", tmp_path / "hf", "huggingface")
    for name in ("hf://me/beit-tiny", "microsoft/beit-base-patch16-224-pt22k"):
        assert torch.equal(load_model(name).state_dict()["mask_token"], model.mask_token)
    assert describe("hf://me/beit-tiny")["format"] == "huggingface"
    assert {name for name, _ in fetched} == {"me/beit-tiny", "microsoft/beit-base-patch16-224-pt22k"}
    assert {pattern for _, pattern in fetched} == {"model-*.safetensors"}
    # The Hub's cache calls a large file by its checksum.
    weights = tmp_path / "hf" / "model.safetensors"
    blob = tmp_path / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    load_model("hf://me/beit-tiny")
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=f"not {blob.name}"):
        load_model("hf://me/beit-tiny")

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"cannot be fetched \(no network\); download its files"):
        load_model("hf://me/beit-tiny")


def test_without_a_network_the_hub_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real library, at a port where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as an environment may say
    with pytest.raises(SystemExit) as leave:
        main(["info", "hf://me/beit-tiny"])
    error = capsys.readouterr().err
    assert leave.value.code == 2
    assert "hf://me/beit-tiny cannot be fetched" in error
    assert error.count("\n") == 1
