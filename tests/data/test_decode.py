"""Any file becomes RGB uint8 or an error that names it."""

from __future__ import annotations

import csv
import io
import os
import resource
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pillow_heif import register_heif_opener

from beit.data.decode import Decoding, ImageError, _open_heif, decode_image, upright_size
from beit.data.label_maps.colors import ColorKey
from beit.data.label_maps.maps import decode_label_map
from beit.data.sources.opening import open_images
from beit.pixels import Limits

REAL = os.environ.get("BEIT_REAL_DATA")
AWKWARD = Path(REAL or ".") / "awkward"


def photo(height: int = 24, width: int = 40) -> Image.Image:
    """A smooth picture, so that JPEG changes it little."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = (x * 255 / width, y * 255 / height, 128 + 100 * np.sin((x + y) / 9))
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, **options: object) -> np.ndarray:
    decoded = decode_image(data, "some/file.jpg", Decoding(**options))
    assert decoded.dtype == torch.uint8 and decoded.shape[0] == 3
    return decoded.permute(1, 2, 0).numpy()


def png(values: np.ndarray, color_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    height, width = values.shape[:2]

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_are_exact(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encode(photo(), kind, **options)), np.array(photo()))


def test_pictures_of_phones_and_archives_are_found_and_read(tmp_path: Path) -> None:
    register_heif_opener()
    exact = {
        "jp2": {"irreversible": False},
        "j2k": {"irreversible": False},
        "avif": {"quality": 100, "subsampling": "4:4:4"},
    }
    kinds = {
        "jp2": "JPEG2000",
        "j2k": "JPEG2000",
        "avif": "AVIF",
        "jfif": "JPEG",
        "heic": "HEIF",
        "HIF": "HEIF",
    }
    large = photo(64, 96)
    for suffix, kind in kinds.items():
        large.save(tmp_path / f"a.{suffix}", kind, **exact.get(suffix, {"quality": 95}))
    source = open_images([str(tmp_path)])
    assert len(source) == len(kinds)
    for index in range(len(source)):
        error = np.abs(source.image(index).permute(1, 2, 0).numpy().astype(int) - np.array(large).astype(int))
        assert error.max() == 0 if source.key(index)[-3:] in ("jp2", "j2k") else error.mean() < 3, source.key(index)
        assert source.size(index) == (64, 96)


def test_the_package_that_reads_heic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    register_heif_opener()
    data = encode(photo(64, 64), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    _open_heif.cache_clear()
    with pytest.raises(ImageError, match=r"HEIC needs `pip install beit\[heif\]`"):
        pixels(data)


def test_bits_that_a_picture_has_beyond_eight_are_told_once(tmp_path: Path) -> None:
    import imagecodecs
    import pillow_heif

    register_heif_opener()  # which another test may have taken away, or have made already
    deep = np.random.default_rng(0).integers(0, 1024, (64, 96, 3), dtype=np.uint16)
    for name, bits in (("a", 8), ("b", 10), ("c", 12)):
        values = (deep >> max(0, 10 - bits) if bits <= 10 else deep << 2).astype(np.uint8 if bits == 8 else np.uint16)
        (tmp_path / f"{name}.avif").write_bytes(imagecodecs.avif_encode(values, level=90, bitspersample=bits))
    heif = pillow_heif.from_bytes("RGB;16", (96, 64), (deep << 6).tobytes())
    heif.save(tmp_path / "d.heic")
    photo(64, 96).save(tmp_path / "e.heic", "HEIF")
    photo(64, 96).save(tmp_path / "f.png")
    lines = [note for note in open_images([str(tmp_path)]).notes if "bits" in note]
    assert lines == ["3 of 6 files looked at are AVIF or HEIC of more than 8 bits, read as 8"]


def test_a_jpeg_of_other_bits_is_refused_by_name() -> None:
    import imagecodecs

    twelve = (np.arange(64 * 64).reshape(64, 64)).astype(np.uint16)
    for encoded in (
        imagecodecs.jpeg_encode(twelve, bitspersample=12),
        imagecodecs.ljpeg_encode(twelve, bitspersample=12),
    ):
        with pytest.raises(ImageError, match="a JPEG of 12 bits, which is not read; write PNG or TIFF"):
            pixels(encoded)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_both_jpeg_decoders_agree(options: dict[str, object]) -> None:
    data = encode(photo(), "JPEG", quality=95, **options)
    fast, exact = pixels(data).astype(int), pixels(data, pillow=True).astype(int)
    assert np.abs(fast - exact).max() <= 2
    assert np.abs(exact - np.array(photo()).astype(int)).mean() < 3


def test_gray_is_repeated_in_all_channels() -> None:
    gray = photo().convert("L")
    for data in (encode(gray, "JPEG", quality=95), encode(gray, "PNG")):
        decoded = pixels(data)
        assert (decoded[..., 0] == decoded[..., 1]).all() and (decoded[..., 1] == decoded[..., 2]).all()
        assert np.abs(decoded[..., 0].astype(int) - np.array(gray).astype(int)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    # How the stored picture is made from the upright one, by the EXIF standard's meaning of each value.
    upright = np.array(photo())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    decoded = pixels(encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright.astype(int)).mean() < 3


def test_alpha_lies_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255  # black: unseen, half seen, seen
    decoded = pixels(encode(Image.fromarray(rgba), "PNG"))
    np.testing.assert_allclose(decoded[0, :, 0].astype(int), [255, 127, 0], atol=1)


def test_transparent_palette_lies_over_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    for kind in ("PNG", "GIF"):
        decoded = pixels(encode(image, kind, transparency=0))
        np.testing.assert_array_equal(decoded, [[[255, 255, 255], [200, 100, 50]]])


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 30000, 65535]], np.uint16)
    expected = np.round(values / 257)
    decoded = pixels(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, -1))
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), "TIFF"))[..., 0], expected)
    colour = np.random.default_rng(0).integers(0, 65536, (4, 5, 3))
    np.testing.assert_array_equal(pixels(png(colour, 2)), np.round(colour / 257))
    alpha = np.dstack([colour, np.full((4, 5), 65535 // 3)])
    np.testing.assert_allclose(pixels(png(alpha, 6)), colour / 257 / 3 + 255 * 2 / 3, atol=0.51)


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


DEEP = np.random.default_rng(1).integers(0, 65536, (6, 9, 5), np.uint16)
TWELVE = {"extratags": [(281, 3, 1, 4095, True)]}
"""TIFF's MaxSampleValue."""
DEEP_TIFFS = {
    "chunky": (tiff(DEEP[..., :3], photometric="rgb"), DEEP[..., :3] / 257),
    "big endian": (tiff(DEEP[..., :3], photometric="rgb", byteorder=">", bigtiff=True), DEEP[..., :3] / 257),
    "deflate": (
        tiff(DEEP[..., :3], photometric="rgb", compression="zlib", predictor=True),
        DEEP[..., :3] / 257,
    ),
    "tiles": (tiff(DEEP[..., :3], photometric="rgb", tile=(16, 16)), DEEP[..., :3] / 257),
    "planar": (
        tiff(np.moveaxis(DEEP[..., :3], 2, 0).copy(), photometric="rgb", planarconfig="separate"),
        DEEP[..., :3] / 257,
    ),
    "white is zero": (tiff(DEEP[..., 0], photometric="miniswhite"), 255 - DEEP[..., 0] / 257),
    "white is zero, 8 bits": (
        tiff((DEEP[..., 0] >> 8).astype(np.uint8), photometric="miniswhite"),
        255 - (DEEP[..., 0] >> 8),
    ),
    "12 bits": (
        tiff(DEEP[..., 0] >> 4, photometric="minisblack", **TWELVE),
        (DEEP[..., 0] >> 4) / 4095 * 255,
    ),
    "12 bits, white is zero": (
        tiff(DEEP[..., 0] >> 4, photometric="miniswhite", **TWELVE),
        255 - (DEEP[..., 0] >> 4) / 4095 * 255,
    ),
    "infrared": (tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unspecified"]), DEEP[..., :3] / 257),
    "infrared, 8 bits": (
        tiff((DEEP[..., :4] >> 8).astype(np.uint8), photometric="rgb", extrasamples=["unspecified"]),
        DEEP[..., :3] >> 8,
    ),
    "bands": (tiff(DEEP, photometric="minisblack", planarconfig="contig"), DEEP[..., :3] / 257),
    "opacity": (
        tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unassalpha"]),
        255 - (65535 - DEEP[..., :3]) / 257 * (DEEP[..., 3:4] / 65535),
    ),
    "turned": (
        tiff(DEEP[..., :3], photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
        np.rot90(DEEP[..., :3], -1) / 257,
    ),
}


@pytest.mark.parametrize("kind", DEEP_TIFFS)
def test_tiff_is_read_as_its_tags_say(kind: str) -> None:
    data, expected = DEEP_TIFFS[kind]
    expected = np.round(expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2))
    decoded = pixels(data)
    np.testing.assert_allclose(decoded, expected, atol=1 if kind == "opacity" else 0)
    assert upright_size(data, "x", Limits()) == decoded.shape[:2]


def test_a_range_is_stated_by_png_or_by_the_user() -> None:
    twelve = DEEP[..., 0] >> 4

    def with_bits(values: np.ndarray) -> bytes:
        data = png(values, 0)
        chunk = b"sBIT" + b"\x0c"
        return data[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]

    expected = np.round(twelve / 4095 * 255)
    np.testing.assert_array_equal(pixels(with_bits(twelve))[..., 0], expected)
    # As the standard wants it: spread over 16 bits.
    np.testing.assert_array_equal(pixels(with_bits(twelve << 4))[..., 0], np.round((twelve << 4) / 257))
    np.testing.assert_array_equal(pixels(with_bits(twelve // 16 << 4))[..., 0], np.round((twelve // 16 << 4) / 257))
    np.testing.assert_array_equal(pixels(png(twelve, 0), value_range=(0, 4095))[..., 0], expected)
    for eight in (DEEP[..., 0] >> 8).astype(np.uint8), (DEEP[..., :3] >> 8).astype(np.uint8):
        untouched = pixels(tiff(eight), value_range=(0, 4095))
        np.testing.assert_array_equal(untouched, eight if eight.ndim == 3 else np.repeat(eight[..., None], 3, 2))
    seen = np.dstack([twelve, np.full_like(twelve, 65535)]), np.dstack([twelve, np.zeros_like(twelve)])
    for values, shown in zip(seen, (expected, np.full_like(expected, 255)), strict=True):
        np.testing.assert_array_equal(pixels(png(values, 4), value_range=(0, 4095))[..., 0], shown)
    floats = tiff(np.array([[-1.0, 0, 1, 3, 9]], np.float32))
    np.testing.assert_array_equal(pixels(floats, value_range=(-1, 3))[0, :, 0], [0, 64, 128, 255, 255])
    with pytest.raises(ImageError, match="not finite"):
        pixels(tiff(np.array([[np.nan]], np.float32)), value_range=(0, 1))


def test_what_is_dropped_is_said_once(tmp_path: Path) -> None:
    dark = DEEP >> 8
    for name in "abc":
        pages = np.repeat(dark[None, ..., 0], 4, axis=0)
        (tmp_path / f"{name}.tif").write_bytes(tiff(pages, photometric="minisblack"))
    (tmp_path / "d.tif").write_bytes(tiff(dark, photometric="minisblack", planarconfig="contig"))
    photo().save(tmp_path / "e.png")
    notes = open_images([str(tmp_path)]).notes
    assert "3 of 5 files looked at hold more pages than the first, of which 9 are dropped" in notes
    assert "1 of 5 files looked at holds more bands than the first, of which 2 are dropped" in notes
    assert any(f"nearly black; --value-range 0 {dark.max()} " in note for note in notes)
    stated = open_images([str(tmp_path)], Decoding(value_range=(0, 255))).notes
    assert len(stated) == 2 and not any("nearly black" in note for note in stated)


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF whose tag, a whole number, is changed."""
    places = [data.find(struct.pack("<HHI", tag, kind, 1)) for kind in (3, 4)]
    place = max(places) + 8
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


def test_tiff_is_bounded_before_it_is_decoded() -> None:
    large = tiff(np.zeros((8, 8), np.uint16), photometric="miniswhite")
    large = with_tag(with_tag(large, 256, 60000), 257, 60000)
    for limits, reason in (
        (Limits(), "megapixels"),
        (Limits(1e6), "decoding needs 6.7 GiB; --max-gibibytes allows 1"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode_image(large, "bomb", Decoding(limits))
    zeros = np.zeros((4000, 4000), np.uint16)
    bomb = tiff(zeros, photometric="miniswhite", compression="zlib", rowsperstrip=4000)
    with pytest.raises(ImageError, match="more than its header says"):
        decode_image(with_tag(bomb, 257, 100), "bomb")


def test_cmyk_is_not_inverted() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encode(red, "JPEG", quality=95))[4, 4].astype(int) - [255, 0, 0]).max() < 8


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(pixels(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.95])
def test_truncated_files_are_errors(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError, match=r"^album/x\.jpg: .") as caught:
        decode_image(data[: int(len(data) * share)], "album/x.jpg")
    assert "\n" not in str(caught.value)


def test_text_and_scripts_are_errors() -> None:
    for data in (b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(ImageError, match="not an image"):
            decode_image(data, "x.jpg")


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32, np.uint32])
def test_numbers_without_an_agreed_range_are_refused_unless_it_is_stated(dtype: type) -> None:
    files = [tiff(np.ones((2, 2), dtype))]
    files += [b"Pf 2 2 -1\n" + np.ones((2, 2), "<f4").tobytes()] if dtype == np.float32 else []
    for data in files:
        with pytest.raises(ImageError, match="no agreed range; state it, as --value-range"):
            decode_image(data, "x.tif")
        assert (pixels(data, value_range=(0, 2)) == 128).all()


def test_colours_that_are_not_read_are_refused() -> None:
    cmyk = tiff(DEEP[..., :4], photometric="separated")
    palette = tiff(DEEP[..., 0] >> 8, photometric="palette", colormap=np.zeros((3, 65536), np.uint16))
    for data in (cmyk, palette):
        with pytest.raises(ImageError, match="of 16 bits is not read; make it gray or RGB"):
            pixels(data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_bombs_are_refused_from_the_header(kind: str) -> None:
    height, width = (15000, 20000) if kind != "JPEG" else (9000, 9000)
    if kind == "JPEG":  # the header alone decides
        data = bytearray(encode(photo(16, 16), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data = bytearray(encode(photo(16, 16).convert("P"), "GIF"))
        data[6:10] = struct.pack("<HH", width, height)
    else:
        data = bytearray(png(np.zeros((1, 1, 3)), 2))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pillow in (False, True):
        with pytest.raises(ImageError, match="megapixels"):
            decode_image(bytes(data), "bomb", Decoding(pillow=pillow))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_the_limit_is_a_knob() -> None:
    data = encode(photo(100, 100), "PNG")
    assert decode_image(data, "x", Decoding(Limits(0.01))).shape == (3, 100, 100)
    with pytest.raises(ImageError, match="--max-megapixels"):
        decode_image(data, "x", Decoding(Limits(0.0099)))


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_every_awkward_file() -> None:
    with open(AWKWARD / "INDEX.tsv", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert len(rows) == 35
    for row in rows:
        name = row["file"]
        data = (AWKWARD / name).read_bytes()
        if name.startswith("broken_") and name != "broken_bitflips.jpg":
            with pytest.raises(ImageError, match=name):
                decode_image(data, name)
            continue
        decoded = decode_image(data, name)
        size = int(row["height"]), int(row["width"])
        turned = row["exif_orientation"] in ("6", "8")
        assert decoded.shape[1:] == (size[::-1] if turned else size), name
        assert not torch.equal(decoded, torch.full_like(decoded, 255)), f"{name} came out white"


@pytest.mark.skipif(not REAL, reason="needs BEIT_REAL_DATA")
def test_awkward_pictures_show_what_they_should() -> None:
    def thumb(name: str) -> np.ndarray:
        image = Image.fromarray(pixels((AWKWARD / name).read_bytes()))
        return np.array(image.resize((40, 30), Image.Resampling.BOX)).astype(int)

    # The same scene four times, but for a printed digit.
    scenes = [thumb(f"exif_orientation_{n}.jpg") for n in (3, 6, 8)]
    assert all(np.abs(scene - scenes[0]).mean() < 6 for scene in scenes)
    # Four files made from one photograph.
    photos = [thumb(name) for name in ("jpeg_named.png", "trailing_garbage.jpg", "palette_photo.png", "photo.bmp")]
    assert all(np.abs(photo - photos[0]).mean() < 6 for photo in photos)
    # An infrared picture with values 7301..8206 of 65535.
    gray = pixels((AWKWARD / "gray16.png").read_bytes())
    assert gray.min() == round(7301 / 257) and gray.max() == round(8206 / 257)


@pytest.mark.parametrize(
    "need",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")],
)
def test_a_lack_of_memory_is_no_damage(need: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise need

    for place in ("beit.data.decode.to_rgb", "PIL.Image.open"):
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(place, fail)
            decode_image(encode(photo(), "PNG"), "x.png")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("beit.data.label_maps.maps.upright", fail)
        decode_label_map(encode(photo().convert("L"), "PNG"), "x.png", Limits(), ColorKey(None))
