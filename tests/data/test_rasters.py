"""Images of any number of channels and bits: pixels are the numbers that the test wrote, in a known range."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage

from beit.config.errors import UserError
from beit.data.decode import Decoding, ImageError, decode_image, upright_size
from beit.data.sources.measure import look_over
from beit.data.sources.opening import open_images
from beit.pixels import Limits

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 65536, (16, 19, 13), dtype=np.uint16)
UNKNOWN = Decoding(channels=None, bits=None)


def tiff(values: np.ndarray, **options: object) -> bytes:
    tifffile.imwrite(buffer := io.BytesIO(), values, **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    np.save(buffer := io.BytesIO(), values)
    return buffer.getvalue()


def pixels(data: bytes, **options: object) -> np.ndarray:
    return decode_image(data, "a file", Decoding(**options)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "data",
    [
        tiff(BANDS, photometric="minisblack", planarconfig="contig"),
        tiff(np.moveaxis(BANDS, 2, 0).copy(), photometric="minisblack", planarconfig="separate"),
        tiff(np.moveaxis(BANDS, 2, 0).copy(), photometric="minisblack"),
        npy(BANDS),
        npy(np.moveaxis(BANDS, 2, 0)),
        npy(np.asfortranarray(BANDS)),
        npy(BANDS.astype(">u2")),
    ],
    ids=["samples", "planes", "pages", "array", "channels first", "fortran", "big endian"],
)
def test_sixteen_bits_of_thirteen_bands_come_through(data: bytes) -> None:
    image = pixels(data, channels=13, bits=16)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(np.rint(image.astype(np.float64) * 65535), BANDS)
    assert len(np.unique(image)) == len(np.unique(BANDS))
    low, high = BANDS.min((0, 1)), BANDS.max((0, 1))
    by_band = pixels(data, channels=13, bits=16, value_range=tuple(np.stack([low, high], 1).ravel().tolist()))
    assert by_band.min((0, 1)).tolist() == [0] * 13 and by_band.max((0, 1)).tolist() == [1] * 13
    assert upright_size(data, "a file", Limits()) == (16, 19)


def test_channels_are_fitted_or_refused() -> None:
    eight = (BANDS >> 8).astype(np.uint8)
    gray, infrared = eight[..., 0], eight[..., :4]
    rgb = Image.fromarray(eight[..., :3])
    rgb.save(buffer := io.BytesIO(), "PNG")
    np.testing.assert_array_equal(pixels(tiff(gray), channels=1)[..., 0], gray)
    np.testing.assert_allclose(pixels(buffer.getvalue(), channels=1)[..., 0], np.array(rgb.convert("L")), atol=1)
    four = tiff(infrared, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(pixels(four, channels=4), infrared)  # infrared in the place of opacity
    np.testing.assert_array_equal(pixels(npy(eight[..., :2]), channels=2), eight[..., :2])
    for data in (buffer.getvalue(), four):
        with pytest.raises(ImageError, match="channels and not 13; leave it out, or see --image-channels"):
            pixels(data, channels=13)
    with pytest.raises(ImageError, match="it is no array of images: complex128 of shape"):
        pixels(npy(np.zeros((2, 2), complex)))
    with pytest.raises(ImageError, match="a file: "):
        pixels(npy(np.array([[{}]], dtype=object)))


def test_what_images_are_is_read_from_the_files(tmp_path: Path) -> None:
    kinds = {
        "gray": ([tiff(BANDS[..., 0] >> 8), tiff(BANDS[..., 1] >> 8)], 1, 16),
        "bands": ([npy(BANDS), tiff(BANDS, photometric="minisblack", planarconfig="contig")], 13, 16),
        "bytes": ([npy((BANDS[..., :5] >> 8).astype(np.uint8))], 5, 8),
        "colours and gray": ([npy(BANDS[..., :3]), tiff(BANDS[..., 0])], 3, 16),
        "pages of various numbers": ([tiff(np.moveaxis(BANDS[..., :n], 2, 0).copy()) for n in (5, 7)], 1, 16),
        "one of bytes": ([npy(BANDS[..., 0]), npy((BANDS[..., 0] >> 8).astype(np.uint8))], 1, 8),
    }
    for name, (files, channels, bits) in kinds.items():
        (tmp_path / name).mkdir()
        for index, data in enumerate(files):
            (tmp_path / name / f"{index}.{'npy' if data[:6] == b'x93NUMPY' else 'tif'}").write_bytes(data)
        source = open_images([str(tmp_path / name)], UNKNOWN)
        assert (source.decoding.channels, source.decoding.bits) == (channels, bits), name
        assert source.image(0).shape == (channels, 16, 19)
    floats = npy(np.linspace(-3, 7, 304, dtype=np.float32).reshape(16, 19))
    (tmp_path / "bands" / "f.npy").write_bytes(floats)
    with pytest.raises(UserError, match="files have 1 and 13 channels; say how many are meant: --image-channels 3"):
        open_images([str(tmp_path / "bands")], UNKNOWN)
    (tmp_path / "floats").mkdir()
    (tmp_path / "floats" / "f.npy").write_bytes(floats)
    source = open_images([str(tmp_path / "floats")], UNKNOWN)
    assert np.allclose(source.decoding.value_range, [-3, 7], atol=0.1) and source.image(0).dtype == torch.float32
    assert look_over(source)[0] == source.decoding
    with pytest.raises(ImageError, match="no agreed range; state it, as --value-range"):
        pixels(floats, channels=1, bits=16)


def dicom(values: np.ndarray, **tags: object) -> bytes:
    """A DICOM file of 12 stored bits."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
    file.Rows, file.Columns = values.shape[-2:]
    file.BitsAllocated, file.BitsStored, file.HighBit, file.SamplesPerPixel = 16, 12, 11, 1
    file.PixelRepresentation, file.PhotometricInterpretation = int(values.dtype == np.int16), "MONOCHROME2"
    file.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8"]) if tags.pop("packed", False) else values.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(buffer := io.BytesIO(), enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_is_rescaled_and_windowed() -> None:
    stored = RNG.integers(0, 4096, (5, 7), dtype=np.uint16)
    np.testing.assert_allclose(pixels(dicom(stored), channels=1, bits=16)[..., 0], stored / 4095, atol=1e-6)
    dark = pixels(dicom(stored, PhotometricInterpretation="MONOCHROME1"), channels=1, bits=16)
    np.testing.assert_allclose(dark[..., 0], 1 - stored / 4095, atol=1e-6)
    ct = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [40, 500], "WindowWidth": [400, 1500]}
    # DICOM PS3.3, C.11.2.1.2.1, as the standard writes it: ((x - (c - 0.5)) / (w - 1) + 0.5).
    shown = np.clip((stored - 1024.0 - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(pixels(dicom(stored, **ct), channels=1, bits=16)[..., 0], shown, atol=1e-5)
    exact = pixels(dicom(stored, VOILUTFunction="LINEAR_EXACT", **ct), channels=1, bits=16)[..., 0]
    np.testing.assert_allclose(exact, np.clip((stored - 1024.0 - 40) / 400 + 0.5, 0, 1), atol=1e-5)
    signed = (stored.astype(np.int16) - 2048).astype(np.int16)
    stated = pixels(dicom(signed), channels=1, bits=16, value_range=(-2048, 2047))[..., 0]
    np.testing.assert_allclose(stated, stored / 4095, atol=1e-5)
    np.testing.assert_array_equal(pixels(dicom(stored))[..., 2], np.rint(stored / 4095 * 255))


def test_dicom_that_cannot_be_read_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.zeros((4, 4), np.uint16)
    with pytest.raises(ImageError, match=r"JPEG-LS Lossless.* compression needs one of "):
        pixels(dicom(stored, syntax=JPEGLSLossless, packed=True))
    with pytest.raises(ImageError, match="megapixels"):
        decode_image(dicom(stored, Rows=60000, Columns=60000), "x", Decoding(Limits()))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"DICOM needs `pip install beit\[dicom\]`"):
        pixels(dicom(stored))


def sliced(**options: Any) -> bytes:
    """A stack of which the file names one page."""
    with tifffile.TiffWriter(buffer := io.BytesIO(), **options) as file:
        file.write(BANDS, photometric="minisblack", truncate=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [sliced(), sliced(imagej=True), tiff(BANDS, photometric="minisblack", volumetric=True)],
    ids=["pages behind the first", "ImageJ", "slices"],
)
def test_a_volume_within_a_page_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="a volume within one page; write each slice as a page or as a file"):
        pixels(data, channels=1, bits=16)


GRAY = BANDS[..., 0]
OTHER_TIFFS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    f"{name}, {bits} bits": (values, options)
    for name, options in {
        "big endian, large": {"bigtiff": True, "byteorder": ">"},
        "JPEG XL": {"compression": "jpegxl"},
        "JPEG 2000": {"compression": "jpeg2000", "byteorder": "<"},
        "predicted and packed": {"compression": "packbits", "predictor": True},
        "LZW, predicted": {"compression": "lzw", "predictor": True},
        "Zstandard": {"compression": "zstd"},
        "tiles": {"tile": (16, 16), "compression": "zlib"},
    }.items()
    for bits, values in ((8, (GRAY >> 8).astype(np.uint8)), (16, GRAY))
}


@pytest.mark.parametrize("kind", OTHER_TIFFS)
def test_what_pillow_lacks_of_tiff_is_read_by_its_own_library(kind: str) -> None:
    values, options = OTHER_TIFFS[kind]
    data = tiff(values, photometric="minisblack", **options)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), values)
    found = pixels(data, channels=1, bits=16).astype(np.float64) * np.iinfo(values.dtype).max
    np.testing.assert_array_equal(np.rint(found)[..., 0], values)


@pytest.mark.parametrize("stated", [(0, 4095), (1000, 3000)])
def test_a_stated_range_is_of_the_stored_numbers_where_less_is_lighter(stated: tuple[int, int]) -> None:
    twelve = GRAY >> 4
    shown = 1 - np.clip((twelve - float(stated[0])) / (stated[1] - stated[0]), 0, 1)
    signed = (twelve.astype(np.int16) - 2048).astype(np.int16)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    for data, shift in (
        (tiff(twelve, photometric="miniswhite"), 0),
        (tiff(twelve.astype(np.float32), photometric="miniswhite"), 0),
        (dicom(twelve, **inverted), 0),
        (dicom(signed, **inverted), 2048),
        (dicom(twelve, RescaleSlope=1, RescaleIntercept=-100, **inverted), 100),
    ):
        ends = tuple(float(end - shift) for end in stated)
        np.testing.assert_allclose(pixels(data, channels=1, bits=16, value_range=ends)[..., 0], shown, atol=1e-6)


def test_a_color_that_is_transparent_in_16_bits() -> None:
    gray, colours = GRAY.copy(), BANDS[..., :3].copy()
    gray[::3], colours[::3] = 1234, (1, 2, 3)
    for values, kind, key in ((gray[..., None], 0, [1234]), (colours, 2, [1, 2, 3])):
        data = png16(values, kind, (b"tRNS", np.array(key, ">u2").tobytes()))
        clear = (values == key).all(2, keepdims=True)
        found = pixels(data, channels=values.shape[2], bits=16)
        np.testing.assert_allclose(found, np.where(clear, 1, values / 65535), atol=1e-7)
        assert clear.any() and (pixels(data)[clear[..., 0]] == 255).all()


def png16(values: np.ndarray, kind: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits, of a colour type, with chunks."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(x)) + n + x + struct.pack(">I", zlib.crc32(n + x)) for n, x in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("bits", [9, 12, 15, 16])
def test_numbers_that_pillow_spreads_are_those_that_are_stored(bits: int) -> None:
    import imagecodecs

    values, most = BANDS[..., :3] >> (16 - bits), 2**bits - 1
    netpbm = b"%b\n# by hand\n19 16 %d\n"
    gray = [netpbm % (b"P5", most) + values[..., 0].astype(">u2").tobytes()]
    packed = [
        imagecodecs.jpeg2k_encode(part.copy(), level=0, bitspersample=bits, codecformat="jp2")
        for part in (values, values[..., 0])
    ]
    gray += packed[1:] if bits > 9 else []
    for data in gray:
        np.testing.assert_allclose(pixels(data, channels=1, bits=16)[..., 0], values[..., 0] / most, atol=1e-6)
        stated = pixels(data, channels=1, bits=16, value_range=(0, 300))[..., 0]
        np.testing.assert_allclose(stated, np.clip(values[..., 0] / 300, 0, 1), atol=1e-6)
    data = netpbm % (b"P6", most) + values.astype(">u2").tobytes()
    np.testing.assert_allclose(pixels(data, channels=3, bits=16), values / most, atol=1e-6)
    for data in packed if bits == 9 else packed[:1]:
        with pytest.raises(ImageError, match=rf"JPEG 2000 of {bits} bits, . channels? is not read; write TIFF"):
            pixels(data)


def test_colours_above_their_opacity_are_white() -> None:
    values = np.full((4, 4, 4), 200, np.uint8)
    values[..., :3] += 3
    planes = np.moveaxis(values, 2, 0).copy()
    for data in (
        tiff(values, photometric="rgb", extrasamples=["assocalpha"]),
        tiff(planes, photometric="rgb", planarconfig="separate", extrasamples=["assocalpha"]),
    ):
        assert (pixels(data) == 255).all()


def test_dicom_of_a_palette_and_a_window_of_no_width() -> None:
    indices, shades = RNG.integers(0, 256, (5, 7), dtype=np.uint8), RNG.integers(0, 256, (3, 256), dtype=np.uint16)
    tags: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    for name, shade in zip(("Red", "Green", "Blue"), shades, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (shade * 257).astype("<u2").tobytes()
    data = dicom(indices, PhotometricInterpretation="PALETTE COLOR", **tags)
    np.testing.assert_array_equal(pixels(data), shades.T[indices])
    stored = RNG.integers(0, 4096, (5, 7), dtype=np.uint16)
    for width in (0, 1):
        none = pixels(dicom(stored, WindowCenter=1000, WindowWidth=width), channels=1, bits=16)[..., 0]
        np.testing.assert_allclose(none, stored / 4095, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_dicom_of_a_table_of_shades_and_of_a_curve(photometric: str) -> None:
    stored = RNG.integers(0, 4096, (5, 7), dtype=np.uint16)
    shades = np.sort(RNG.integers(0, 1024, 2000, dtype=np.uint16))
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [2000, 1000, 10], shades.tobytes()
    tags: dict[str, Any] = {"VOILUTSequence": [table], "PhotometricInterpretation": photometric}
    # DICOM PS3.3, C.11.2.1.1: numbers before the table's first have its first shade, those behind its last the last.
    shown = shades[np.clip(stored.astype(int) - 1000, 0, 1999)] / 1023
    shown = 1 - shown if photometric == "MONOCHROME1" else shown
    for more, shift in ((tags, 0), ({**tags, "RescaleSlope": 1, "RescaleIntercept": -500}, -500)):
        table.LUTDescriptor[1] = 1000 + shift
        found = pixels(dicom(stored, **more), channels=1, bits=16)[..., 0]
        np.testing.assert_allclose(found, shown, atol=1e-6)
    window = {"WindowCenter": 2048, "WindowWidth": 1000}
    linear = pixels(dicom(stored, PhotometricInterpretation=photometric, **window), channels=1, bits=16)
    np.testing.assert_array_equal(pixels(dicom(stored, **window, **tags), channels=1, bits=16), linear)
    with pytest.raises(ImageError, match="its window is a SIGMOID function, which is not applied; write it as PNG"):
        pixels(dicom(stored, VOILUTFunction="SIGMOID", **window), channels=1, bits=16)


def test_an_array_of_bits_is_black_and_white() -> None:
    seen = GRAY > 30000
    np.testing.assert_array_equal(pixels(npy(seen))[..., 1], seen * 255)
    np.testing.assert_array_equal(pixels(npy(seen), channels=1, bits=16)[..., 0], seen)
