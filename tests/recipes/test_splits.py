"""One rule of splits through the verbs: what is held back, what is judged once, and what a start has seen before."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from run_results import same_weights, stopped_in_step
from tiny_runs import finetune_config, pretrain_config, probe_config, segment_config, tokenizer_config

from beit.atomic import remove
from beit.config.errors import UserError
from beit.config.use import CheckConfig, EvaluateConfig
from beit.data.base import Source
from beit.data.label_maps.pairs import PairSource, open_pairs
from beit.data.sources import holdout, named
from beit.data.sources.cache import ImageCache
from beit.data.sources.holdout import Holdout
from beit.data.sources.listing import list_data
from beit.data.sources.opening import open_splits
from beit.recipes.check.run import inspect
from beit.recipes.evaluate.run import evaluate
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.tokenizer.run import tokenizer
from beit.stages.scores import monitor
from beit.stages.session import open_images
from beit.stages.tasks.labels import open_with_labels
from beit.training.run.directory import LAYOUT

RULE = {"holdout": None, "eval_images": 4}


@pytest.fixture(scope="module")
def tested(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours with their val as a test: 60 images to train on, of which 12 are held back, and 22 to judge by."""
    root = tmp_path_factory.mktemp("tested") / "set"
    shutil.copytree(colours / "train", root / "train")
    (root / "train/red/damaged.png").unlink()
    shutil.copytree(colours / "val", root / "Testing")
    return root


@pytest.fixture(scope="module")
def encoder(tested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an encoder trained on pixels of that set."""
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    pretrain(pretrain_config(tested, run, target="pixels", **RULE))
    return run


@pytest.fixture(scope="module")
def classifier(tested: Path, encoder: Path) -> Path:
    """The run of a classifier from that encoder."""
    run = encoder.parent / "finetune"
    finetune(finetune_config(tested, run, init=str(encoder), **RULE))
    return run


def held_back(run: Path) -> list[str]:
    return (run / "held-back.txt").read_text().splitlines()


def judge(model: Path, data: Path, **values: Any) -> dict[str, Any]:
    return evaluate(EvaluateConfig(model=str(model), data=str(data), workers=0, **values)).results


@pytest.mark.slow
def test_verbs_hold_back_the_same_and_test_is_judged_once(tested: Path, encoder: Path, classifier: Path) -> None:
    assert held_back(encoder) == held_back(classifier) and len(held_back(encoder)) == 12
    assert all(Path(name).is_relative_to(tested / "train") for name in held_back(encoder))
    last = json.loads((classifier / "results.json").read_text())["last"]
    assert last["test/top1"] == pytest.approx(judge(classifier, tested)["top1"], abs=1e-6)
    lines = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test/top1" in line] == [4]
    assert sum("eval/top1" in line for line in lines) == 2
    log = (classifier / "log.txt").read_text()
    assert "was trained on 0 of the 4 val images and 0 of the 22 test images, by their paths" in log
    assert "judged on test, once: step 4" in log


@pytest.mark.slow
def test_evaluate_judges_test_else_val_else_what_the_run_held_back_else_all(
    tested: Path, classifier: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = judge(classifier, tested)
    assert (figures["split"], figures["images"]) == ("test", 21)
    assert (judge(classifier, tested, split="val")["images"]) == 12
    assert (judge(classifier, tested, split="train")["images"]) == 48
    capsys.readouterr()
    figures = judge(classifier, tested, split="all")
    assert (figures["split"], figures["images"]) == ("all", 81)
    assert "the model was trained on 48 of these 82 images" in capsys.readouterr().err
    assert judge(classifier, colours)["split"] == "val"
    figures = judge(classifier, tested / "train")
    assert (figures["split"], figures["images"]) == ("val", 12)
    assert "the model's run held 12 of 60 images back as val" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tested)
    assert (judge(classifier, tmp_path / "link" / "train")["images"]) == 12
    shutil.copytree(tested / "train", tmp_path / "elsewhere")
    assert (judge(classifier, tmp_path / "elsewhere")["split"]) == "all"
    assert "judged on all images: the data have no test and no val" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no test images; choose --split train or --split val"):
        judge(classifier, tmp_path / "elsewhere", split="test")


@pytest.mark.slow
def test_a_probe_chooses_on_val_and_is_judged_on_test(tested: Path, encoder: Path, tmp_path: Path) -> None:
    probe(probe_config(tested, tmp_path / "run", encoder, holdout=None))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["last"]["test/best_layer"] == results["last"]["eval/best_layer"] == results["best_layer"]
    assert judge(tmp_path / "run", tested)["top1"] == pytest.approx(results["last"]["test/top1"], abs=1e-6)
    assert 0 <= results["last"]["test/knn_top1"] <= 1
    with pytest.raises(UserError, match="--holdout 0 leaves no image to choose the layer on"):
        probe(probe_config(tested, tmp_path / "none", encoder, holdout=0.0))


@pytest.mark.slow
def test_a_run_without_val_and_one_with_other_data_for_it(tested: Path, colours: Path, tmp_path: Path) -> None:
    finetune(finetune_config(tested, tmp_path / "none", **RULE | {"holdout": 0.0}))
    results = json.loads((tmp_path / "none/results.json").read_text())
    assert "eval/top1" not in results["last"] and not results["best"] and "test/top1" in results["last"]
    assert held_back(tmp_path / "none") == []
    said = (tmp_path / "none/log.txt").read_text()
    assert "none held back, so that nothing is chosen and no verdict given, 22 (test) once at the end" in said
    other = {**RULE, "eval_data": str(tested / "train" / "blue"), "eval_images": 100}
    pretrain(pretrain_config(colours, tmp_path / "other", target="pixels", **other))
    assert len(held_back(tmp_path / "other")) == 20
    with pytest.raises(UserError, match="--eval-data and --holdout exclude each other"):
        pretrain_config(colours, tmp_path / "other", target="pixels", **other | {"holdout": 0.5})


def test_a_run_inside_its_data_goes_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures are not trained on: it ends as one elsewhere does, and the next run sees the same images."""
    shutil.copytree(images, tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    inside = tokenizer_config(Path("."), Path("runs/tok"))
    with stopped_in_step(3):
        tokenizer(inside)
    assert list(Path("runs/tok/samples").glob("*.webp"))
    tokenizer(inside)
    tokenizer(tokenizer_config(Path("."), tmp_path / "elsewhere"))
    assert same_weights(Path("runs/tok"), tmp_path / "elsewhere")
    assert held_back(Path("runs/tok")) == held_back(tmp_path / "elsewhere")
    tokenizer(inside, overwrite=True)
    opened = open_images(inside)
    assert len(opened.train) + len(opened.held_back) == 41
    assert "./runs/tok: a run, ignored" in opened.train.notes


@pytest.mark.parametrize("place", ["run", "red/run", "a/b/c", ".hidden/run", "red/0/1", "val", "train", "samples"])
@pytest.mark.parametrize("journey", [False, True])
def test_a_run_anywhere_in_its_data_changes_nothing(place: str, journey: bool, colours: Path, tmp_path: Path) -> None:
    """Whether of one verb or of several, written there or moved; nor do label maps that were predicted."""
    data = tmp_path / "photos"
    shutil.copytree(colours / "train", data)
    before = open_splits([str(data)], labeled=True, holdout=Holdout(0.2))
    for part in ("", "pretrain", "scratch") if journey else ("",):
        run = data / place / part
        (run / "samples").mkdir(parents=True)
        for name in ("config.yaml", "status.json"):
            (run / name).write_text("{}")
        Image.new("RGB", (8, 8)).save(run / "samples/0.png")
        (run / "report.html").write_text("")
    (data / "results/maps/red").mkdir(parents=True)
    (data / "results/overlays").mkdir()
    (data / "results/classes.tsv").write_text("value\tname")
    Image.new("L", (8, 8)).save(data / "results/maps/red/0.png")
    Image.new("RGB", (8, 8)).save(data / "results/overlays/0.jpg")
    after = open_splits([str(data)], labeled=True, holdout=Holdout(0.2))
    assert {name: key_set(source) for name, source in before.items()} == {
        name: key_set(source) for name, source in after.items()
    }
    assert after["train"].classes == before["train"].classes
    notes = [note for note in after["train"].notes if note.endswith(": a run, ignored")]
    assert notes == [] if ".hidden" in place else notes[0].startswith(f"{data / place}")
    with pytest.raises(UserError, match="is no data"):
        open_splits([str(data / place / "samples")], holdout=Holdout(0))


@pytest.mark.parametrize("left", range(len(LAYOUT)))
def test_a_deletion_that_is_cut_short_leaves_no_pictures_to_train_on(left: int, tmp_path: Path) -> None:
    for path in ("0.png", "run/samples/0.png", "run/config.yaml", "run/status.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / path, "PNG")
    for name in LAYOUT[:left]:
        remove(tmp_path / "run" / name)
    keys = [member.path for listing in list_data([str(tmp_path)], ImageCache()) for member in listing.members]
    assert keys == ["0.png"]


def key_set(source: Source) -> set[str]:
    return {source.key(index) for index in range(len(source))}


def test_images_to_judge_on_are_not_trained_on(tested: Path) -> None:
    train = tested / "train"
    config = pretrain_config(train, tested / "none", target="pixels", holdout=None)
    images = open_images(dataclasses.replace(config, eval_data=str(train / "red")))
    assert images.all_held_back is not None and len(images.all_held_back) == 20
    assert {key.partition("/")[0] for key in key_set(images.train)} == {"blue", "green"}
    [note] = [note for note in images.train.notes if "20 images left out of training" in note]
    assert note.endswith(f"the first being {train}/red/00.png")
    with pytest.raises(UserError, match="leaves no image to train on but those to judge on"):
        open_images(dataclasses.replace(config, data=str(train / "red"), eval_data=str(train)))


def test_equal_bytes_on_both_sides_are_left_out_of_training(tested: Path, tmp_path: Path) -> None:
    """Whether the other side is a folder of the set, or held back of another root; labels and label maps alike."""
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(tested, one)
    shutil.copy(one / "Testing/blue/00.png", one / "train/red/of the test.png")
    shutil.copytree(tested / "train", two / "train")
    shutil.copytree(tested / "train" / "green", two / "val" / "green")
    config = pretrain_config(one, tmp_path / "none", target="pixels", holdout=None)
    images = open_images(config)
    assert images.test is not None and len(images.test) == 22
    # Of equal images of one pool each side has all or none.
    assert len(images.train) == 48 and "train/red/of the test.png" not in key_set(images.train)
    assert open_images(config).fingerprint == images.fingerprint
    report = inspect(CheckConfig(data=str(one), workers=0))
    [copies] = report.across(report.duplicates)
    assert {Path(name).name for name in copies} == {"of the test.png", "00.png"}
    images = open_images(dataclasses.replace(config, data=str(two)))
    assert len(images.train) == 40 and not any("green" in key for key in key_set(images.train))
    with pytest.raises(UserError, match="no image to train on is of class green"):
        finetune(finetune_config(two, tmp_path / "none", holdout=None))
    assert not (tmp_path / "none").exists()


def test_equal_bytes_with_label_maps(regions: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(regions, root)
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        shutil.copy(root / folder / f"validation/3.{suffix}", root / folder / f"training/copy.{suffix}")
    config = segment_config(root, tmp_path / "none")
    images = open_images(config, partial(open_pairs, reduce_zero_label=config.reduce_zero_label))
    assert isinstance(images.train, PairSource) and len(images.train) == 16
    assert "images/training/copy.jpg" not in key_set(images.train)
    assert images.train.label(0).shape == images.train.image(0).shape[1:]


def test_a_class_without_an_image_to_train_on_is_named(colours: Path, tmp_path: Path) -> None:
    rows = [f"train/{name}/{i:02d}.png,{name}" for name in ("red", "blue") for i in range(9)]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join([*rows, "val/green/00.png,green", "val/red/00.png,red"]))
    refused = "no image to train on is of class green; add some"
    with pytest.raises(UserError, match=refused):
        finetune(finetune_config(colours, tmp_path / "run", labels=str(file), holdout=None))
    file.write_text("\n".join([*rows, "gone.png,green", "val/red/00.png,red"]))
    with pytest.raises(UserError, match=refused):
        finetune(finetune_config(colours, tmp_path / "run", labels=str(file), multilabel=True, holdout=None))
    file.write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"no image to train on is of class (blue|green|red)"):
        finetune(finetune_config(colours, tmp_path / "run", limit=2, holdout=None))
    assert not (tmp_path / "run").exists()


def test_flags_about_what_is_held_back_say_where_they_are_idle(
    colours: Path, tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(data: Path, **values: Any) -> list[str]:
        config = pretrain_config(data, data / "none", target="pixels", **{"holdout": None, **values})
        return [note for note in open_images(config).train.notes if "without effect" in note]

    because = f"{colours}: {{}} without effect, because val is val/"
    assert notes(colours, holdout=0.3) == [because.format("--holdout")]
    assert notes(colours, group_by=r"(\d)\.png") == [because.format("--group-by")]
    assert notes(colours, holdout=0.3, group_by=r"(\d)\.png") == [because.format("--holdout and --group-by")]
    assert notes(colours) == notes(tested) == notes(tested, holdout=0.3, group_by=r"(\d)\.png") == []
    monkeypatch.setattr(named, "NamedSource", lambda name, split: SimpleNamespace(notes=[]))
    splits = open_splits(["imagenette"], holdout=Holdout(0.3))
    assert splits["train"].notes == ["--data imagenette: --holdout without effect, because it has a val"]
    assert open_splits(["imagenette"], holdout=Holdout())["train"].notes == []
    with_other = notes(tested, group_by=r"(\d)\.png", eval_data=str(colours / "val"))
    assert with_other == [f"{tested}: --group-by without effect, because no image is held back"]


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (None, "no such folder"),
        ((), "holds no image"),
        (("",), "has no class folders"),
        (("red", "pink"), "has classes that are unknown to the model: 'pink'"),
        (("a/train", "a/val", "b/train", "b/val"), "a/ has train, val inside"),
    ],
)
def test_mistakes_in_other_data_to_judge_on_are_those_of_its_flag(
    folders: tuple[str, ...] | None, reason: str, colours: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    if folders is not None:
        other.mkdir()
    for number, folder in enumerate(folders or ()):
        (other / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 9, 9)).save(other / folder / f"{number}.png")
    config = finetune_config(colours / "train", tmp_path / "run", eval_data=str(other), holdout=None)
    with pytest.raises(UserError) as error:
        open_with_labels(config)
    assert str(error.value).startswith("--eval-data") and reason in str(error.value)


def test_a_start_takes_what_the_run_found_out_about_its_images(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is chosen or compared again where a run goes on, by a verb that opens its images twice; a file that is
    touched has all of it found out again, and the run goes on."""
    shutil.copytree(colours / "train", tmp_path / "data")
    config = pretrain_config(tmp_path / "data", tmp_path / "run", target="pixels")
    calls: list[str] = []
    for place, name in ((holdout, "choose_held_back"), (holdout, "equal_images"), (monitor, "labels_per_class")):
        whole = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *given, whole=whole, name=name: (calls.append(name), whole(*given))[1]
        )
    with stopped_in_step(2):
        pretrain(config)
    assert {*calls} == {"choose_held_back", "equal_images", "labels_per_class"}
    chosen = held_back(tmp_path / "run")
    calls.clear()
    with stopped_in_step(2):
        pretrain(config)
    assert not calls and held_back(tmp_path / "run") == chosen
    next((tmp_path / "data").rglob("*.png")).touch()
    pretrain(config)
    assert {*calls} == {"choose_held_back", "equal_images", "labels_per_class"}
    assert held_back(tmp_path / "run") == chosen
