from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_runs import blurred, images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit.visualize import pictures


def test_float_and_uint8_images_are_the_same_picture() -> None:
    image = images(1)[0]
    assert torch.equal(pictures.to_uint8(image / 255), image)
    assert np.array_equal(np.asarray(pictures.to_pil(image)), image.permute(1, 2, 0).numpy())
    assert pictures.to_uint8(torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1)).flatten().tolist() == [
        0,
        128,
        255,
    ]


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8), torch.zeros(3, 8, 8, dtype=torch.int64)]
)
def test_what_is_no_image_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        pictures.to_uint8(image)


def test_hidden_patches_are_covered_and_no_other_pixel_changes() -> None:
    image = images(1, side=32)[0]
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    shaded = pictures.shade_hidden(image, mask)
    hidden = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(shaded[:, ~hidden], image[:, ~hidden])
    assert (shaded[:, hidden] == torch.tensor(pictures.HIDDEN)[:, None]).all()


def test_tokens_keep_their_colour_and_neighbours_differ() -> None:
    palette = pictures.token_palette(512)
    assert torch.equal(palette[:256], pictures.token_palette(256)), (
        "a token's colour must not depend on the vocabulary"
    )
    assert len(palette.unique(dim=0)) == 512
    assert (palette[1:].int() - palette[:-1].int()).abs().sum(1).min() > 60
    picture = pictures.token_picture(torch.tensor([[3, 5], [5, 7]]), 512, cell=4)
    assert picture.shape == (3, 8, 8) and picture.dtype == torch.uint8
    assert (picture[:, :4, 4:] == palette[5][:, None, None]).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=3),
    columns=st.integers(1, 3),
)
def test_a_sheet_shows_whatever_it_is_given(sizes: list[tuple[int, int]], columns: int) -> None:
    rows = [torch.rand(3, *size) for size in sizes]
    captions = {f"{'very ' * 20}long caption {index}": rows for index in range(columns)}
    sheet = pictures.contact_sheet(captions)
    assert sheet.mode == "RGB"
    assert sheet.width < columns * 330 + 40


def test_a_sheet_puts_pictures_in_rows_and_columns() -> None:
    batch = images(2, side=64)
    sheet = np.asarray(pictures.contact_sheet({"image": batch, "soft": list(blurred(batch, 8))}))
    left, step = pictures.MARGIN, 192 + pictures.GAP
    top = sheet.shape[0] - pictures.MARGIN - 192
    pixels = sheet[top : top + 192, left : left + 192][1::3, 1::3]
    assert np.array_equal(pixels, batch[1].permute(1, 2, 0).numpy())
    soft = sheet[top : top + 192, left + step : left + step + 192][1::3, 1::3]
    assert np.array_equal(soft, pictures.to_uint8(blurred(batch, 8)[1]).permute(1, 2, 0).numpy())
    with pytest.raises(ValueError):
        pictures.contact_sheet({"image": batch, "fewer": batch[:1]})
    with pytest.raises(ValueError, match="at least one"):
        pictures.contact_sheet({})


def test_a_picture_is_saved_whole_in_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "step-000010-masked.webp"
    for picture in (pictures.to_pil(images(1, side=100)[0]), Image.new("RGB", (200, 200), "white")):
        pictures.save_picture(picture, path.parent, 10, "masked")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as written:
        assert written.size == (200, 200) and written.getpixel((99, 99)) == (255, 255, 255)


def test_a_captioned_grid_holds_every_image_and_marks_mistakes() -> None:
    captions = [(f"class {index}", index != 2) for index in range(5)]
    grid = np.asarray(pictures.captioned_grid(images(5, side=64), captions))
    left, top, step = pictures.MARGIN, pictures.MARGIN, pictures.CELL + pictures.GAP
    for column in range(4):
        part = grid[top : top + 192, left + column * step : left + column * step + 192]
        assert np.array_equal(part, pictures.to_pil(images(5, side=64)[column]).resize((192, 192), 0))
    assert grid.shape[1] == 2 * left + 4 * step - pictures.GAP
    red = (grid == pictures.MISTAKE).all(2)
    assert red.any() and not red[:, : left + 2 * step].any()
