"""What is held back where a set has no `val`: exact, evenly of the classes, undivided, and alike for every verb."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_files import NUMBERS, save
from PIL import Image
from test_sources import keys, write_images

from beit.config.errors import UserError
from beit.config.run import DataConfig
from beit.data.base import Split, split_of
from beit.data.label_file import classes_in_file
from beit.data.label_maps.pairs import open_pairs
from beit.data.sources.holdout import Holdout, choose_held_back, units_of
from beit.data.sources.opening import open_splits

SHARES = st.floats(0.01, 0.6)


def names(count: int) -> list[str]:
    return [f"{index:05d}.jpg" for index in range(count)]


def held(root: Path, split: Split = "val", **values: Any) -> list[str]:
    labeled = values.pop("labeled", False)
    return keys(open_splits([str(root)], holdout=Holdout(**values), labeled=labeled)[split])


# ------------------------------------------------------------------------------------------------------------
# The choice


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), SHARES)
def test_the_share_is_exact_and_even_and_spares_the_last(sizes: list[int], share: float) -> None:
    classes = [(f"class {number}",) for number, size in enumerate(sizes) for _ in range(size)]
    chosen = choose_held_back(names(len(classes)), classes, range(len(classes)), share)
    counts = Counter(classes[index][0] for index in chosen)
    able = [size for size in sizes if size > 1]
    assert len(chosen) == (max(1, round(share * sum(able))) if able else 0)
    for number, size in enumerate(sizes):
        given_up = counts[f"class {number}"]
        assert given_up < size and (size == 1 or abs(given_up - share * size) < 1)


@given(st.lists(st.sampled_from(["a", "b", "a;b", ""]), min_size=2, max_size=60), st.data())
def test_units_are_not_divided_and_no_class_is_lost(rows: list[str], data: st.DataObject) -> None:
    classes = [row.split(";") if row else [] for row in rows]
    units = data.draw(st.lists(st.integers(0, 8), min_size=len(rows), max_size=len(rows)))
    chosen = set(choose_held_back(names(len(rows)), classes, units, data.draw(SHARES)))
    assert not {units[i] for i in chosen} & {units[i] for i in range(len(rows)) if i not in chosen}
    left = {name for index, row in enumerate(classes) if index not in chosen for name in row}
    assert left == {name for row in classes for name in row} and len(chosen) < len(rows)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "expected"),
    [(1999, 0, 400), (2000, 0, 100), (0, 400, 20), (400, 400, 100), (2, 0, 0), (0, 2, 1)],
)
def test_few_labels_give_a_larger_share(labeled: int, unlabeled: int, expected: int) -> None:
    classes: list[tuple[str, ...]] = [("ab"[index % 2],) for index in range(labeled)]
    size = labeled + unlabeled
    chosen = choose_held_back(names(size), classes + [()] * unlabeled, range(size), None)
    assert len(chosen) == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_what_belongs_together_directly_or_not_is_one_unit(pairs: list[tuple[int, int]]) -> None:
    units = units_of(10, pairs)
    for first, second in itertools.combinations(range(10), 2):
        reached, size = {first}, 0
        while len(reached) > size:
            size = len(reached)
            reached |= {b for pair in pairs for a, b in (pair, pair[::-1]) if a in reached}
        assert (units[first] == units[second]) == (second in reached)


def test_units_too_large_for_the_share_are_the_nearest_that_there_are() -> None:
    units = [index // 10 for index in range(100)]
    for share, expected in ((0.02, 10), (0.1, 10), (0.16, 20), (0.3, 30)):
        assert len(choose_held_back(names(100), [()] * 100, units, share)) == expected


# ------------------------------------------------------------------------------------------------------------
# Folders


@pytest.mark.parametrize(
    ("split", "folders"),
    [
        ("train", "train Training TRN train_images Train-Set trainset train2017 images_train train_data"),
        ("val", "val Validation valid dev VAL_images val-set valset val2017"),
        ("test", "test testing Eval TEST_IMAGES test-set testset evaluation"),
        (
            None,
            "trainer trains value device tests2 tester evaluate training-wheels cat val_masks train_labels",
        ),
    ],
)
def test_names_of_splits(split: Split | None, folders: str) -> None:
    assert {name: split_of(name) for name in folders.split()} == dict.fromkeys(folders.split(), split)


def test_train_and_test_without_val(tmp_path: Path) -> None:
    classes = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(20)]
    root = write_images(tmp_path, *(f"Train_images/{path}" for path in classes), "TESTING/cat/a.png")
    splits = open_splits([str(root)], holdout=Holdout(), labeled=True)
    assert list(splits) == ["train", "val", "test"] and keys(splits["test"]) == ["TESTING/cat/a.png"]
    val = splits["val"]
    assert len(val) == 8 and Counter(val.label(i) for i in range(8)) == {0: 4, 1: 4}
    [note] = [note for note in splits["train"].notes if "held back" in note]
    assert note.endswith(
        "8 of 40 training images held back as val, evenly of 2 classes (labels are read for this choice)"
    )
    assert len(open_splits([str(root)], holdout=Holdout(0), labeled=True)["train"]) == 40


def test_every_verb_holds_back_the_same(tmp_path: Path) -> None:
    """With labels or without, packed with maps or not, from wherever it is named."""
    paths = [f"images/training/{kind}/{i:02d}.png" for kind in "abc" for i in range(15)]
    write_images(tmp_path, *paths)
    for path in paths:
        save(tmp_path / path.replace("images", "annotations"), Image.fromarray(NUMBERS))
    first = held(tmp_path)
    assert len(first) == 9
    assert first == held(tmp_path, labeled=True)
    relative = Path("/") / tmp_path.parent / "." / tmp_path.name
    assert first == keys(open_splits([str(relative)], holdout=Holdout())["val"])
    assert first == keys(open_pairs([str(tmp_path)], holdout=Holdout())["val"])


def test_images_with_a_label_map_count_as_labelled(tmp_path: Path) -> None:
    """A fifth of few is held back, whether the maps are read or not; without maps it is a twentieth."""
    paths = [f"images/training/{i:02d}.png" for i in range(40)]
    write_images(tmp_path / "maps", *paths)
    write_images(tmp_path / "none", *paths)
    for path in paths:
        save(tmp_path / "maps" / path.replace("images", "annotations"), Image.fromarray(NUMBERS))
    chosen = held(tmp_path / "maps")
    assert len(chosen) == 8 and len(held(tmp_path / "none")) == 2
    paired = open_pairs([str(tmp_path / "maps")], holdout=Holdout())
    assert chosen == keys(paired["val"])
    assert any(note.endswith("8 of 40 training images held back as val") for note in paired["train"].notes)


def test_equal_images_stay_together(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{i:02d}.png" for i in range(40)))
    for i in range(20, 40):
        (tmp_path / f"{i:02d}.png").write_bytes((tmp_path / f"{i - 20:02d}.png").read_bytes())
    chosen = {int(key[:2]) for key in held(tmp_path, share=0.25)}
    assert len(chosen) == 10 and chosen == {(i + 20) % 40 for i in chosen}


def test_groups_stay_together(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"patient{i // 4:02d}/{i:02d}.png" for i in range(80)))
    chosen = held(tmp_path, share=0.1, group_by=r"(patient\d+)")
    assert len(chosen) == 8 and len({key.partition("/")[0] for key in chosen}) == 2
    with pytest.raises(UserError, match=r"--group-by \(case\\d\) matches no path in .* such as patient00/00"):
        held(tmp_path, group_by=r"(case\d)")


@pytest.mark.parametrize(("pattern", "reason"), [("(x", "is no regular expression"), ("x", "has no group")])
def test_what_names_no_group_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"--group-by .* {reason}"):
        DataConfig(data="x", group_by=pattern)


def test_labels_from_a_file_count_instead_of_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", *(f"{i:02d}.png" for i in range(60)))
    rows = [f"{i:02d}.png,{'rare' if i < 5 else 'common'}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    chosen = {int(key[:2]) for key in held(root, classes_of=classes_in_file(str(tmp_path / "labels.csv")))}
    places = Counter("rare" if i < 5 else "common" if i < 40 else "none" for i in chosen)
    assert places == {"rare": 1, "common": 7, "none": 1}


def test_other_data_for_val(tmp_path: Path) -> None:
    write_images(tmp_path / "one", *(f"train/{kind}/{i}.png" for kind in "ab" for i in range(9)), "val/a/0.png")
    write_images(tmp_path / "other", "b/0.png", "b/1.png")
    holdout = Holdout(eval_data=(str(tmp_path / "other"),))
    splits = open_splits([str(tmp_path / "one")], holdout=holdout, labeled=True)
    assert len(splits["train"]) == 18 and keys(splits["val"]) == ["b/0.png", "b/1.png"]
    assert [splits["val"].label(i) for i in range(2)] == [1, 1]


def test_a_test_without_labels_is_left_out_where_labels_are_needed(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png", "test/0.png")
    assert "test" in open_splits([str(tmp_path)], holdout=Holdout())
    splits = open_splits([str(tmp_path)], holdout=Holdout(), labeled=True)
    assert list(splits) == ["train", "val"] and any("test has no labels" in x for x in splits["train"].notes)


def test_a_folder_for_every_image_is_no_class(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{i:03d}/a.png" for i in range(100)))
    assert len(held(tmp_path)) == 5


@pytest.mark.slow
def test_the_demo_has_a_test_and_gives_up_a_val() -> None:
    splits = open_splits(["demo"], holdout=Holdout())
    assert {split: len(source) for split, source in splits.items()} == {
        "train": 5700,
        "val": 300,
        "test": 2048,
    }
