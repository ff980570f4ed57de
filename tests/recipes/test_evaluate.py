"""Evaluation: the figures of independent libraries, and of the runs that trained the models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as oracle
from PIL import Image
from tiny_runs import pretrain_config, tokenizer_config

import beit
from beit.checkpoints.store import save_model
from beit.cli.main import main
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.use import EvaluateConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier
from beit.recipes.evaluate.run import evaluate
from beit.recipes.pretrain import pretrain
from beit.recipes.tokenizer.run import tokenizer

pytestmark = pytest.mark.slow

CLASSES = tuple("abcdefg")


def config(model: Path, data: Path, **values: Any) -> EvaluateConfig:
    exact = {"workers": 0, "precision": "float32", "batch_size": 5}
    return EvaluateConfig(model=str(model), data=str(data), **{**exact, **values})


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A classifier of seven classes that nothing has trained, so that it is wrong in every way."""
    torch.manual_seed(1)
    encoder = BeitEncoder(EncoderConfig(image_size=(16, 16), patch_size=8, width=16, depth=1, num_heads=2))
    model = ImageClassifier(encoder, len(CLASSES))
    torch.nn.init.normal_(model.head.weight)
    save_model(model, tmp_path / "classifier", provenance={}, classes=CLASSES)
    return tmp_path / "classifier"


def labelled(folder: Path, names: str = "abcdefg") -> Path:
    rng = np.random.default_rng(2)
    for name in names:
        (folder / "val" / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (20, 24, 3)) // 2 + rng.integers(0, 128, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "val" / name / f"{index}.png")
    return folder


def test_a_classifier_scores_what_torchmetrics_says(classifier: Path, tmp_path: Path, capsys: Any) -> None:
    data = labelled(tmp_path / "data")
    (data / "val/c/damaged.png").write_bytes(b"nothing")
    figures = evaluate(config(classifier, data, out=str(tmp_path / "out" / "figures.json"))).results

    from beit.data.sources.holdout import Holdout
    from beit.data.sources.opening import open_splits
    from beit.data.views.evaluation import EvaluationView

    model = beit.load_model(classifier)
    source = open_splits([str(data)], holdout=Holdout(0.1), labeled=True, classes=CLASSES)["val"]
    whole = [i for i in range(len(source)) if "damaged" not in source.name(i)]
    view, rng = EvaluationView((16, 16)), np.random.default_rng()
    images = torch.stack([view(source.image(i), rng).image for i in whole])
    labels = torch.tensor([source.label(i) for i in whole])
    with torch.no_grad():
        logits = model(images)
    accuracy = {
        "top1": oracle.multiclass_accuracy(logits, labels, 7, average="micro"),
        "top5": oracle.multiclass_accuracy(logits, labels, 7, average="micro", top_k=5),
        "mean_class_accuracy": oracle.multiclass_accuracy(logits, labels, 7, average="macro"),
    }
    for name, expected in accuracy.items():
        assert figures[name] == pytest.approx(float(expected))
    by_class = oracle.multiclass_accuracy(logits, labels, 7, average="none").tolist()
    assert [figures["classes"][name]["top1"] for name in CLASSES] == pytest.approx(by_class)
    matrix = [[figures["confusion"][row].get(column, 0) for column in CLASSES] for row in CLASSES]
    assert matrix == oracle.multiclass_confusion_matrix(logits, labels, 7).tolist()
    assert sum(count > 0 for row in matrix for count in row) > 7
    assert (figures["images"], figures["damaged"]) == (42, 1)

    output = capsys.readouterr()
    assert "damaged.png" in output.err
    assert "Top-1 accuracy" in output.out and "most often taken for" in output.out
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == figures


@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_find_what_one_finds(
    workers: int, classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An odd number of images, one of them damaged, of which the main rank alone speaks but for the damage."""
    data = labelled(tmp_path / "data")
    (data / "val/c/damaged.png").write_bytes(b"nothing")
    alone = evaluate(config(classifier, data, workers=workers)).results
    capfd.readouterr()
    out = tmp_path / "figures.json"
    given = ("--data", data, "--model", classifier, "--batch-size", "5", "--precision", "float32", "--out", out)
    with pytest.raises(SystemExit) as leave:
        main(["evaluate", *map(str, given), "--device", "cpu", "--devices", "2", "--workers", str(workers)])
    assert not leave.value.code
    together = json.loads(out.read_text())
    assert together.keys() == alone.keys() and (together["images"], together["damaged"]) == (42, 1)
    assert together["loss"] == pytest.approx(alone["loss"]) and together["interval"] == alone["interval"]
    assert (together["confusion"], together["classes"]) == (alone["confusion"], alone["classes"])
    text = capfd.readouterr()
    assert text.out.count("Top-1 accuracy") == 1 and text.err.count("damaged.png") == 1


def test_classes_are_matched_by_name(classifier: Path, tmp_path: Path) -> None:
    some = labelled(tmp_path / "some", "cf")
    figures = evaluate(config(classifier, some)).results
    assert {name for name, entry in figures["classes"].items() if entry["images"]} == {"c", "f"}
    both = evaluate(config(classifier, labelled(tmp_path / "all"))).results
    assert figures["classes"]["c"]["images"] == both["classes"]["c"]["images"] == 6
    with pytest.raises(UserError, match=r"unknown to the model: 'x', 'y'; rename or remove") as error:
        evaluate(config(classifier, labelled(tmp_path / "more", "axy")))
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_told(classifier: Path, tmp_path: Path, capsys: Any) -> None:
    """Images beside the class folders or the splits, those that a file does not label, and labels of no image."""
    data = labelled(tmp_path / "data")
    for place in ("val/loose.png", "other/a.png", "train/a/0.png"):
        (data / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "val/a/0.png", data / place)
    figures = evaluate(config(classifier, data, split="all")).results
    assert figures["data"].startswith(f"43 images: 1 image, 7 classes, from {data}; 42 images")
    notes = capsys.readouterr().err.splitlines()
    assert sorted(notes) == [
        f"{data}: 1 image outside the class folders ignored",
        f"{data}: other/ ignored (1 image)",
        f"{data}: train is train/, val is val/",
        "judged on all",
    ]

    file = tmp_path / "labels.csv"
    file.write_text("".join(f"val/{name}/{i}.png,{name}\n" for name in CLASSES for i in (0, 1, 9)))
    figures = evaluate(config(classifier, data, split="all", labels=str(file))).results
    assert figures["images"] == 14
    assert figures["data"].startswith(f"14 chosen of 44 images: 1 image, from {data}; 43 images, from {data}, ")
    notes = capsys.readouterr().err
    assert f"30 images are not in {file} and left out\n7 images that {file} names are not" in notes
    assert "other/ ignored" in notes


def test_several_classes_an_image(tmp_path: Path, capsys: Any) -> None:
    """Labels from a file, in the model's order of classes; F1, precision and recall as torchmetrics has them."""
    torch.manual_seed(3)
    encoder = BeitEncoder(EncoderConfig(image_size=(16, 16), patch_size=8, width=16, depth=1, num_heads=2))
    model = ImageClassifier(encoder, 3)
    torch.nn.init.normal_(model.head.weight)
    extra = {"multilabel": True, "crop_pct": 1.0}
    save_model(model, tmp_path / "model", provenance={}, classes=("c", "a", "b"), extra=extra)
    data = labelled(tmp_path / "data", "ab")
    rows = {f"val/{name}/{i}.png": [["a"], ["b", "c"], [], ["a", "b", "c"]][i % 4] for name in "ab" for i in range(6)}
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="--labels"):
        evaluate(config(tmp_path / "model", data))
    figures = evaluate(config(tmp_path / "model", data, labels=str(tmp_path / "labels.json"))).results

    assert figures["images"] == 12
    records = beit.predictions(
        beit.PredictConfig(images=(str(data),), model=str(tmp_path / "model"), top_k=3, precision="float32")
    )
    shares = {Path(r["image"]).relative_to(data).as_posix(): r["top"] for r in records}
    probabilities = [[{t["label"]: t["probability"] for t in shares[name]}[c] for c in "cab"] for name in rows]
    truth = [[int(c in row) for c in "cab"] for row in rows.values()]
    scores, targets = torch.tensor(probabilities), torch.tensor(truth)
    for key, metric in (("recall", oracle.multilabel_recall), ("precision", oracle.multilabel_precision)):
        expected = metric(scores, targets, 3, average="none").tolist()
        assert [figures["classes"][c][key] or 0.0 for c in "cab"] == pytest.approx(expected)
    f1 = oracle.multilabel_f1_score(scores, targets, 3, average="micro")
    assert figures["f1"] == pytest.approx(float(f1))
    average = oracle.multilabel_average_precision(scores, targets, 3, average="none").tolist()
    assert [figures["classes"][c]["average_precision"] for c in "cab"] == pytest.approx(average, abs=1e-5)
    assert figures["mean_average_precision"] == pytest.approx(sum(average) / 3, abs=1e-5)
    assert "Mean average precision" in capsys.readouterr().out
    (tmp_path / "labels.json").write_text(json.dumps(rows | {"val/a/0.png": ["d"]}))
    with pytest.raises(UserError, match="unknown to the model: 'd'"):
        evaluate(config(tmp_path / "model", data, labels=str(tmp_path / "labels.json")))


def last_evaluation(run: Path) -> dict[str, float]:
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name.removeprefix("eval/"): value for name, value in line.items() if name.startswith("eval/")}


# As the runs of the fixtures were evaluated.
SAME: dict[str, Any] = {"limit": 8, "holdout": 0.2}


def test_a_tokenizer_scores_what_its_run_recorded(trained_tokenizer: Path, images: Path) -> None:
    figures = evaluate(config(trained_tokenizer, images, **SAME)).results
    expected = last_evaluation(trained_tokenizer)
    scores = {"unigram_loss", "position_unigram_loss", "copy_neighbour_loss", "predictability"}
    kept = {"reconstruction_mae", "cell_mean_mae", "kl", "perplexity", "codes_used"}
    assert kept | scores == expected.keys()  # no class_agreement: the images have no classes
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"masking": "random", "predict": "all"},
        {"target": "pixels", "pixel_norm": "patch"},
        {"encoder_sees": "visible", "num_masked": "75%"},
    ],
    ids=str,
)
def test_a_pretrained_model_scores_what_its_run_recorded(
    values: dict[str, Any], images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    """Masks, targets and the tokenizer come from the run; only the baselines count other images."""
    run = tmp_path / "run"
    target = {} if "target" in values else {"tokenizer": str(trained_tokenizer)}
    pretrain(pretrain_config(images, run, **target, **values))
    figures = evaluate(config(run, images, **SAME)).results
    expected = last_evaluation(run)
    for name in {"loss", "token_accuracy"} & expected.keys():
        assert figures[name] == pytest.approx(expected[name], rel=1e-5)
    assert ("copy_neighbour_loss" in figures) == ("tokenizer" in target)
    if "tokenizer" in target:  # the prior term is the loss of all the predicted patches of an image
        patches = 16 if "predict" in values else 12 if "num_masked" in values else 6
        assert figures["elbo_prior"] == pytest.approx(-patches * figures["loss"])
        assert figures["elbo_prior_unigram"] == pytest.approx(-patches * figures["unigram_loss"])
        assert {"elbo_reconstruction", "elbo_prior_sampled"} <= figures.keys()
        assert ("no bound" in figures["bound"]) == ("predict" not in values)
    else:
        assert not any(name.startswith("elbo") for name in figures)


def test_a_model_without_its_run_needs_its_own_tokenizer(
    pretrained: Path, trained_tokenizer: Path, images: Path, tmp_path: Path
) -> None:
    alone, other = tmp_path / "alone", tmp_path / "other"
    shutil.copytree(pretrained / "model", alone)
    with pytest.raises(UserError, match="with --tokenizer"):
        evaluate(config(alone, images, **SAME))
    figures = evaluate(config(alone, images, **SAME, tokenizer=str(trained_tokenizer))).results
    assert figures["loss"] == pytest.approx(last_evaluation(pretrained)["loss"], rel=1e-5)
    tokenizer(tokenizer_config(images, other, seed=1, steps=1))
    with pytest.raises(UserError, match="is not the one"):
        evaluate(config(alone, images, **SAME, tokenizer=str(other)))
    with pytest.raises(UserError, match="drop it"):
        evaluate(config(trained_tokenizer, images, **SAME, tokenizer=str(other)))


def test_a_run_of_another_version_is_judged_with_what_is_known_of_it(
    pretrained: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    with open(run / "config.yaml", "a") as file:
        file.write("fusing: false\nmasking_of_2031: spiral\n")
    figures = evaluate(config(run, images, **SAME)).results
    assert figures["loss"] == pytest.approx(last_evaluation(pretrained)["loss"], rel=1e-5)
    assert f"{run / 'config.yaml'}: fusing, masking_of_2031 unknown to this version" in capsys.readouterr().err
    (run / "config.yaml").write_text("masking: spiral\n")
    with pytest.raises(UserError, match=rf"^{run / 'config.yaml'}: masking is 'spiral'"):
        evaluate(config(run, images, **SAME))


@pytest.mark.parametrize("target", ["tokens", "pixels"])
def test_images_need_not_be_square(target: str, images: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    """Pre-training on 3x5 patches, judged as its run was, in the run's folder and outside it."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    tokens = {"tokenizer": str(trained_tokenizer), "token_image_size": (12, 20)} if target == "tokens" else {}
    norm = {"pixel_norm": "patch"} if target == "pixels" else {}
    pretrain(pretrain_config(images, run, image_size=(24, 40), target=target, **tokens, **norm))
    expected = pytest.approx(last_evaluation(run)["loss"], rel=1e-5)
    assert evaluate(config(run, images, **SAME)).results["loss"] == expected
    shutil.copytree(run / "model", alone)
    tokenizer_of = {"tokenizer": str(trained_tokenizer)} if target == "tokens" else {}
    assert evaluate(config(alone, images, **SAME, **tokenizer_of)).results["loss"] == expected


def test_splits_are_what_training_made_of_them(trained_tokenizer: Path, images: Path) -> None:
    counts = {
        split: evaluate(config(trained_tokenizer, images, holdout=0.2, split=split)).results["images"]
        for split in ("train", "val", "all")
    }
    assert counts["train"] + counts["val"] == counts["all"] == 40


def test_tokens_are_not_scored_by_the_images_that_they_were_counted_on(
    trained_tokenizer: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    elsewhere = shutil.copytree(images, tmp_path / "elsewhere")  # where none was held back
    figures = evaluate(config(trained_tokenizer, elsewhere)).results
    assert figures["split"] == "all" and "predictability" not in figures
    assert "but those that are judged; add --split val" in capsys.readouterr().out
    assert "predictability" in evaluate(config(trained_tokenizer, elsewhere, split="val")).results
    assert "predictability" in evaluate(config(trained_tokenizer, elsewhere, limit=20)).results
