"""Trained segmenters at work: `beit evaluate` agrees with the run, and predicted maps can be trained on."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.config.errors import RunFailed, UserError
from beit.config.use import EvaluateConfig, PredictConfig
from beit.data.label_maps.pairs import open_pairs
from beit.data.label_maps.table import generated_palette
from beit.data.sources.holdout import Holdout
from beit.models.windows import Inference
from beit.recipes.evaluate.run import evaluate
from beit.recipes.predict.maps import Legend, write_map
from beit.recipes.predict.run import predict, predictions

pytestmark = pytest.mark.slow

PLAIN: dict[str, Any] = {"workers": 0, "precision": "float32"}


def opened(path: Path) -> Image.Image:
    """A picture, read to its end."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def evaluation(model: Path, data: Path, **values: Any) -> dict[str, Any]:
    return evaluate(EvaluateConfig(model=str(model), data=str(data), **PLAIN, **values)).results


def test_an_evaluation_agrees_with_the_one_in_training(
    segmenter: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluation(segmenter, regions, out=str(tmp_path / "figures.json"))
    last = json.loads((segmenter / "results.json").read_text())
    for name in ("loss", "miou", "macc", "aacc"):
        assert figures[name] == pytest.approx(last["last"][f"eval/{name}"], rel=1e-4)
    assert figures["classes"]["blue"]["iou"] == pytest.approx(last["classes"]["blue"]["iou"], rel=1e-4)
    labelled = sum(sum(row.values()) for row in figures["confusion"].values())
    maps = [np.array(opened(path)) for path in (regions / "annotations/validation").iterdir()]
    assert labelled == sum(int((numbers > 0).sum()) for numbers in maps)  # at the maps' own sizes
    output, notes = capsys.readouterr()
    assert "6 windows for an image of 56x40 px; 6 images take about" in notes
    assert "shown  judged on images at their own size, in windows of 32x32 px" in output
    assert "Mean intersection over union" in output and "most often taken for" in output and "green" in output
    assert json.loads((tmp_path / "figures.json").read_text())["miou"] == figures["miou"]


def test_other_ways_to_show_the_images(segmenter: Path, regions: Path) -> None:
    whole = evaluation(segmenter, regions, window="whole")
    averaged = evaluation(segmenter, regions, multi_scale=True)
    assert "whole images" in whole["inference"] and "averaged over six sizes" in averaged["inference"]
    assert min(whole["miou"], averaged["miou"]) > 0.6
    plain = json.loads((segmenter / "results.json").read_text())["last"]["eval/loss"]
    apart = [abs(a - b) for a, b in combinations([plain, whole["loss"], averaged["loss"]], 2)]
    assert min(apart) > 1e-3  # far more than two ways to the same figure differ by


def test_an_evaluation_without_a_labelled_pixel_is_refused(segmenter: Path, regions: Path, tmp_path: Path) -> None:
    shutil.copytree(regions, tmp_path / "data")
    for path in (tmp_path / "data/annotations/validation").iterdir():
        Image.fromarray(np.zeros_like(np.array(opened(path)))).save(path)
    out = tmp_path / "figures.json"
    with pytest.raises(UserError, match=r"--data: no pixel of the 6 label maps has a class \(255 and 0 stand"):
        evaluation(segmenter, tmp_path / "data", out=str(out))
    assert not out.exists()


def test_a_file_that_cannot_be_is_refused_before_the_evaluation(regions: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for out, expected in (
        ("file/x.json", "in no folder, or is none"),
        ("folder.json", "a folder; name a file"),
    ):
        with pytest.raises(UserError, match=f"--out .*{expected}"):
            evaluation(tmp_path / "no model is read", regions, out=str(tmp_path / out))


def test_a_side_too_long_for_a_jpeg_makes_the_overlay_smaller(segmenter: Path, tmp_path: Path) -> None:
    for name, width in (("long", 65_501), ("short", 40)):
        Image.new("RGB", (width, 2), (200, 50, 40)).save(tmp_path / f"{name}.png")
    images, out = (str(tmp_path / "long.png"), str(tmp_path / "short.png")), tmp_path / "out"
    assert predict(PredictConfig(images=images, model=str(segmenter), out=str(out), **PLAIN)).results["images"] == 2
    assert opened(out / "maps/long.png").size == (65_501, 2)
    assert opened(out / "overlays/long.jpg").width == 65_500 and opened(out / "overlays/short.jpg").width == 40


def test_a_pipe_that_breaks_is_no_file_that_cannot_be_written(
    segmenter: Path, regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(record: dict[str, Any]) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("beit.recipes.predict.maps.show", show)
    photo = str(regions / "images/validation/0.jpg")
    with pytest.raises(BrokenPipeError):
        predict(PredictConfig(images=(photo,), model=str(segmenter), out=str(tmp_path / "out"), **PLAIN))


def test_more_classes_than_a_byte_holds_make_a_16_bit_map(tmp_path: Path) -> None:
    legend = Legend([str(number) for number in range(300)], generated_palette(300), 1)
    write_map(torch.tensor([[0, 255, 299]], dtype=torch.int32), legend, tmp_path / "map.png")
    assert np.array(opened(tmp_path / "map.png")).tolist() == [[1, 256, 300]]


@pytest.mark.parametrize(("count", "first", "bits"), [(255, 0, 8), (256, 0, 16), (254, 1, 8), (255, 1, 16)])
def test_255_is_no_class_in_a_map_of_8_bits(tmp_path: Path, count: int, first: int, bits: int) -> None:
    legend = Legend([str(number) for number in range(count)], generated_palette(count), first)
    write_map(torch.tensor([[0, count - 1]], dtype=torch.uint8), legend, tmp_path / "map.png")
    written = opened(tmp_path / "map.png")
    assert np.array(written).tolist() == [[first, first + count - 1]]
    assert written.mode == ("P" if bits == 8 else "I;16")


def test_an_image_too_large_for_the_memory_costs_itself_alone(
    segmenter: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one pass it would take 800 times the memory of a large machine: no system may begin to give it out."""
    Image.new("RGB", (8000, 8000), (200, 50, 40)).save(tmp_path / "large.png")
    images, out = (str(tmp_path / "large.png"), str(regions / "images/validation/0.jpg")), tmp_path / "out"
    values: dict[str, Any] = {"images": images, "model": str(segmenter), "out": str(out), **PLAIN}
    assert predict(PredictConfig(window="whole", **values)).results["images"] == 1
    output = capsys.readouterr().err
    assert f"skipped {images[0]}: an image of 8000x8000 px in one pass takes 14,901 GiB for attention" in output
    assert "choose --window slide, or make it smaller" in output and "maps for 1 of 2 images; 1 could not" in output
    assert [path.name for path in (out / "maps").iterdir()] == ["0.png"]


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_lack_of_memory_is_one_line(
    segmenter: Path,
    regions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    scores = Inference.scores

    def scarce(self: Inference, model: Any, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if size[0] == 44:
            raise error
        return scores(self, model, images, size)

    monkeypatch.setattr(Inference, "scores", scarce)
    folder, out = regions / "images/validation", tmp_path / "out"
    assert (
        predict(PredictConfig(images=(str(folder),), model=str(segmenter), out=str(out), **PLAIN)).results["images"]
        == 4
    )
    output = capsys.readouterr().err
    assert output.count("out of memory with an image of 56x44 px; make it smaller") == 2
    assert "label maps for 4 of 6 images; 2 could not be read" in output
    with pytest.raises(RunFailed, match="out of memory with an image of 56x44 px; choose --window slide") as caught:
        evaluation(segmenter, regions, window="whole")
    assert str(caught.value).startswith(f"{folder / '1.jpg'}: ")


def test_what_does_not_go_together_is_refused(
    segmenter: Path, pretrained: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"--multi-scale is for segmenters, .* drop it"):
        evaluation(pretrained, regions, multi_scale=True)
    other = tmp_path / "other"
    shutil.copytree(regions, other)
    (other / "classes.tsv").write_text("value\tname\n1\tred\n2\tblue\n3\tgreen\n")
    with pytest.raises(UserError, match="the number 2 is 'blue' there and 'green' in the model, and 1 other"):
        evaluation(segmenter, other)
    (other / "classes.tsv").write_text("value\tname\n1\tred;crimson\n2\tGreen\n3\tblue\n")
    assert set(evaluation(segmenter, other)["classes"]) == {"red", "green", "blue"}
    assert "2 classes have other names in the model" in capsys.readouterr().err
    for values, expected in (
        ({}, "say where to: --out FOLDER"),
        ({"out": "maps.csv"}, "written to a folder"),
        ({"out": "maps", "layer": 1}, "--layer is for features"),
        ({"out": str(regions / "images")}, "name a folder for the label maps alone"),
        ({"out": str(regions)}, "name a folder for the label maps alone"),
    ):
        with pytest.raises(UserError, match=expected):
            predict(PredictConfig(images=(str(regions / "images"),), model=str(segmenter), **values))


def test_predicted_maps_follow_the_data_and_can_be_trained_on(
    segmenter: Path, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = regions / "images", tmp_path / "out"
    config = PredictConfig(images=(str(images),), model=str(segmenter), out=str(out), **PLAIN)
    assert predict(config).results["images"] == 22
    records = list(predictions(config))
    assert len(records) == 22 and records[0]["label_map"].shape == records[0]["picture"].shape[1:]
    assert sum(records[0]["classes"].values()) == pytest.approx(1, abs=1e-5)
    agreeing = labelled = 0
    for path in sorted((out / "maps").rglob("*.png")):
        written, image = opened(path), images / path.relative_to(out / "maps").with_suffix(".jpg")
        assert written.mode == "P" and written.size == opened(image).size
        assert written.getpalette()[:12] == [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]  # type: ignore[index]
        numbers = np.array(written)
        truth = np.array(opened(regions / "annotations" / path.relative_to(out / "maps")))
        assert numbers.min() >= 1  # 0 means "no class" there
        agreeing += int((numbers == truth)[truth > 0].sum())
        labelled += int((truth > 0).sum())
    assert agreeing / labelled > 0.9
    overlay = opened(out / "overlays" / "training" / "0.jpg")
    assert overlay.size == opened(images / "training" / "0.jpg").size
    assert f"label maps for 22 of 22 images; wrote {out}" in capsys.readouterr().err
    first = np.array(opened(out / "maps/training/0.png"))
    assert np.array_equal(first, records[0]["label_map"] + 1)
    # The maps and their table take the place of the annotations as they are.
    again = tmp_path / "again"
    shutil.copytree(images, again / "images")
    shutil.copytree(out / "maps", again / "annotations")
    shutil.copy(out / "classes.tsv", again)
    source = open_pairs([str(again)], holdout=Holdout(0.1), reduce_zero_label=True)["train"]
    assert source.classes == ("red", "green", "blue") and source.palette[0] == (255, 0, 0)
    assert source.label(0).max() <= 2


def test_images_of_one_name_do_not_overwrite_each_other(segmenter: Path, regions: Path, tmp_path: Path) -> None:
    photo, folder = regions / "images/training/0.jpg", tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photo, folder / "a.jpg")
    opened(photo).save(folder / "a.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    chosen = (str(folder), str(photo), str(regions / "images/validation/0.jpg"))
    config = PredictConfig(images=chosen, model=str(segmenter), out=str(out), overlays=False, **PLAIN)
    assert predict(config).results["images"] == 4
    files = {path.relative_to(out / "maps").as_posix() for path in (out / "maps").rglob("*.png")}
    assert len(files) == 4 and {"a.jpg.png", "a.png.png"} < files
    assert not (out / "overlays").exists()


def test_a_prediction_is_what_the_network_says(segmenter: Path, regions: Path, tmp_path: Path) -> None:
    """One window over an image of the size of a crop: no geometry between the network and the file."""
    photo = tmp_path / "photo.png"
    opened(regions / "images/training/0.jpg").crop((8, 0, 40, 32)).save(photo)
    predict(PredictConfig(images=(str(photo),), model=str(segmenter), out=str(tmp_path / "out"), **PLAIN))
    written = torch.from_numpy(np.array(opened(tmp_path / "out/maps/photo.png"))).long()
    pixels = torch.from_numpy(np.array(opened(photo))).permute(2, 0, 1)[None]
    with torch.no_grad():
        assert torch.equal(written - 1, beit.load_model(segmenter)(pixels).argmax(1)[0])
