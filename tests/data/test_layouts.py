"""Which folders are splits and which are classes: what names and neighbours say, and a refusal where they say two
things. And what beit itself has written is no data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from test_sources import keys, pack, picture, write_images

from beit.config.errors import UserError
from beit.config.use import CheckConfig
from beit.data.label_maps.pairs import open_pairs
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_images, open_splits
from beit.data.sources.splits import find_splits
from beit.recipes.check.run import inspect

KINDS = ("cat", "dog")


def classed(*splits: str) -> list[str]:
    """Two classes with two images in each folder."""
    return [f"{split}/{kind}/{i}.png" for split in splits for kind in KINDS for i in range(2)]


def opened(root: Path, labeled: bool = False, **holdout: Any) -> dict[str, list[str]]:
    splits = open_splits([str(root)], holdout=Holdout(0, **holdout), labeled=labeled)
    return {split: keys(source) for split, source in splits.items()}


def refusal(root: Path, labeled: bool = False, **holdout: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, labeled, **holdout)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"--data {root}")
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", None),
        ("training", None, "testing"),
        ("train_images", "val_images", None),
        ("TRAIN", "DEV", "Eval"),
        ("trainval", None, "test"),
        ("set-1/data/train", "set-1/data/val", "set-1/data/test"),
        ("images/train", "images/val", None),
        ("train", None, None),
        (None, "val", None),
        (None, None, "test-set"),
    ],
)
@pytest.mark.parametrize("layout", [None, "splits"])
def test_folders_of_splits(train: str | None, val: str | None, test: str | None, layout: Any, tmp_path: Path) -> None:
    folders = {"train": train, "val": val, "test": test}
    write_images(tmp_path, *classed(*filter(None, folders.values())))
    splits = open_splits([str(tmp_path)], holdout=Holdout(0, layout=layout), labeled=True)
    assert {split: keys(source) for split, source in splits.items()} == {
        split: sorted(classed(folder)) for split, folder in folders.items() if folder
    }
    for source in splits.values():
        assert source.classes == KINDS
        assert any(f": {', '.join(f'{s} is {f}/' for s, f in folders.items() if f)}" in n for n in source.notes)


@pytest.mark.parametrize(
    "paths",
    [
        ["bus/0.png", "car/0.png", "train/0.png"],
        ["bus/new/0.png", "car/old/0.png", "train/0.png"],
        ["photos/bus/0.png", "photos/car/0.png", "photos/train/0.png"],
        ["bus/0.png", "trainer/0.png", "test/0.png"],
    ],
)
def test_a_class_that_is_called_like_a_split(paths: list[str], tmp_path: Path) -> None:
    write_images(tmp_path, *paths)
    splits = open_splits([str(tmp_path)], holdout=Holdout(0), labeled=True)
    assert list(splits) == ["train"] and keys(splits["train"]) == sorted(paths)
    assert splits["train"].classes == tuple(sorted(path.split("/")[-2 if "photos" in path else 0] for path in paths))
    assert any("is a class like what lies beside (else say --layout splits)" in x for x in splits["train"].notes)
    name = "test" if "trainer/0.png" in paths else "train"
    base = "photos/" if "photos" in paths[0] else ""
    assert opened(tmp_path, layout="splits") == {name: [f"{base}{name}/0.png"]}


@pytest.mark.parametrize(
    ("paths", "reading"),
    [
        ([*classed("train"), "extra/0.png"], "train/ may be the images for train, or a class like extra/"),
        ([*classed("Train"), *classed("hold_out")], "Train/ may be the images for train"),
        ([*classed("bus", "car", "train")], "train/ may be the images for train, or a class like bus/, car/"),
        ([*classed("training", "train")], "train/ may be the images for train"),
        (["0.png", "1.png", "test/0.png"], "test/ may be the images for test, or a class like loose images"),
        ([*classed("x/test"), "x/more/0.png"], "x/test/ may be the images for test"),
        ([*classed("cat/train", "cat/val", "dog/train", "dog/val")], "cat/ has train, val inside; name it"),
        ([*classed("one/Train", "one/Test"), "two/0.png"], "one/ has Test, Train inside; name it in --data"),
    ],
)
def test_two_readings_are_refused_by_every_verb_until_one_is_stated(
    paths: list[str], reading: str, tmp_path: Path
) -> None:
    write_images(tmp_path, *paths)
    for labeled in (False, True):
        message = refusal(tmp_path, labeled)
        assert reading in message and "--layout" in message
    with pytest.raises(UserError, match="--layout"):
        inspect(CheckConfig(data=str(tmp_path), workers=0))
    assert opened(tmp_path, layout="classes") == {"train": sorted(paths)}
    report = inspect(CheckConfig(data=str(tmp_path), workers=0, layout="classes", holdout=0))
    assert {image.split for image in report.images.values()} == {"train"} and len(report.images) == len(paths)
    if " inside" not in reading:
        [(split, chosen)] = opened(tmp_path, layout="splits").items()
        assert 0 < len(chosen) < len(paths) and f"images for {split}" in reading


def test_alike_folders_of_one_level_are_no_classes_for_sure(tmp_path: Path) -> None:
    """Training without labels takes them, and says so; who needs classes must say so, and check says that."""
    write_images(tmp_path, *classed("fold_a", "fold_b", "fold_c"))
    assert len(opened(tmp_path)["train"]) == 12
    notes = open_splits([str(tmp_path)], holdout=Holdout(0))["train"].notes
    assert any("one pool to train on, though each of fold_a, fold_b, fold_c holds" in note for note in notes)
    message = refusal(tmp_path, labeled=True)
    assert "each of fold_a, fold_b, fold_c holds the folders cat, dog" in message and "--layout classes" in message
    report = inspect(CheckConfig(data=str(tmp_path), workers=0, holdout=0))
    assert "holds the folders" in report.refusals["finetune and probe"]
    assert not report.classes
    splits = open_splits([str(tmp_path)], holdout=Holdout(0, layout="classes"), labeled=True)
    assert splits["train"].classes == ("fold_a", "fold_b", "fold_c")
    known = ("fold_a", "fold_b", "fold_c", "fold_d")
    assert open_splits([str(tmp_path)], holdout=Holdout(0), labeled=True, classes=known)["train"].classes == known


@pytest.mark.parametrize(
    "names",
    [("tr", "va"), ("my_train", "my_val"), ("TR", "TE"), ("train_x", "held"), ("x-test", "y"), ("cv_dev", "cv_rest")],
)
def test_folders_that_are_rather_splits_are_refused_by_every_verb(names: tuple[str, str], tmp_path: Path) -> None:
    """They would be one pool, those to judge on among it, to a verb without labels."""
    write_images(tmp_path, *classed(*names))
    for labeled in (False, True):
        assert "holds the folders cat, dog: if the outer ones are the classes" in refusal(tmp_path, labeled)
    assert len(opened(tmp_path, layout="classes")["train"]) == 8


@pytest.mark.parametrize("names", [("valley", "trail"), ("tree", "tent"), ("fold_1", "fold_2"), ("trains", "teams")])
def test_folders_of_other_names_are_one_pool(names: tuple[str, str], tmp_path: Path) -> None:
    write_images(tmp_path, *classed(*names))
    assert len(opened(tmp_path)["train"]) == 8


@pytest.mark.parametrize("others", [(), ("val",), ("Val", "test")])
def test_a_split_in_two_spellings_is_refused(others: tuple[str, ...], tmp_path: Path) -> None:
    """One of the two would be left out."""
    write_images(tmp_path, *classed("train", *others), *classed("Train"))
    if sorted(path.name for path in tmp_path.iterdir())[0] == "train":
        pytest.skip("the file system takes both for one")
    for labeled in (False, True):
        assert "rain/ are one split by their names; join them, or say --layout" in refusal(tmp_path, labeled)
    assert len(opened(tmp_path, layout="classes")["train"]) == 4 * (2 + len(others))


def test_folders_within_the_only_one_are_looked_at_too(tmp_path: Path) -> None:
    """As sets are unpacked whose archives hold a folder of their own name."""
    write_images(
        tmp_path, *(f"{x}/{x}/{kind}/{i}.png" for x in ("seg_learn", "seg_look") for kind in KINDS for i in "01")
    )
    assert "each of seg_learn, seg_look holds the folders cat, dog" in refusal(tmp_path, labeled=True)


def test_many_classes_with_a_folder_of_their_own_take_no_time() -> None:
    """One pass over the folders, and none for each class."""
    folders = {f"n{number:05d}/images/": 20 for number in range(10_000)}
    began = time.process_time()
    assert not find_splits(folders, paired=False).doubt
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "paths",
    [
        [f"{kind}/{kind}s/{i}.png" for kind in KINDS for i in range(2)],
        [f"{kind}/images/{i}.png" for kind in KINDS for i in range(2)],
        ["cat/indoor/0.png", "cat/outdoor/0.png", "dog/indoor/0.png"],
        [
            "cat/indoor/0.png",
            "cat/outdoor/0.png",
            "cat/0.png",
            "dog/indoor/0.png",
            "dog/outdoor/0.png",
            "dog/0.png",
        ],
    ],
)
def test_classes_with_folders_of_their_own(paths: list[str], tmp_path: Path) -> None:
    write_images(tmp_path, *paths)
    assert open_splits([str(tmp_path)], holdout=Holdout(0), labeled=True)["train"].classes == KINDS


def test_layout_splits_without_any(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/0.png", "dog/0.png")
    assert "holds no folder called train, val or test" in refusal(tmp_path, layout="splits")


def test_layout_reaches_tars_label_maps_and_other_data_to_judge_on(tmp_path: Path) -> None:
    pack(
        tmp_path / "x.tar",
        {f"{path}": picture(i) for i, path in enumerate([*classed("train"), "more/0.png"])},
    )
    assert "train/ may be the images for train" in refusal(tmp_path / "x.tar")
    assert len(opened(tmp_path / "x.tar", layout="splits")["train"]) == 4
    write_images(tmp_path / "maps", "images/train/a/0.png", "images/more/0.png")
    write_images(tmp_path / "maps", "annotations/train/a/0.png", "annotations/more/0.png")
    with pytest.raises(UserError, match="images/train/ may be the images for train"):
        open_pairs([str(tmp_path / "maps")], holdout=Holdout(0))
    holdout = Holdout(eval_data=(str(tmp_path / "x.tar"),), layout="classes")
    write_images(tmp_path / "own", "cat/0.png", "dog/0.png")
    assert len(open_splits([str(tmp_path / "own")], holdout=holdout)["val"]) == 5


# ------------------------------------------------------------------------------------------------------------
# Images that are named twice


@pytest.mark.parametrize("values", [("p", "p"), ("p", "p/"), ("p", "p/cat"), ("p/cat", "p"), ("p", "link")])
def test_a_folder_named_twice_or_with_its_parent(
    values: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "p", "cat/0.png", "dog/0.png")
    (tmp_path / "link").symlink_to("p/dog")
    with pytest.raises(UserError, match=r"--data names .*, which holds it; drop the former"):
        open_splits(values, holdout=Holdout(0))
    pack(tmp_path / "x.tar", {"0.png": picture()})
    with pytest.raises(UserError, match=r"x\.tar, which holds it"):
        open_splits(["x.tar", "./x.tar"], holdout=Holdout(0))
    write_images(tmp_path / "p2", "cat/0.png")
    assert len(open_splits(["p", "p2", "x.tar"], holdout=Holdout(0))["train"]) == 4


# ------------------------------------------------------------------------------------------------------------
# What beit has written


def plant_run(root: Path) -> None:
    write_images(root, "samples/step-1.png", "wandb/media/0.png", "config.yaml", "status.json")


def test_runs_and_predicted_maps_are_no_data(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/0.png", "dog/0.png", "dog/maps/0.png", "dog/classes.tsv", "cat/config.yaml")
    whole = opened(tmp_path)
    plant_run(tmp_path / "runs" / "tok")
    plant_run(tmp_path / "cat" / "deep" / "run")
    write_images(tmp_path / "out", "maps/0.png", "overlays/0.jpg", "classes.tsv")
    write_images(tmp_path / "bare", "maps/0.png", "classes.tsv")
    assert opened(tmp_path) == whole
    notes = open_splits([str(tmp_path)], holdout=Holdout(0), labeled=True)["train"].notes
    assert f"{tmp_path}/runs/tok: a run, ignored" in notes and f"{tmp_path}/cat/deep/run: a run, ignored" in notes
    assert f"{tmp_path}/out: label maps of beit predict, ignored" in notes
    for place in ("runs/tok", "runs/tok/samples", "runs/tok/wandb/media"):
        assert f"lies in the run {tmp_path}/runs/tok is no data" in refusal(tmp_path / place)
    # What predict is told to look at is what is meant.
    assert len(open_images([str(tmp_path / "out"), str(tmp_path / "runs/tok")])) == 4
