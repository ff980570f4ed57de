"""Which classes label maps have: named by a table, by a model, or counted; and what is said of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair_files import NUMBERS, keys, mistake, pairs, table_file, write_pairs
from PIL import Image

from beit.config.errors import UserError
from beit.data.label_maps.pairs import open_pairs
from beit.data.label_maps.table import MAX_CLASSES, generated_palette, read_class_table
from beit.data.sources.holdout import Holdout

pytestmark = pytest.mark.slow


def test_tables_give_names_and_colours(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    text = "mask_value\tname\tr\tg\tb\n0\tvoid\t0\t0\t0\n2\tcar\t4\t5\t6\n1\tsky\t1\t2\t3\n3\ttree\t7\t8\t9\n"
    path = table_file(tmp_path, text, "classes.tsv")
    reduced = pairs(tmp_path, reduce_zero_label=True)
    assert reduced.classes == ("sky", "car", "tree") and reduced.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert f"{path}: 0 ('void') is ignored" in reduced.notes
    assert pairs(tmp_path).classes == ("void", "sky", "car", "tree")
    other = table_file(tmp_path, "value,name\n0,w\n1,x\n2,y\n3,z\n255,void\n", "other.csv")
    named = pairs(tmp_path, class_table=other, classes=["w", "x", "y", "z"])
    assert named.classes == ("w", "x", "y", "z") and named.palette == generated_palette(4)
    assert named.fingerprint != pairs(tmp_path).fingerprint


def test_what_zero_means_is_said_to_whoever_may_choose(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    off, on = (
        "0 in a label map: the class '{}' (--reduce-zero-label would ignore it)",
        "0 in a label map: no class",
    )
    assert off.format("0") in pairs(tmp_path).notes
    assert f"{on} (--reduce-zero-label)" in pairs(tmp_path, reduce_zero_label=True).notes
    table_file(tmp_path, "value,name\n0,sky\n1,a\n2,b\n3,c\n")
    assert off.format("sky") in pairs(tmp_path).notes
    assert any(note.startswith(on) for note in pairs(tmp_path, reduce_zero_label=True).notes)
    for name in ("Unlabelled", "to be ignored", "void"):
        table_file(tmp_path, f"value,name\n0,{name}\n1,a\n2,b\n3,c\n")
        said = f"the class '{name}', learned like any other; --reduce-zero-label ignores it"
        assert any(note.endswith(said) for note in pairs(tmp_path).notes)
    assert not any("in a label map" in note for note in pairs(tmp_path, classes=["void", *"abc"]).notes)
    scenes = [open_pairs(["demo"], holdout=Holdout(0.1), reduce_zero_label=x)["val"] for x in (False, True)]
    assert off.format(scenes[0].classes[0]) in scenes[0].notes and any(on in note for note in scenes[1].notes)


def test_a_table_in_use_is_named_and_not_counted_among_what_is_ignored(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    path = table_file(tmp_path, "value,name\n0,a\n1,b\n2,c\n3,d\n")
    used = pairs(tmp_path)
    assert f"classes from {path}" in used.notes and not any("other files" in note for note in used.notes)
    for name in ("mine.csv", "read.me"):
        (tmp_path / name).write_bytes(Path(path).read_bytes())
    for chosen in (path, str(tmp_path / "mine.csv")):
        named = pairs(tmp_path, class_table=chosen)
        assert f"classes from {chosen}" in named.notes
        assert f"{tmp_path}: 2 other files ignored (1 .csv, 1 .me)" in named.notes
    outside = tmp_path.with_suffix(".csv")
    outside.write_bytes(Path(path).read_bytes())
    apart = pairs(tmp_path, class_table=str(outside))
    assert any("3 other files ignored (2 .csv, 1 .me)" in note for note in apart.notes)


def test_a_table_of_many_more_classes_than_the_maps_have_is_doubted(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a", "training/b", "validation/c")
    doubted = "of {} classes occur in none of 2 label maps looked at, nor any number above 3; is {} their table?"
    for classes, unused in ((7, None), (8, None), (9, 5), (150, 146)):
        path = table_file(tmp_path, "value,name\n" + "".join(f"{i},c{i}\n" for i in range(classes)))
        found = [note for note in pairs(tmp_path).notes if "their table?" in note]
        assert found == ([] if unused is None else [f"{unused} {doubted.format(classes, path)}"])


def test_generated_colours_differ() -> None:
    palette = generated_palette(MAX_CLASSES)
    assert len(set(palette)) == MAX_CLASSES and all(0 <= shade <= 255 for color in palette for shade in color)


@pytest.mark.parametrize(
    ("text", "reduced", "reason"),
    [
        ("value,name\n1,a\n2,b\n", False, "numbers its classes from 1, .*--reduce-zero-label"),
        ("value,name\n0,a\n2,b\n", False, "has no class 1"),
        ("value,name\n0,a\n1,b\n1,c\n", False, "names 1 twice"),
        ("value,name\n0,a\n1,a\n", False, "two classes of the name 'a'"),
        ("value,name\n0,a\n1,b\n", True, "has one class; segmentation needs at least two"),
        ("value,name\n", False, "has no class; "),
        ("0,a\n1,b\n", False, "must start with a line that names its columns"),
        ("value,name\nx,a\n", False, "the line 'x,a' has no number"),
        ("value,name,r,g,b\n0,a,1,2,256\n", False, "the line '0,a,1,2,256'"),
        ("value,name\n" + "".join(f"{i},c{i}\n" for i in range(255)), False, "has 255 classes; 254 at most"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, reduced: bool, reason: str) -> None:
    path = table_file(tmp_path, text)
    with pytest.raises(UserError, match=reason) as caught:
        read_class_table(path, reduced)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_the_training_maps_and_the_model_decide_on_classes(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    write_pairs(tmp_path, "validation/b", numbers=NUMBERS // 2)
    assert pairs(tmp_path, "val").classes == ("0", "1", "2", "3")
    assert pairs(tmp_path, "val", classes=["p", "q"]).classes == ("p", "q")
    said = mistake(tmp_path, classes=["p", "q"])
    assert "a.png holds the number 2, but the classes of the model" in said
    assert "the model reads 0 as 'p'" in said and "--" not in said
    table_file(tmp_path, "value,name\n0,p\n1,q\n")
    assert pairs(tmp_path, "val", classes=["p", "q"]).classes == ("p", "q")
    for classes in (["q", "p"], ["p", "q", "r"]):
        assert "choose data with the model's classes" in mistake(tmp_path, "val", classes=classes)
    path = table_file(tmp_path, "value,name\n1,p\n2,q\n")
    said = mistake(tmp_path, "val", classes=["p", "q"])
    assert said.startswith(path) and said.endswith("; the model reads 0 as 'p', so choose data that does")


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize(
    "classes",
    [
        ["wall", "building", "Traffic Light", "sky"],
        ["wall", "building, edifice", "traffic light", "sky"],
        ["wall", "edifice", "traffic light, signal", "Sky"],
        "numbers",
    ],
)
def test_a_model_may_have_other_names_for_the_same_classes(tmp_path: Path, classes: Any, reduced: bool) -> None:
    write_pairs(tmp_path, "validation/a", numbers=NUMBERS + reduced)
    names = ("wall", "building;edifice", "traffic;light;traffic;signal", "sky")
    lines = [f"{number},{name}\n" for number, name in enumerate(names, int(reduced))]
    table_file(tmp_path, "value,name\n" + "".join(lines))
    if classes == "numbers":
        classes = [str(number) for number in range(int(reduced), 4 + reduced)]
    source = pairs(tmp_path, "val", classes=classes, reduce_zero_label=reduced)
    assert source.classes == tuple(classes) and torch.equal(source.label(0), torch.from_numpy(NUMBERS))
    assert any("classes have other names in the model" in note for note in source.notes)
    same = pairs(tmp_path, "val", classes=names, reduce_zero_label=reduced)
    assert not any("other names" in note for note in same.notes)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (
            ["wall", "car", "door", "sky"],
            "number 1 is 'floor' there and 'car' in the model; the model reads 0 as",
        ),
        (
            ["wall", "floor", "sky", "door"],
            "number 2 is 'door' there and 'sky' in the model, and 1 other differs",
        ),
        (["wall", "floor", "door"], "has 4 classes, the model 3: the number 3 is 'sky' there and nothing in"),
        (["wall", "floor", "car door", "sky"], "number 2 is 'door' there and 'car door' in"),
    ],
)
def test_the_first_class_that_a_model_does_not_share_is_named(
    tmp_path: Path, classes: list[str], reason: str
) -> None:
    write_pairs(tmp_path, "validation/a")
    table_file(tmp_path, "value,name\n0,wall\n1,floor\n2,door\n3,sky\n")
    assert reason in mistake(tmp_path, "val", classes=classes)


def test_sparse_data_with_a_table_or_a_model_is_not_black_and_white(tmp_path: Path) -> None:
    write_pairs(tmp_path, *map(str, range(40)), numbers=NUMBERS // 2 * 255)
    assert pairs(tmp_path, classes=["ground", "crack"]).classes == ("ground", "crack")
    rare = tmp_path / keys(pairs(tmp_path, classes=["ground", "crack"]))[1].replace("images", "annotations")
    plain = rare.read_bytes()
    Image.fromarray(NUMBERS // 2).save(rare)
    assert pairs(tmp_path).classes == ("0", "1")  # more are counted than are looked over
    rare.write_bytes(plain)
    table_file(tmp_path, "value,name\n0,ground\n1,crack\n")
    assert pairs(tmp_path).classes == ("ground", "crack")
    assert any("1 of 2 classes occur in none" in note and "above 0;" in note for note in pairs(tmp_path).notes)


@pytest.mark.parametrize(
    ("numbers", "reduced", "said"),
    [
        (
            [0],
            False,
            "holds 0 alone, like every other map that was looked at; 255 means 'no class', so number",
        ),
        (
            [255],
            False,
            "holds 255 alone, .*; 255 means 'no class', so number the classes 0, 1, 2 ..., two at",
        ),
        ([0, 255], False, "holds 0 and 255 alone, "),
        (
            [0, 1, 255],
            True,
            r"holds 0, 1 and 255 alone, .*; 0 \(--reduce-zero-label\) and 255 mean 'no class', so",
        ),
        ([255], True, "holds 255 alone, .* number the classes 1, 2, 3 ..., two at least"),
    ],
)
def test_maps_of_less_than_two_classes_are_refused(
    tmp_path: Path, numbers: list[int], reduced: bool, said: str
) -> None:
    write_pairs(tmp_path, *"abcd", numbers=np.resize(np.array(numbers, dtype=np.uint8), (4, 6)))
    assert re.search(rf"annotations/[a-d]\.png {said}", mistake(tmp_path, reduce_zero_label=reduced))


def test_maps_that_nobody_can_read_are_not_those_of_one_class(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    (tmp_path / "annotations/training/a.png").write_bytes(b"no picture")
    assert mistake(tmp_path).startswith("of 1 label map none can be read; `beit check`")
