"""`beit.predict(model, images)`: images as a program has them, in any form, and what a model says of each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beit
from beit.config.errors import UserError
from beit.data.decode import ImageError

pytestmark = pytest.mark.slow


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (48, 37), (210, 50, 50)).save(path)
    return path


def test_an_image_is_the_same_in_any_form(probed: Path, photo: Path) -> None:
    model, pixels = beit.load_model(probed), np.array(Image.open(photo))
    assert model.classes == ("blue", "green", "red")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Any] = [photo, str(photo), Image.open(photo), pixels, pixels / 255, tensor, tensor / 255]
    turned = pixels[..., ::-1].copy()[..., ::-1]  # as BGR is made RGB
    forms += [turned, np.asarray(Image.open(photo))]  # which may not be written
    found = [beit.predict(model, form) for form in forms]
    assert all(isinstance(one, beit.Prediction) and one.label == "red" for one in found)
    assert {one.probabilities == found[0].probabilities for one in found} == {True}  # type: ignore[union-attr]
    half = beit.predict(model, (tensor / 255).bfloat16().requires_grad_())
    assert half.label == "red"  # type: ignore[union-attr]
    gray = pixels[..., 0], pixels[..., :1], tensor[0], tensor[:1]
    assert len({beit.predict(model, form).probabilities["red"] for form in gray}) == 1  # type: ignore[union-attr, index]
    assert found[0].image == str(photo) and found[2].image is None  # type: ignore[union-attr]
    many = beit.predict(probed, [photo, pixels, *torch.stack([tensor, tensor])])
    assert isinstance(many, list) and [one.label for one in many] == ["red"] * 4
    assert [one.label for one in beit.predict(model, photo.parent)] == ["red"]  # type: ignore[union-attr]
    assert sum(many[0].probabilities.values()) == pytest.approx(1, abs=1e-4)  # type: ignore[union-attr]


NO_IMAGES: dict[str, Any] = {
    "channels first": np.zeros((3, 40, 40), np.uint8),
    "int64": np.zeros((40, 40, 3), np.int64),
    "floats to 255": np.full((40, 40, 3), 255.0),
    "empty": np.zeros((0, 40, 3), np.uint8),
    "objects": np.full((40, 40, 3), None),
    "complex": np.zeros((40, 40, 3), complex),
    "empty tensor": torch.zeros(3, 0, 40),
    "None": None,
    "a number": 7,
    "bytes": b"bytes of a file",
    "an open file": io.BytesIO(b"its bytes"),
    "a list of None": [None],
    "an empty PIL image": Image.new("RGB", (0, 5)),
    "an empty PIL image of 16 bits": Image.new("I;16", (5, 0)),
}


@pytest.mark.parametrize("image", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_refused(image: Any, probed: Path) -> None:
    with pytest.raises(UserError, match="give "):
        beit.predict(probed, image)


def test_a_pil_image_is_read_as_its_file(probed: Path, tmp_path: Path) -> None:
    """Numbers of 16 bits have a white, those of 32 bits and floats have none, in a program and in a file."""
    model, gray = beit.load_model(probed), np.linspace(0, 250, 40 * 48).reshape(40, 48)
    for suffix, dtype, factor in ((".png", np.uint16, 257), (".ppm", np.uint16, 257), (".png", np.uint8, 1)):
        file = tmp_path / f"a{suffix}"
        Image.fromarray((gray * factor).astype(dtype)).save(file)
        found = [beit.predict(model, one) for one in (file, Image.open(file), gray / 255)]
        named = [one.probabilities["red"] for one in found]  # type: ignore[union-attr, index]
        assert max(named[:2]) - min(named[:2]) < 1e-6 and abs(named[0] - named[2]) < 0.02, suffix
    for number in (np.int32, np.float32):
        Image.fromarray(gray.astype(number)).save(tmp_path / "a.tif")
        for one in (tmp_path / "a.tif", Image.open(tmp_path / "a.tif"), Image.fromarray(gray.astype(number))):
            with pytest.raises(
                ImageError, match=r"(a\.tif|48x40 of mode [IF]): .*no agreed range; .*, or give bytes"
            ):
                beit.predict(model, one)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(ImageError, match="a PIL image 48x40 of mode L: "):
        beit.predict(model, cut)


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_is_refused(training: bool, probed: Path) -> None:
    model = beit.load_model(probed).train(training)
    for dtype in (torch.uint8, torch.float32):
        with pytest.raises(UserError, match="the batch is empty; give one image or more"):
            model(torch.zeros(0, 3, *model.encoder.config.image_size, dtype=dtype))
    assert beit.predict(model, []) == []


def test_a_map_is_that_of_the_command(segmenter: Path, regions: Path) -> None:
    file = regions / "images/validation/0.jpg"
    one = beit.predict(segmenter, file)
    config = beit.PredictConfig(images=str(file), model=segmenter, workers=0, precision="float32")  # type: ignore[arg-type]
    [record] = beit.predictions(config)
    assert isinstance(one, beit.Prediction) and one.classes == record["classes"]
    assert np.array_equal(np.asarray(one.label_map), record["label_map"])


def test_paths_are_text_in_every_configuration(tmp_path: Path) -> None:
    config = beit.PretrainConfig(data=(tmp_path, "x"), tokenizer=tmp_path, out=tmp_path / "run")  # type: ignore[arg-type]
    assert config.sources == (str(tmp_path), "x") and config.tokenizer == str(tmp_path)
    assert beit.CheckConfig(data=tmp_path).sources == (str(tmp_path),)  # type: ignore[arg-type]
