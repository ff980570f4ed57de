"""Images with label maps: which belong together, what the numbers mean, and one clear line for every mistake."""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from pair_files import NUMBERS, keys, mistake, pairs, save, table_file, write_pairs
from PIL import Image, ImageFilter

from beit.config.errors import UserError
from beit.data.decode import ImageError
from beit.data.label_maps.colors import ColorKey
from beit.data.label_maps.maps import decode_label_map
from beit.data.label_maps.pairs import PairSource, open_pairs
from beit.data.label_maps.table import named_table
from beit.data.loaders import Loader, evaluation_batches
from beit.data.sources.demo import DemoSource
from beit.data.sources.holdout import Holdout
from beit.data.sources.subsets import limited
from beit.data.views.segmentation import SegmentationEvaluationView, SegmentationView
from beit.pixels import Limits

REAL = os.environ.get("BEIT_REAL_DATA")
FOUR_CLASSES = "value,name\n0,a\n1,b\n2,c\n3,d\n"


def damage(path: Path) -> Path:
    """Cut the file short."""
    path.write_bytes(path.read_bytes()[:-30])
    return path


# ------------------------------------------------------------------------------------------------------------
# Layouts


def test_splits_with_folders(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a", "training/deep/b", "validation/c")
    write_pairs(tmp_path, "training/spare")
    (tmp_path / "images/training/spare.png").unlink()
    train, held_back = pairs(tmp_path), pairs(tmp_path, "val")
    assert keys(train) == ["images/training/a.png", "images/training/deep/b.png"]
    assert keys(held_back) == ["images/validation/c.png"]
    assert train.classes == ("0", "1", "2", "3") and len(set(train.palette)) == 4
    assert torch.equal(train.label(1), torch.from_numpy(NUMBERS)) and train.image(1).shape == (3, 4, 6)
    assert any("1 label map without an image ignored" in note and "spare" in note for note in train.notes)
    assert any("the numbers in 2 of 2 label maps" in note for note in train.notes)
    assert not any("(label maps for segmentation)" in note for note in train.notes)
    assert train.describe() == f"2 images, from {tmp_path}, with label maps of 4 classes"


def test_a_pool_gives_up_a_share_and_limit_a_choice(tmp_path: Path) -> None:
    write_pairs(tmp_path, *map(str, range(30)))
    train, held_back = pairs(tmp_path), pairs(tmp_path, "val")
    assert sorted(keys(train) + keys(held_back)) == sorted(f"images/{i}.png" for i in range(30))
    assert len(held_back) == 9
    few = limited(train, 3, 0)
    assert isinstance(few, PairSource)
    assert len(few) == 3 and set(keys(few)) < set(keys(train)) and keys(few) != keys(train)[:3]
    assert few.fingerprint != train.fingerprint and torch.equal(few.label(2), torch.from_numpy(NUMBERS))


def test_tars_hold_what_folders_hold(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", "training/a", "training/b", "validation/c")
    (tmp_path / "packed").mkdir()
    for folder in ("set", "packed"):
        table_file(tmp_path / folder, FOUR_CLASSES)
    for split in ("training", "validation"):
        with tarfile.open(tmp_path / f"packed/{split}.tar", "w") as tar:
            for top in ("images", "annotations"):
                tar.add(tmp_path / f"set/{top}/{split}", f"{top}/{split}")
    for split in ("train", "val"):
        plain, packed = pairs(tmp_path / "set", split), pairs(tmp_path / "packed", split)
        assert keys(plain) == keys(packed) and plain.classes == packed.classes == tuple("abcd")
        assert torch.equal(plain.label(0), packed.label(0))


def test_demo_scenes() -> None:
    scenes = DemoSource("train")
    source, reduced = (
        open_pairs(["demo"], holdout=Holdout(0.005), reduce_zero_label=reduce)["val"] for reduce in (False, True)
    )
    index = int(source.key(7).partition("/")[2])
    truth = torch.from_numpy(scenes.label_map(index)).long()
    assert len(source) == 30 and source.classes == scenes.label_classes
    assert torch.equal(source.image(7), scenes.image(index)) and torch.equal(source.label(7).long(), truth)
    assert reduced.classes == scenes.label_classes[1:] == scenes.classes
    assert torch.equal(reduced.label(7).long(), torch.where(truth == 0, 255, truth - 1))


def test_an_image_turned_by_exif_goes_with_an_upright_map(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images/training/a.png").unlink()
    save(tmp_path / "images/training/a.jpg", Image.new("RGB", (4, 6)), exif=exif)
    source = pairs(tmp_path)
    assert source.image(0).shape[1:] == source.label(0).shape == (4, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_an_image_and_a_map_are_turned_by_one_rule(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for top in ("images", "annotations"):
        save(tmp_path / f"{top}/training/a{suffix}", Image.fromarray(NUMBERS), exif=exif)
    source = pairs(tmp_path)
    assert torch.equal(source.label(0), torch.from_numpy(np.rot90(NUMBERS, -1).copy()))
    assert torch.equal(source.image(0)[0], source.label(0))


# ------------------------------------------------------------------------------------------------------------
# Files of numbers


def _palette(numbers: NDArray[Any]) -> Image.Image:
    picture = Image.fromarray(numbers, "L").convert("P")
    picture.putdata(numbers.ravel().tolist())
    picture.putpalette([255 - value for value in range(12)])
    return picture


def _packed_png(numbers: NDArray[Any], bits: int) -> bytes:
    """Gray of `bits` bits a pixel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    height, width = numbers.shape
    digits = (numbers[:, :, None] >> np.arange(bits)[::-1]) & 1
    lines = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


WRITERS: dict[str, Callable[[Path], object]] = {
    "gray": lambda path: Image.fromarray(NUMBERS).save(path),
    "palette": lambda path: _palette(NUMBERS).save(path),
    "packed palette": lambda path: _palette(NUMBERS).save(path, bits=2),
    "16 bits": lambda path: Image.fromarray(NUMBERS.astype(np.uint16)).save(path),
    "32 bits": lambda path: Image.fromarray(NUMBERS.astype(np.int32)).save(path, "TIFF"),
    "4 bits": lambda path: path.write_bytes(_packed_png(NUMBERS, 4)),
    "2 bits": lambda path: path.write_bytes(_packed_png(NUMBERS, 2)),
    "white is zero": lambda path: tifffile.imwrite(path, NUMBERS, photometric="miniswhite"),
    "fewer shades": lambda path: path.write_bytes(b"P5 6 4 3\n" + NUMBERS.tobytes()),
    "fewer shades in text": lambda path: path.write_text(f"P2 6 4 9\n{' '.join(map(str, NUMBERS.ravel()))}\n"),
    "fewer of many shades": lambda path: path.write_bytes(b"P5 6 4 1000\n" + NUMBERS.astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_numbers_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    write_pairs(tmp_path, "training/a")
    WRITERS[kind](tmp_path / "annotations/training/a.png")
    assert torch.equal(pairs(tmp_path).label(0), torch.from_numpy(NUMBERS))
    reduced = pairs(tmp_path, reduce_zero_label=True)
    assert reduced.classes == ("1", "2", "3")
    expected = torch.from_numpy(np.where(NUMBERS == 0, 255, NUMBERS.astype(int) - 1).astype(np.uint8))
    assert torch.equal(reduced.label(0), expected)


BITS: dict[str, Callable[[Path], object]] = {
    "png": lambda path: save(path, Image.fromarray(NUMBERS > 1)),
    "bmp": lambda path: save(path, Image.fromarray(NUMBERS > 1), format="BMP"),
    "tiff": lambda path: save(path, Image.fromarray(NUMBERS > 1), format="TIFF"),
    "white is zero": lambda path: tifffile.imwrite(path, NUMBERS > 1, photometric="miniswhite"),
    "bitmap": lambda path: path.write_bytes(b"P4 6 4\n" + np.packbits(NUMBERS > 1, axis=1).tobytes()),
    "bitmap in text": lambda path: path.write_text(f"P1 6 4 {' '.join(map(str, (NUMBERS > 1).ravel() + 0))}\n"),
}


@pytest.mark.parametrize("kind", BITS)
def test_black_and_white_pictures_of_one_bit_hold_0_and_1(tmp_path: Path, kind: str) -> None:
    write_pairs(tmp_path, "training/a")
    BITS[kind](tmp_path / "annotations/training/a.png")
    assert torch.equal(pairs(tmp_path).label(0), torch.from_numpy(NUMBERS > 1).byte())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("reduced", [False, True])
def test_every_number_is_a_class_or_none_or_refused(dtype: Any, reduced: bool) -> None:
    table = named_table(["a", "b", "c"], reduced, "the table")
    meaning = {0: 255, 1: 0, 2: 1, 3: 2, 255: 255} if reduced else {0: 0, 1: 1, 2: 2, 255: 255}
    for number in range(256):
        numbers = np.array([[1, 2], [255, number]], dtype=dtype)
        if number in meaning:
            assert table.indices(numbers, "x").tolist() == [[meaning[1], meaning[2]], [255, meaning[number]]]
        else:
            with pytest.raises(
                UserError, match=rf"x holds the number {number}, .* the table run from {int(reduced)}"
            ):
                table.indices(numbers, "x")
    for number in {np.uint16: [256, 65535], np.int32: [-1, 256, 70000]}.get(dtype, []):
        with pytest.raises(UserError, match=f"holds the number {number}"):
            table.indices(np.array([[1, number]], dtype=dtype), "x")


COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [255, 255, 255]], np.uint8)
COLORED_CLASSES = "value,name,r,g,b\n0,a,0,0,0\n1,b,128,0,0\n2,c,0,128,0\n3,d,255,255,255\n255,void,224,224,192\n"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_through_the_table(tmp_path: Path, mode: str) -> None:
    pixels = COLORS[NUMBERS]
    pixels[0, 0] = 224, 224, 192
    write_pairs(tmp_path, "training/a", "training/b")
    for stem in "ab":
        save(tmp_path / f"annotations/training/{stem}.png", Image.fromarray(pixels).convert(mode))
    assert "name the colours in a table of classes" in mistake(tmp_path)
    table_file(tmp_path, FOUR_CLASSES)
    assert "name the colours in a table of classes" in mistake(tmp_path)
    table_file(tmp_path, COLORED_CLASSES)
    expected = NUMBERS.copy()
    expected[0, 0] = 255
    assert torch.equal(pairs(tmp_path).label(0), torch.from_numpy(expected))
    pixels[1, :5] = [[1, 2, 3], [1, 2, 3], [9, 9, 9], [8, 8, 8], [7, 7, 7]]
    for stem in "ab":
        save(tmp_path / f"annotations/training/{stem}.png", Image.fromarray(pixels).convert(mode))
    said = mistake(tmp_path)
    assert ".png holds the colours (1, 2, 3), (9, 9, 9), (8, 8, 8) and 1 more in 5 pixels" in said
    assert "classes.csv gives to no class" in said
    table_file(tmp_path, COLORED_CLASSES.replace("2,c,0,128,0", "2,c,128,0,0"))
    assert "the colours (128, 0, 0), (0, 128, 0)" in mistake(tmp_path) and "or to two" in mistake(tmp_path)


def test_transparent_colours_have_no_class(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    table_file(tmp_path, COLORED_CLASSES)
    save(tmp_path / "annotations/training/a.png", Image.new("RGBA", (6, 4), (128, 0, 0, 9)))
    assert "a.png has transparent pixels" in mistake(tmp_path)


def _save_with_palette(path: Path, colors: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(NUMBERS, "L").convert("P")
    picture.putdata(NUMBERS.ravel().tolist())
    picture.putpalette(colors.ravel().tolist())
    picture.save(path)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_palettes_that_disagree_are_refused_by_name(tmp_path: Path, split: str) -> None:
    write_pairs(tmp_path, "training/a", "training/gray", f"{split}/b")
    first, second = tmp_path / "annotations/training/a.png", tmp_path / f"annotations/{split}/b.png"
    _save_with_palette(first, COLORS)
    _save_with_palette(second, np.concatenate([COLORS, COLORS]))  # what no pixel has says nothing
    for part in ("train", "val") if split == "validation" else ("train",):
        assert torch.equal(pairs(tmp_path, part).label(0), torch.from_numpy(NUMBERS))
    _save_with_palette(second, COLORS[[0, 2, 1, 3]])
    opened = open_pairs([str(tmp_path)], holdout=Holdout(0))
    with pytest.raises(UserError) as caught:
        for part in opened:
            opened[part].count_pixels(1000)
    assert f"{second} has the colour (0, 128, 0) for the number 1" in str(caught.value)
    assert f"is (128, 0, 0) in {first}" in str(caught.value)


def test_a_palette_that_disagrees_with_the_table_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/a")
    table = table_file(tmp_path, COLORED_CLASSES)
    _save_with_palette(tmp_path / "annotations/training/a.png", COLORS)
    assert torch.equal(pairs(tmp_path).label(0), torch.from_numpy(NUMBERS))
    _save_with_palette(tmp_path / "annotations/training/a.png", COLORS[[0, 2, 1, 3]])
    assert f"for the number 1, which {table} gives to 2" in mistake(tmp_path)


@pytest.mark.parametrize("shades", [[0, 128], [0, 128, 255], [0, 85, 170, 255], [7, 200]])
def test_shades_are_no_classes(tmp_path: Path, shades: list[int]) -> None:
    numbers = np.array(shades, np.uint8)[NUMBERS % len(shades)]
    write_pairs(tmp_path, "training/a", numbers=numbers)
    said = mistake(tmp_path)
    assert "a.png holds the number" in said and "like shades of gray; write 0, 1" in said
    table_file(tmp_path, "value,name\n" + "".join(f"{i},c{i}\n" for i in range(201)))
    assert np.array_equal(pairs(tmp_path).label(0), numbers)


def test_a_map_that_was_smoothed_is_told(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    disc = Image.fromarray(((x - 30) ** 2 + (y - 30) ** 2 < 300).astype(np.uint8) * 255)
    write_pairs(tmp_path, *"abcdef", numbers=np.resize(NUMBERS, (64, 64)))
    for number, stem in enumerate("abcdef"):
        blurred = disc.resize((64 + number, 64)).filter(ImageFilter.GaussianBlur(1)).crop((0, 0, 64, 64))
        save(tmp_path / f"annotations/{stem}.png", blurred)
    said = mistake(tmp_path)
    assert "holds many numbers with few pixels each" in said and "by nearest neighbour" in said


# ------------------------------------------------------------------------------------------------------------
# Mistakes


def _replace_map(picture: Image.Image, suffix: str = ".png") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "annotations/training/b.png").unlink()
        save(root / f"annotations/training/b{suffix}", picture)

    return change


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda root: (root / "annotations/training/b.png").unlink(),
        "the image images/training/b.png has no label map annotations/training/b.png; add it",
    ),
    "two images": (
        lambda root: save(root / "images/training/b.jpg", Image.new("RGB", (6, 4))),
        "images/training/b.jpg and images/training/b.png are images of one label map",
    ),
    "two": (
        lambda root: save(root / "annotations/training/b.tif", Image.fromarray(NUMBERS)),
        "annotations/training/b.png and annotations/training/b.tif are label maps of one image",
    ),
    "size": (
        _replace_map(Image.fromarray(NUMBERS.T.copy())),
        r"b\.png has 4x6 pixels, but its image .*b\.png 6x4",
    ),
    "colour": (
        _replace_map(Image.new("RGB", (6, 4))),
        r"training/b\.png is a colour picture and no label map",
    ),
    "alpha": (_replace_map(Image.new("LA", (6, 4))), r"training/b\.png is a picture of mode LA and no"),
    "float": (_replace_map(Image.new("F", (6, 4)), ".tif"), r"training/b\.tif holds float32 numbers in 1 band"),
    "jpeg": (_replace_map(Image.fromarray(NUMBERS), ".jpg"), r"training/b\.jpg is a JPEG"),
    "number": (
        _replace_map(Image.new("L", (6, 4), 9)),
        r"training/b\.png holds the number 9.*classes\.csv.* 0 to 3",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_map_is_named_before_training(tmp_path: Path, kind: str) -> None:
    write_pairs(tmp_path, "training/a", "training/b")
    table_file(tmp_path, FOUR_CLASSES)
    change, reason = WRONG[kind]
    change(tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        pairs(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", "training/a")
    assert f"name the folder {tmp_path / 'set'} itself" in mistake(tmp_path)
    save(tmp_path / "photos/a.png", Image.new("RGB", (6, 4)))
    assert "has no images/ and no annotations/" in mistake(tmp_path / "photos")
    save(tmp_path / "half/images/a.png", Image.new("RGB", (6, 4)))
    assert "has no annotations/ with pictures" in mistake(tmp_path / "half")
    write_pairs(tmp_path / "evaluation", "validation/a")
    assert open_pairs([str(tmp_path / "evaluation")], holdout=Holdout()).keys() == {"val"}
    write_pairs(tmp_path / "ids", "training/a", numbers=np.full((4, 6), 1000, dtype=np.uint16))
    assert "a.png holds the number 1000; 254 classes at most" in mistake(tmp_path / "ids")


def test_sets_of_their_own_classes_are_refused_beside_others() -> None:
    for data, options, reason in (
        (["demo", "x"], {}, "train on it alone"),
        (["demo"], {"class_table": "classes.csv"}, "--classes is for folders; demo has its own"),
        (["cifar10"], {}, "cifar10 has no label maps"),
    ):
        with pytest.raises(UserError, match=reason):
            open_pairs(data, holdout=Holdout(0.1), **options)["train"]


def test_two_tables_are_one_too_many(tmp_path: Path) -> None:
    folders = [write_pairs(tmp_path / name, "training/a") for name in ("set", "other")]
    for folder in folders:
        table_file(folder, FOUR_CLASSES)
    with pytest.raises(UserError, match="both name classes"):
        open_pairs(list(map(str, folders)), holdout=Holdout(0.1))["train"]
    second = table_file(folders[0], FOUR_CLASSES.replace(",", "\t"), "classes.tsv")
    message = mistake(folders[0])
    assert "classes.tsv and " in message and "--classes FILE" in message
    assert pairs(folders[0], class_table=second).classes == ("a", "b", "c", "d")


@pytest.mark.parametrize("part", ["images", "annotations", "images/training"])
def test_a_part_of_a_set_is_refused_with_the_folder_of_the_whole(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "set", "training/a")
    assert mistake(tmp_path / "set" / part).endswith(f"; name the folder {tmp_path / 'set'} itself")
    monkeypatch.chdir(tmp_path / "set" / part)
    assert f"name the folder {tmp_path / 'set'} itself" in mistake(Path("."))


def test_every_map_is_read_where_that_is_asked_for(tmp_path: Path) -> None:
    """Of forty, which is more than are read when a set is opened."""
    write_pairs(tmp_path, *(f"validation/{i:02d}" for i in range(40)))
    table_file(tmp_path, FOUR_CLASSES)
    damage(tmp_path / "annotations/validation/07.png")
    pairs(tmp_path, "val").count_pixels(1000)
    Image.new("L", (6, 4), 9).save(tmp_path / "annotations/validation/11.png")
    with pytest.raises(UserError, match=r"11\.png holds the number 9"):
        pairs(tmp_path, "val").count_pixels(1000)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_map_stops_training_and_a_damaged_one_is_left_out(tmp_path: Path, workers: int) -> None:
    write_pairs(tmp_path, *(f"training/{i:02d}" for i in range(40)))
    table_file(tmp_path, FOUR_CLASSES)
    source = pairs(tmp_path)
    damaged = damage(tmp_path / "annotations/training/07.png")
    names: list[str] = []
    options: dict[str, Any] = {"seed": 0, "labeled": True, "workers": workers}
    options["on_bad"] = lambda name, _: names.append(name)
    loader = Loader(source, SegmentationView((8, 8)), batch_size=8, **options)
    batches = list(loader.batches(0, 5))
    assert names == [str(damaged)]
    assert batches[0].image.shape == (8, 3, 8, 8) and batches[0].label_map.shape == (8, 8, 8)
    Image.new("L", (6, 4), 9).save(tmp_path / "annotations/training/11.png")
    with pytest.raises(UserError, match=r"training/11\.png holds the number 9") as error:
        list(loader.batches(0, 5))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"training/11\.png"):
        list(evaluation_batches(source, SegmentationEvaluationView(), batch_size=1, **options))


# ------------------------------------------------------------------------------------------------------------
# Real sets


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="BEIT_REAL_DATA is not set")
def test_camvid_has_the_shares_that_its_description_states() -> None:
    assert REAL is not None
    source = open_pairs([f"{REAL}/camvid"], holdout=Holdout(0.1), reduce_zero_label=True)["train"]
    assert len(source) == 367 and len(source.classes) == 11 and source.palette[3] == (128, 64, 128)
    counts = sum(np.bincount(source.label(i).numpy().ravel(), minlength=256) for i in range(len(source)))
    shares = 100 * np.asarray(counts) / np.sum(counts)
    stated = dict(sky=16.85, building=23.26, pole=0.98, road=31.66, pavement=4.49, tree=9.72, signsymbol=1.17)
    stated |= dict(fence=1.13, car=5.87, pedestrian=0.64, bicyclist=0.29)
    assert stated.keys() == set(source.classes)
    for name, share in stated.items():
        assert shares[source.classes.index(name)] == pytest.approx(share, abs=0.005)
    assert shares[255] == pytest.approx(3.95, abs=0.005)


@pytest.mark.skipif(REAL is None, reason="BEIT_REAL_DATA is not set")
def test_ade20k_is_read_as_it_is_published() -> None:
    source = open_pairs([f"{REAL}/ade20k_sample"], holdout=Holdout(0.1), reduce_zero_label=True)["val"]
    assert source.classes[:3] == ("wall", "building;edifice", "sky") and len(source.classes) == 150
    assert source.image(0).shape == (3, 512, 683) and source.label(0).shape == (512, 683)
    names = {source.classes[i] for i in source.label(0).unique().tolist() if i != 255}
    expected = {"wall", "building;edifice", "sky", "tree", "road;route", "grass", "plant;flora;plant;life"}
    assert names == expected
    assert "numbers its classes from 1" in mistake(Path(f"{REAL}/ade20k_sample"), "val")


@pytest.mark.parametrize("options", [{}, {"quality": 100}])
def test_a_map_that_was_a_jpeg_within_a_tiff_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    write_pairs(tmp_path, "training/0", "training/1")
    for path in sorted((tmp_path / "annotations/training").iterdir()):
        path.unlink()
        save(path.with_suffix(".tif"), Image.fromarray(NUMBERS), compression="jpeg", **options)
    assert ".tif is a TIFF whose compression changes numbers; write" in mistake(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [("tif", "has 2 pages or frames"), ("gif", "has 2 pages or frames"), ("png", "has 2 pages or frames")],
)
def test_a_map_of_several_pages_is_refused(suffix: str, expected: str, tmp_path: Path) -> None:
    """Of which all but the first would be dropped."""
    write_pairs(tmp_path, "training/0", "training/1")
    for path in sorted((tmp_path / "annotations/training").iterdir()):
        path.unlink()
        page, other = Image.fromarray(NUMBERS), Image.fromarray(NUMBERS + 1)
        save(path.with_suffix(f".{suffix}"), page, save_all=True, append_images=[other])
    assert expected in mistake(tmp_path)


STORED = [np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def stored(path: Path, dtype: Any, **options: Any) -> NDArray[Any]:
    """A map of numbers of this kind, as .npy or .tif, and what it holds."""
    numbers = NUMBERS.astype(dtype)
    if path.suffix == ".npy":
        np.save(path, numbers.astype(numbers.dtype.newbyteorder(options.get("byteorder", "<"))))
    else:
        tifffile.imwrite(path, numbers, **{"photometric": "minisblack", **options})
    return numbers


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_numbers_of_any_width_and_order_are_read_as_they_are(suffix: str, dtype: Any, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{"byteorder": order} for order in "<>"]
    if suffix == ".tif":
        kinds = [{**kind, "bigtiff": big} for kind in kinds for big in (False, True)]
        kinds += [{**kind, "photometric": "miniswhite"} for kind in kinds]
        kinds += [{"compression": "zlib"}, {"compression": "lzw", "tile": (16, 16)}]
        # Differences, which Pillow does not undo in every compression.
        packed = ("packbits", "lzw", "zlib") if dtype not in (np.bool_, np.uint64, np.int64) else ()
        kinds += [{"compression": compression, "predictor": True} for compression in packed]
    for kind in kinds:
        file = tmp_path / f"a{suffix}"
        expected = stored(file, dtype, **kind)
        found = decode_label_map(file.read_bytes(), "a", Limits(), ColorKey(None))
        assert np.array_equal(found, expected), kind
    write_pairs(tmp_path, "training/0", "training/1")
    for path in sorted((tmp_path / "annotations/training").iterdir()):
        path.unlink()
        expected = stored(path.with_suffix(suffix), dtype, byteorder=">")
    assert np.array_equal(pairs(tmp_path).label(0), expected)


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_numbers_of_floats_or_of_several_bands_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, "training/0", "training/1")
    for path in sorted((tmp_path / "annotations/training").iterdir()):
        path.unlink()
        stored(path.with_suffix(suffix), np.float64)
    assert f"{suffix} holds float64 numbers in 1 band and is no label map; write the number" in mistake(tmp_path)
    for dtype, bands in ((np.uint16, 3), (np.int64, 2)):
        values = np.zeros((4, 6, bands), dtype)
        if suffix == ".npy":
            np.save(tmp_path / "a.npy", values)
        else:
            tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
        with pytest.raises(UserError, match=f"holds {values.dtype} numbers in {bands} bands and is no label map"):
            decode_label_map((tmp_path / f"a{suffix}").read_bytes(), "a", Limits(), ColorKey(None))


def test_maps_that_a_compression_may_have_changed_are_refused_by_its_name(tmp_path: Path) -> None:
    for compression in ("jpegxl", "jpeg2000", "webp"):
        colored = {"photometric": "rgb"} if compression == "webp" else {}
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((16, 16, 3), np.uint8), compression=compression, **colored)
        with pytest.raises(
            ImageError, match=f"(?i){compression}.* compression may change numbers; write maps as PNG"
        ):
            decode_label_map((tmp_path / "a.tif").read_bytes(), "a", Limits(), ColorKey(None))
