"""Names of files are data: whatever bytes they hold, results, labels and the lists of a run mean the same file."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import finetune_config

from beit.checkpoints.own import read_description
from beit.config.errors import UserError
from beit.config.use import CheckConfig, EvaluateConfig, PredictConfig, ReportConfig
from beit.data.label_file import LabelFile, classes_in_file
from beit.data.label_maps.pairs import open_pairs
from beit.data.sources.files import FileSource, full_name
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_images, open_splits
from beit.data.sources.subsets import Subset
from beit.recipes.check.run import check
from beit.recipes.evaluate.run import evaluate
from beit.recipes.finetune import finetune
from beit.recipes.predict.maps import Legend, map_writer
from beit.recipes.predict.output import name_in_line, results_file
from beit.recipes.predict.run import predict
from beit.recipes.report import report
from beit.stages.overlap import count_trained_on, held_back_of, write_images

ODD = (
    "Screenshot 9.41\u202fAM.png",
    "no\u00a0break.png",
    "\u3000wide first.png",
    " blank first.png",
    "tab\there.png",
    "line\nbreak.png",
    "return\rhere.png",
    "\u2028\x85\x0c.png",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",
    os.fsdecode(b"caf\xe9.png"),
    "e\u0301.png",
    "\x1b[31mred\u202egnp.png",
    'quote"s",.png',
    '"quoted".png',
    "a;b,c.png",
    "back\\x5c.png",
    "plain.png",
    "two\n\nlines.png",
    "crlf\r\n.png",
    "--flag.png",
    "dots...png",
    "trailing .png",
    "\u00e9.png",  # beside the other form of it above
    "\ufeffmark.png",
    "=sum.png",
    "a.tar:b.png",
    "%20.png",
    "null.png",
    "\x1c.png",
    os.fsdecode(b"\xff\xed\xa0\x80.png"),
    "x" * 251 + ".png",  # as long as a name can be
    "\u65e5" * 83 + ".png",
)

CLASSES = ("plain", "with; and space\u3000", os.fsdecode(b"caf\xe9\t"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An image of each name, in folders of such names."""
    for number, name in enumerate(ODD):
        folder = tmp_path / "photos" / f"{name[:-4]} {number}"[:60]
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name, "PNG")
    return tmp_path / "photos"


def write_results(source: FileSource, path: Path) -> None:
    """What `beit predict` writes where image i is of class i % 3."""
    with results_file(path) as write:
        for index in range(len(source)):
            top = [
                {"label": CLASSES[index % 3], "probability": 0.9},
                {"label": "other", "probability": 0.1},
            ]
            write({"image": source.path(index), **top[0], "top": top})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("named", ["absolute", "from the current folder"])
def test_what_predict_writes_labels_reads(
    suffix: str, named: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "results" / f"labels{suffix}"
    source = open_images([str(photos) if named == "absolute" else "photos"])
    write_results(source, file)
    train = open_splits([str(photos)], holdout=Holdout(0))["train"]
    labels = LabelFile(file, multilabel=False)
    relabeled = labels.apply(train)
    assert relabeled is not None and len(relabeled) == len(ODD) and not labels.unused()
    classes_of = classes_in_file(str(file))
    for index in range(len(train)):
        assert relabeled.key(index) == source.key(index)
        assert relabeled.classes[relabeled.label(index)] == CLASSES[index % 3]
        assert classes_of(source.key(index), source.path(index)) == [CLASSES[index % 3]]


def test_files_of_results_hold_the_names_as_they_are(photos: Path, tmp_path: Path) -> None:
    source = open_images([str(photos)])
    names = {source.path(index) for index in range(len(source))}
    assert all(os.path.exists(name) for name in names) and len(names) == len(ODD)
    write_results(source, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == names
    assert b"/caf\xe9.png" in (tmp_path / "x.csv").read_bytes()
    write_results(source, tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_bytes().decode("utf-8").split("\n")[:-1]
    assert {json.loads(line)["image"] for line in lines} == names
    with results_file(tmp_path / "x.npz") as write:
        for name in sorted(names):
            write({"image": name, "mean": np.zeros(2)})
    assert np.load(tmp_path / "x.npz")["image"].tolist() == sorted(names)


@pytest.mark.parametrize("packed", [False, True])
def test_maps_are_found_again_by_the_names_of_their_images(packed: bool, photos: Path, tmp_path: Path) -> None:
    """What `beit predict` writes, --label-maps reads."""
    data = tmp_path / "photos.tar" if packed else photos
    if packed:
        with tarfile.open(data, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(photos, "photos")
    source = open_images([str(data)])
    write = map_writer(
        tmp_path / "out", Legend(("a", "b", "c"), [(0, 0, 0), (9, 9, 9), (5, 5, 5)], 0), source, overlays=False
    )
    for index in range(len(source)):
        label_map = np.full((4, 4), index % 3, np.uint8)
        write({"image": source.path(index), "label_map": label_map, "classes": {"a": 1.0}})
    assert not [path for path in (tmp_path / "out").rglob(".*")]
    found = open_pairs([str(data)], holdout=Holdout(0), label_maps=str(tmp_path / "out" / "maps"))["train"]
    class_of = {source.key(index): index % 3 for index in range(len(source))}
    assert {found.key(i): int(found.label(i)[0, 0]) for i in range(len(found))} == class_of
    assert len(class_of) == len(ODD)


@pytest.mark.slow
def test_a_classifier_of_classes_of_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its run, its model and its restart bear them; what it predicts are the names of the folders."""
    kinds = {CLASSES[2]: (220, 40, 40), "\u202fdog\x1b[31m": (40, 40, 220)}
    for kind, colour in kinds.items():
        (tmp_path / "data" / kind).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (34, 34), (*colour[:2], colour[2] + index)).save(
                tmp_path / "data" / kind / f"{index}.png"
            )
    run = tmp_path / "run"
    finetune(finetune_config(tmp_path / "data", run, steps=1))
    assert read_description(run)["classes"] == sorted(kinds)
    out = tmp_path / "labels.csv"
    predict(PredictConfig(images=(str(tmp_path / "data"),), model=str(run), out=str(out), workers=0))
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} <= kinds.keys()
    report(ReportConfig(runs=(str(run),)))
    evaluate(EvaluateConfig(model=str(run), data=str(tmp_path / "data"), workers=0))
    predict(PredictConfig(images=(str(tmp_path / "data"),), model=str(run), workers=0))
    check(CheckConfig(data=str(tmp_path / "data"), workers=0))
    shown = "".join(capsys.readouterr()) + (run / "log.txt").read_text()
    assert "\x1b" not in shown and "dog\\x1b[31m" in shown


def test_names_that_spreadsheets_take_for_formulas_are_kept_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with results_file(tmp_path / "x.csv") as write:
        for name in ("a.png", "=cmd.png", "@b.png"):
            write({"image": name, "top": [{"label": "cat", "probability": 1e-5}]})
    assert capsys.readouterr().err.count("begin as formulas do") == 1
    assert "=cmd.png,cat" in (tmp_path / "x.csv").read_text()


def test_what_is_shown_does_nothing_to_a_terminal_or_a_line(photos: Path) -> None:
    source = open_images([str(photos)])
    for index in range(len(source)):
        assert source.name(index).isprintable()
        line = name_in_line(source.path(index))
        assert len(line.encode().splitlines()) == 1 and "\t" not in line and "\x1b" not in line
    piped = [name_in_line(name) for name in ODD]
    assert all(ODD[index] == piped[index] for index in (0, 1, 2, 3, 8, 10, 12, 13, 14, 15, 16))
    assert piped[9] == "caf\\xe9.png"


def test_the_lists_of_a_run_name_the_files_themselves(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("model", "config.yaml", "status.json"):
        (run / name).mkdir(parents=True)
    source = open_images([str(photos)])
    half = [Subset(source, range(start, len(source), 2)) for start in (0, 1)]
    write_images(run, half[0], half[1])
    held_back = {full_name(half[1], index) for index in range(len(half[1]))}
    assert held_back_of(str(run)) == held_back and all(map(os.path.exists, held_back))
    assert count_trained_on(str(run), half[0]) == len(half[0]) and count_trained_on(str(run), half[1]) == 0
    listed = open_splits([str(photos)], holdout=Holdout(listed=held_back_of(str(run))))["val"]
    assert {full_name(listed, index) for index in range(len(listed))} == held_back
    (run / "held-back.txt").write_text(f"{photos}/a b.png\n{photos}/\u00e4.png\n", encoding="utf-8")
    assert held_back_of(str(run)) == {f"{photos}/a b.png", f"{photos}/\u00e4.png"}
    (run / "held-back.txt").write_text('"/cut \\u20', encoding="utf-8")
    assert held_back_of(str(run)) == {"/cut "}


# ------------------------------------------------------------------------------------------------------------
# Names in a file that somebody wrote


def labels_of(root: Path, text: bytes) -> dict[str, str]:
    """The classes that a CSV gives the images beneath `root`."""
    (root.parent / "l.csv").write_bytes(text)
    source = open_splits([str(root)], holdout=Holdout(0))["train"]
    relabeled = LabelFile(root.parent / "l.csv", multilabel=False).apply(source)
    assert relabeled is not None and relabeled.classes is not None
    return {relabeled.key(i): relabeled.classes[relabeled.label(i)] for i in range(len(relabeled))}


def flat(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    return root


@pytest.mark.parametrize(
    "text",
    [
        b"001,cat\n002,dog\n",
        b"id,class\n001,cat\n002,dog\n",
        b"id,class\r\n001,cat\r\n002,dog\r\n",
        b"001,cat\r002,dog\r",
        b" 001.png ,cat\n002 ,dog\n",
        b"p/001.png,cat\np/002,dog\n",
    ],
)
def test_names_without_endings_and_with_space_around_them(text: bytes, tmp_path: Path) -> None:
    assert labels_of(flat(tmp_path / "p", "001.png", "002.png"), text) == {"001.png": "cat", "002.png": "dog"}


def test_a_name_without_its_ending_that_may_mean_two_images(tmp_path: Path) -> None:
    root = flat(tmp_path / "p", "001.png", "001.jpg", "002.png", "v1.2.png")
    with pytest.raises(UserError, match=r"'001' may mean several images; write its ending"):
        labels_of(root, b"001,cat\n002,dog\n")
    assert labels_of(root, b"001.png,cat\nv1.2,dog\n") == {"001.png": "cat", "v1.2.png": "dog"}


def test_a_file_that_is_no_utf_8(tmp_path: Path) -> None:
    root = flat(tmp_path / "p", os.fsdecode(b"caf\xe9.png"), "b.png")
    assert labels_of(root, b"caf\xe9.png,cat\nb.png,dog\n") == {
        os.fsdecode(b"caf\xe9.png"): "cat",
        "b.png": "dog",
    }
    for text in (b"b.png,caf\xe9\nx.png,dog\n", "image,class\nb.png,cat\nx.png,dog\n".encode("utf-16")):
        with pytest.raises(UserError, match="not text in UTF-8"):
            labels_of(root, text)
