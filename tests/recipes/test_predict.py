"""Prediction: every good image gets its result, every bad one is named, whatever the model makes of images."""

from __future__ import annotations

import csv
import json
import os
import sys
import tarfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.cli.main import main
from beit.data.decode import decode_image
from beit.data.label_file import classes_in_file, read_label_rows
from beit.data.sources.files import FileSource
from beit.data.views.evaluation import EvaluationView
from beit.recipes.predict import run as prediction

REAL = os.environ.get("BEIT_REAL_DATA")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leave:
        main([str(argument) for argument in arguments])
    return int(leave.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red, green and blue images in nested folders and odd formats, and four files that are none."""
    place = tmp_path / "new images"
    (place / "deep" / "er").mkdir(parents=True)
    for name, colour in {
        "red, one.png": (210, 50, 50),
        "deep/GREEN.JPG": (50, 200, 50),
        "deep/er/blue.webp": (50, 50, 210),
        "wide.png": (200, 60, 60),
    }.items():
        side = (300, 8) if name == "wide.png" else (48, 37)
        Image.new("RGB", side, colour).save(place / name, "JPEG" if "JPG" in name else None)
    Image.new("L", (30, 30), 128).save(place / "gray.gif")
    (place / "broken_empty.jpg").touch()
    (place / "broken_text.png").write_text("<html>no image</html>")
    (place / "deep" / "broken_half.jpg").write_bytes((place / "deep" / "GREEN.JPG").read_bytes()[:200])
    (place / "broken_link.png").symlink_to("nowhere")
    (place / "notes.txt").write_text("no image and not called one")
    return place


BROKEN = {"broken_empty.jpg", "broken_text.png", "broken_half.jpg", "broken_link.png"}


def test_a_folder_with_broken_files(folder: Path, probed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "labels" / "labels.csv"
    assert run("predict", "--model", probed, folder, "--out", out, "--batch-size", "2", "--workers", "0") == 0
    output = capsys.readouterr()
    assert all(f"{name}: " in output.err for name in BROKEN)
    assert "labels for 5 of 9 images; 4 could not be read" in output.out
    lines = out.read_text(encoding="utf-8").splitlines()
    rows = {Path(row["image"]).name: row for row in csv.DictReader(lines)}
    assert rows.keys() == {"red, one.png", "GREEN.JPG", "blue.webp", "wide.png", "gray.gif"}
    labels = {name: row["label"] for name, row in rows.items() if name != "gray.gif"}
    assert labels == {"red, one.png": "red", "GREEN.JPG": "green", "blue.webp": "blue", "wide.png": "red"}
    for row in rows.values():
        shares = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_two_processes_write_what_one_writes(folder: Path, probed: Path, tmp_path: Path, capfd: Any) -> None:
    """In the order of the images, of which the second rank has one fewer; each names the damage that it meets."""
    files = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.csv"
        given = ("--batch-size", "2", "--workers", "0", "--device", "cpu", "--devices", devices)
        assert run("predict", "--model", probed, folder, "--out", out, *given) == 0
        text = capfd.readouterr()
        assert text.out.count("labels for 5 of 9 images; 4 could not be read") == 1
        assert all(text.err.count(f"{name}: ") == 1 for name in BROKEN)
        files.append(out.read_text())
    assert files[0] == files[1]


def test_names_of_any_bytes_come_out_as_they_are(folder: Path, probed: Path, tmp_path: Path, capsys: Any) -> None:
    """And what is broken under such a name is told by one that a terminal can show."""
    odd = os.fsdecode(b"deep/caf\xe9\xe2\x80\xaf9.41\t.png")
    (folder / "wide.png").rename(folder / odd)
    (folder / "broken_text.png").rename(folder / "broken\u202f\x1b[2J.png")
    for out in (tmp_path / "x.csv", tmp_path / "x.jsonl"):
        assert run("predict", "--model", probed, folder, "--out", out, "--workers", "0") == 0
        output = capsys.readouterr()
        assert "broken\\u202f\\x1b[2J.png: not an image" in output.err and "\x1b" not in output.err
        labels = classes_in_file(str(out))
        assert labels("", str(folder / odd)) == ["red"] and len(read_label_rows(out)) == 5
    assert run("predict", "--model", probed, folder / odd) == 0
    assert capsys.readouterr().out.startswith(f"{folder}/deep/caf\\xe9")


def test_lines_can_be_piped_on(folder: Path, probed: Path, tmp_path: Path, capsys: Any) -> None:
    """Without a file the labels alone are on standard output; a bare path and one flag are enough."""
    first, second = folder / "red, one.png", folder / "deep" / "er" / "blue.webp"
    assert run("predict", second, "--model", probed, "--top-k", "2", first) == 0
    output = capsys.readouterr()
    lines = [line.split("\t") for line in output.out.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [(str(second), "blue"), (str(first), "red")]
    assert all(len(line) == 5 for line in lines)
    assert "labels for 2 of 2 images" in output.err
    assert run("predict", first, "--model", probed, "--out", tmp_path / "x.jsonl") == 0
    record = json.loads((tmp_path / "x.jsonl").read_text())
    assert record["label"] == record["top"][0]["label"] == "red"
    assert record["probability"] == pytest.approx(float(lines[1][2]), abs=1e-3)


@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_features_take_no_more_memory_for_more_images(
    kind: str, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither images nor features of more than two batches are there at once."""
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(40):
        Image.new("RGB", (40, 40), (6 * number, 90, 90)).save(place / f"{number:02d}.png")
    if kind == "shard":
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            tar.add(place, "photos")
        place = tmp_path / "photos.tar"
    images, features = Alive(), Alive()
    decode, ask = FileSource.image, prediction.each_batch
    monkeypatch.setattr(FileSource, "image", lambda source, index: images.watch(decode(source, index)))

    def watched_batches(apply: Any, *arguments: Any, **options: Any) -> Any:
        def applied(batch: Any) -> Any:
            return {name: features.watch(x) for name, x in apply(batch).items()}

        return ask(applied, *arguments, **options)

    monkeypatch.setattr(prediction, "each_batch", watched_batches)
    out, flags = tmp_path / "f.npz", ("--features", "--batch-size", "4", "--workers", "0")
    assert run("predict", place, "--model", pretrained, "--out", out, *flags) == 0
    assert np.load(out)["mean"].shape == (40, 16) and images.seen == 40 and features.seen == 20
    assert images.most <= 2 * 4 and features.most <= 2 * 2


class Alive:
    """Counts the tensors that it was shown, and how many of them there were at once."""

    def __init__(self) -> None:
        self.seen = self.most = 0
        self._references: list[weakref.ref[torch.Tensor]] = []

    def watch(self, tensor: torch.Tensor) -> torch.Tensor:
        self._references = [x for x in self._references if x() is not None] + [weakref.ref(tensor)]
        self.seen, self.most = self.seen + 1, max(self.most, len(self._references))
        return tensor


def test_tokens_and_features_are_the_models_own(
    folder: Path, trained_tokenizer: Path, pretrained: Path, tmp_path: Path
) -> None:
    image = folder / "deep" / "er" / "blue.webp"
    pixels = decode_image(image.read_bytes(), "blue")

    def view(side: int) -> torch.Tensor:
        return EvaluationView((side, side))(pixels, np.random.default_rng()).image[None]

    flags = ("--precision", "float32", "--workers", "0")
    assert run("predict", folder, "--model", trained_tokenizer, "--out", tmp_path / "t.npz", *flags) == 0
    assert run("predict", folder, "--model", trained_tokenizer, "--out", tmp_path / "t.jsonl", *flags) == 0
    arrays = np.load(tmp_path / "t.npz")
    expected = beit.load_tokenizer(trained_tokenizer).encode(view(16))[0]
    row = [Path(name).name for name in arrays["image"]].index("blue.webp")
    assert arrays["tokens"].shape == (5, 4, 4)
    assert arrays["tokens"][row].tolist() == expected.tolist()
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == arrays["tokens"].tolist()

    encoder = beit.load_encoder(pretrained)
    for layer in (None, 0):
        chosen = () if layer is None else ("--layer", layer)
        assert run("predict", image, "--model", pretrained, "--out", tmp_path / "f.npz", *chosen, *flags) == 0
        features = np.load(tmp_path / "f.npz")
        with torch.no_grad():
            tokens = encoder.states(view(32), [-1 if layer is None else layer])[0]
        np.testing.assert_allclose(features["mean"], tokens[:, 1:].mean(dim=1).numpy(), atol=1e-6)
        np.testing.assert_allclose(features["cls"], tokens[:, 0].numpy(), atol=1e-6)


def test_tar_shards_are_read_like_folders(folder: Path, probed: Path, tmp_path: Path, capsys: Any) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, names in enumerate((["red, one.png", "broken_text.png"], ["deep/er/blue.webp", "wide.png"])):
        with tarfile.open(shards / f"s-{number}.tar", "w") as tar:
            for name in names:
                tar.add(folder / name, name)
    expected = {"red, one.png": "red", "blue.webp": "blue", "wide.png": "red"}
    for value in (str(shards), str(shards / "s-{0..1}.tar")):
        assert run("predict", value, "--model", probed, "--out", tmp_path / "labels.jsonl") == 0
        records = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
        assert {Path(record["image"]).name.rpartition(":")[2]: record["label"] for record in records} == expected
    assert records[0]["image"].endswith("s-1.tar:deep/er/blue.webp")
    assert "s-0.tar:broken_text.png: not an image" in capsys.readouterr().err
    # A folder with images at any depth is a folder, whatever archives lie in it.
    (folder / "packed.tar").write_bytes((shards / "s-0.tar").read_bytes())
    assert run("predict", folder / "deep", folder, "--model", probed, "--out", tmp_path / "x.csv") == 0
    assert "labels for 7 of 12 images" in capsys.readouterr().out
    with tarfile.open(tmp_path / "small.tgz", "w:gz") as tar:
        tar.add(folder / "wide.png", "wide.png")
    assert run("predict", tmp_path / "small.tgz", "--model", probed) == 2
    assert "--images" in (message := capsys.readouterr().err) and "compressed with gzip" in message


def test_images_are_read_as_their_results_are_taken(
    folder: Path, probed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beit.data.sources.files import FileSource

    read: list[int] = []
    decode = FileSource.image
    monkeypatch.setattr(FileSource, "image", lambda self, index: (read.append(index), decode(self, index))[1])
    config = beit.PredictConfig(images=(str(folder),), model=str(probed), batch_size=2, workers=0)
    records = beit.predictions(config)
    assert read == []
    assert next(records)["label"] in ("red", "green", "blue")
    assert 0 < len(read) < 9
    assert len(list(records)) == 4 and len(read) == 9


def test_lines_for_a_pipe_pass_by_the_progress_bar(
    folder: Path, probed: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("predict", folder / "deep", "--model", probed, "--batch-size", "1", "--workers", "0") == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == ["green", "blue"]


def test_mistakes_are_one_line(
    folder: Path, probed: Path, trained_tokenizer: Path, tmp_path: Path, capsys: Any
) -> None:
    image, empty = folder / "wide.png", tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[list[object], int, str]] = [
        ([image, "--model", tmp_path / "none"], 2, "none does not exist"),
        ([tmp_path / "none.jpg", "--model", probed], 2, "none.jpg: no such folder or file"),
        ([empty, "--model", probed], 2, "--images"),
        (["--model", probed], 2, "needs IMAGES"),
        ([image, "--model", empty], 2, "of no known format"),
        ([image, "--model", trained_tokenizer], 2, "--out FILE.jsonl or FILE.npz"),
        ([image, "--model", probed, "--out", "x.npz"], 2, "FILE.csv or FILE.jsonl"),
        ([image, "--model", probed, "--layer", "1"], 2, "--layer is for features"),
        ([image, "--model", probed, "--layer", "0"], 2, "--layer is for features"),
        ([image, "--model", probed, "--window", "slide"], 2, "--window is for label maps"),
        ([folder / "broken_text.png", "--model", probed], 1, "of 1 image none could be read"),
    ]
    for arguments, status, expected in cases:
        assert run("predict", *arguments) == status, arguments
        output = capsys.readouterr()
        messages = [line for line in output.err.splitlines() if line.startswith("beit: ")]
        assert len(messages) == 1 and expected in messages[0], output.err
        assert not output.out


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_the_awkward_folder(probed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "labels.jsonl"
    assert run("predict", f"{REAL}/awkward", "--model", probed, "--out", out) == 0
    output = capsys.readouterr()
    named = {Path(json.loads(line)["image"]).name for line in out.read_text().splitlines()}
    files = {path.name for path in Path(f"{REAL}/awkward").iterdir() if path.suffix != ".tsv"}
    missing = files - named
    # Bit flips leave a picture that decodes, with damage in it.
    assert missing == {name for name in files if name.startswith("broken_")} - {"broken_bitflips.jpg"}
    assert all(name in output.err for name in missing)
    assert f"labels for {len(named)} of {len(files)} images; {len(missing)} could not be read" in output.out
