"""What pictures of more than 8 bits, or of other channels than RGB, hold: the numbers that are stored."""

import io
import logging
import math
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from beit.config.errors import require
from beit.config.values import counted
from beit.pixels import GRAY, Limits

TIFF, PNG, NPY = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\x89PNG", b"\x93NUMPY"
_JPEG2000 = b"\xff\x4f\xff\x51"
"""Before the size of a picture, in the middle of some files."""
PREDICTED = 5, 8, 32946, 34925, 50000
_PLAIN = 1, 2, 3, 4, 6, 7, 32773, *PREDICTED
"""Compressions of TIFF that Pillow has: those that know predictors (LZW, deflate, LZMA, Zstandard), and all."""


class Raster(NamedTuple):
    """The numbers of a picture, upright."""

    values: NDArray[Any]
    """(H, W, channels), as they are stored."""
    span: tuple[float, float] | None
    """The numbers that are black and white; None where there are no agreed ones."""
    opacity: str = ""
    """What the last channel is: "straight" opacity, "associated" (colours multiplied by it), or, "", no opacity."""
    pages: int = 1
    """Of the file, of which `values` are the first."""
    is_inverted: bool = False
    """Whether less is lighter."""
    depth: int = 8
    """Bits that the file has, of which 8 are read, where the format knows more (AVIF, HEIC)."""

    @property
    def bands(self) -> int:
        """Channels without opacity."""
        return int(self.values.shape[2]) - (self.opacity != "")

    @property
    def is_stated(self) -> bool:
        """Whether the file itself says what is black and white, and not its number of bits."""
        return self.span not in (None, (0, 0xFFFF))


def read_raster(data: bytes, limits: Limits, channels: int | None = None) -> Raster | None:
    """The numbers in a TIFF, an NPY or a DICOM file, or in a PNG, JPEG 2000 or PPM of more than 8 bits, None for any
    other file. Each page of a TIFF that has as many as `channels` is a channel. Raises whatever a parser can."""
    if data[:4] in TIFF:
        return read_tiff(data, limits, channels)
    if data[:6] == NPY:
        return read_npy(data, limits, channels)
    if data[128:132] == b"DICM":
        return read_dicom(data, limits)
    if data[:4] == PNG:
        return read_png(data, limits) if data[24:25] == b"\x10" else None  # where the header has the bit depth
    if data[:1] == b"P":
        return read_ppm(data, limits)
    return read_jpeg2000(data, limits) if data[:4] == _JPEG2000 or data[4:8] == b"jP  " else None


def read_png(data: bytes, limits: Limits) -> Raster:
    """A PNG of 16 bits."""
    from torchvision.io import ImageReadMode, decode_image

    width, height = struct.unpack(">II", data[16:24])
    limits.check(height, width, bytes_per_pixel=8)
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    decoded = decode_image(pixels, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    values = decoded.permute(1, 2, 0).numpy()
    white = png_white(data, values)
    place = data.find(b"tRNS", 0, data.find(b"IDAT"))
    if place > 0 and values.shape[2] in (1, 3):  # one colour is no picture
        seen = (values != np.frombuffer(data, ">u2", values.shape[2], place + 4)).any(2, keepdims=True)
        values = np.concatenate([values, (seen * white).astype(np.uint16)], axis=2)
    return Raster(values, (0, white), "straight" if values.shape[2] in (2, 4) else "")


def raster_size(data: bytes, limits: Limits) -> tuple[int, int] | None:
    """(height, width) of what :func:`read_raster` gives, of a TIFF from its header alone."""
    if data[:4] not in TIFF:
        raster = None if data[:4] == PNG else read_raster(data, limits)
        return raster and raster.values.shape[:2]
    with _open_tiff(data) as file:
        page = file.pages[0]
        size = page.imagelength, page.imagewidth
        return size[::-1] if page.tags.valueof(274, 1) in (5, 6, 7, 8) else size


def pixels_of(raster: Raster, channels: int, bits: int, value_range: Sequence[float] | None) -> NDArray[Any]:
    """(H, W, channels), uint8, or of more than 8 `bits` float32 in [0, 1]; opacity over white, unless it is one of
    the channels. `value_range`, black and white of all channels or of each, is for numbers of more than 8 bits."""
    values = raster.values
    is_byte = values.dtype == np.uint8
    span = raster.span if is_byte or value_range is None else value_range
    if span is None or not (value_range or 0 <= values.min() <= values.max() <= 0xFFFF or raster.is_stated):
        raise ValueError("its numbers have no agreed range; state it, as --value-range BLACK WHITE, or give bytes")
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    is_seen_through = raster.opacity != "" and values.shape[2] != channels
    opacity: NDArray[Any] = values[..., -1:] / np.float32(raster.span[1] if raster.span else 1)
    values = _fitted(values[..., :-1] if is_seen_through else values, channels)
    if is_byte and bits == 8 and tuple(span) == (0, 255) and not is_seen_through:
        return np.ascontiguousarray(np.rint(255 - values if raster.is_inverted else values).astype(np.uint8))
    black, white = np.array(span, dtype=np.float32).reshape(-1, 2).T
    unit: NDArray[np.float32] = np.clip((values - black) / (white - black), 0, 1).astype(np.float32)
    unit = 1 - unit if raster.is_inverted else unit
    if is_seen_through:
        unit = unit * (opacity if raster.opacity == "straight" else np.float32(1)) + (1 - opacity)
        unit = unit.clip(0, 1)  # colours may be lighter than their opacity allows, by rounding
    return np.rint(unit * 255).astype(np.uint8) if bits == 8 else unit


def _fitted(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """(H, W, any number) -> (H, W, channels): gray three times, the first three bands, colours as gray."""
    count = values.shape[2]
    if count == channels:
        return values
    if channels == 3:
        return values[..., :3] if count > 2 else values[..., [0, 0, 0]]
    if channels == 1 and count <= 3:
        return values @ np.array([GRAY], dtype=np.float32).T if count == 3 else values[..., :1]
    raise ValueError(f"it has {counted(count, 'channel')} and not {channels}; leave it out, or see --image-channels")


def turn(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) as EXIF's `orientation` says, 1 to 8."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def raster_of_picture(image: Image.Image, kind: str | None = None) -> Raster:
    """What Pillow reads as it is stored: gray of 8 or 16 bits, and RGB of 8; it makes RGB of all else. `kind` is the
    format of the file, as Pillow calls it."""
    opaque = "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa")
    if opaque and image.mode[0] in "IF":
        is_agreed = image.mode[1:] or (image.mode, kind) == ("I", "PPM")
        return Raster(np.asarray(image)[..., None], (0, 0xFFFF) if is_agreed else None)
    mode = "RGBA" if not opaque else "L" if image.mode in ("1", "L") else "RGB"
    values = np.asarray(image.convert(mode))
    return Raster(values.reshape(*values.shape[:2], -1), (0, 255), "" if opaque else "straight")


# ------------------------------------------------------------------------------------------------------------
# Formats


def read_npy(data: bytes, limits: Limits, channels: int | None) -> Raster:
    """An array (H, W), (H, W, C) or (C, H, W), whose channels are its `channels`, else the shortest of the axes."""
    stream, formats = io.BytesIO(data), np.lib.format
    is_first = formats.read_magic(stream) == (1, 0)
    read_header = formats.read_array_header_1_0 if is_first else formats.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    if len(shape) not in (2, 3) or dtype.kind not in "buif" or 0 in shape:
        raise ValueError(f"it is no array of images: {dtype} of shape {shape}")
    order: Literal["C", "F"] = "F" if is_fortran else "C"
    values = np.frombuffer(data, dtype, math.prod(shape), stream.tell()).reshape(shape, order=order)
    if values.ndim == 3 and (shape[0] == channels != shape[2] or (channels != shape[2] > shape[0])):
        values = np.moveaxis(values, 0, 2)
    values = values.reshape(*values.shape[:2], -1).astype(dtype.newbyteorder("="))
    limits.check(values.shape[0], values.shape[1], values.shape[2] * dtype.itemsize)
    spans = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
    return Raster(values, spans.get(values.dtype.name))


def read_ppm(data: bytes, limits: Limits) -> Raster | None:
    """A PGM or PPM of more than 8 bits, else None."""
    match = re.match(rb"P[56]" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s", data)
    if match is None or int(match[3]) < 256:
        return None
    width, height, most = map(int, match.groups())
    shape = height, width, 1 if data[:2] == b"P5" else 3
    limits.check(height, width, 2 * shape[2])
    values = np.frombuffer(data, ">u2", math.prod(shape), match.end())
    return Raster(values.reshape(shape).astype(np.uint16), (0, most))


def read_jpeg2000(data: bytes, limits: Limits) -> Raster | None:
    """A JPEG 2000 of more than 8 bits, else None. Pillow spreads gray of fewer bits over 16; colours wrap round."""
    place = data.find(_JPEG2000)
    if place < 0 or data[place + 42] % 128 < 8:
        return None
    channels, depth = struct.unpack_from(">HB", data, place + 40)
    if channels > 1 or depth == 8 or depth >= 128:  # of 9 bits Pillow keeps 8
        kind = f"{depth % 128 + 1} bits, {counted(channels, 'channel')}"
        raise ValueError(f"JPEG 2000 of {kind} is not read; write TIFF or PNG")
    with Image.open(io.BytesIO(data), formats=["JPEG2000"]) as image:
        limits.check(image.height, image.width, 4)
        return Raster((np.asarray(image) >> (15 - depth))[..., None], (0, 2.0 ** (depth + 1) - 1))


def read_dicom(data: bytes, limits: Limits) -> Raster:
    """The first frame of a DICOM file, its values rescaled as it says (Hounsfield units of a CT), and its window as
    black and white (DICOM PS3.3, C.11.1 and C.11.2). ValueError for a compression that nothing here reads."""
    try:
        from pydicom import dcmread
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise ValueError("DICOM needs `pip install beit[dicom]`") from error
    file = dcmread(io.BytesIO(data))
    if "PixelData" not in file:
        raise ValueError("it holds no picture")
    syntax, samples, most = file.file_meta.TransferSyntaxUID, int(file.SamplesPerPixel), 2.0**file.BitsStored - 1
    frames = int(file.get("NumberOfFrames") or 1)
    limits.check(file.Rows, file.Columns, frames * samples * file.BitsAllocated / 8 + 4)
    if syntax.is_compressed and not (decoder := get_decoder(syntax)).is_available:
        raise ValueError(f"{syntax.name} compression needs one of {'; '.join(decoder.missing_dependencies)}")
    stored = pixel_array(file, index=0)
    if file.PhotometricInterpretation == "PALETTE COLOR":
        return Raster(values := apply_color_lut(stored, file), (0, np.iinfo(values.dtype).max), pages=frames)
    values = apply_modality_lut(stored, file)
    is_plain = not file.PixelRepresentation and np.array_equal(values, stored)
    window = _window(file) if samples == 1 else None
    if window is None and (tables := file.get("VOILUTSequence")):
        values, is_plain, most = apply_voi(values.astype(np.int64), file), True, 2.0 ** tables[0].LUTDescriptor[2] - 1
    span = window or ((0.0, most) if is_plain else None)
    values = (values if is_plain else values.astype(np.float32)).reshape(*stored.shape[:2], -1)
    return Raster(values, span, pages=frames, is_inverted=file.PhotometricInterpretation == "MONOCHROME1")


def _window(file: Any) -> tuple[float, float] | None:
    """The numbers that are black and white by the first window, if there is one of any width."""
    is_curve = file.get("VOILUTFunction") == "SIGMOID"
    require(not is_curve, "its window is a SIGMOID function, which is not applied; write it as PNG or TIFF")
    if file.get("WindowWidth") is None or file.get("WindowCenter") is None:
        return None
    center, width = (float(np.ravel(file[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    # The linear function of the standard ends half a step early at either side, unless it is called exact.
    early = 0 if file.get("VOILUTFunction") == "LINEAR_EXACT" else 0.5
    return (center - width / 2, center + width / 2 - 2 * early) if width > 2 * early else None


def read_tiff(data: bytes, limits: Limits, channels: int | None = None) -> Raster:
    """The first page of a TIFF, or, where there are as many as `channels`, each as one; ValueError, or whatever a
    parser can raise, for what cannot be read."""
    with _open_tiff(data) as file:
        pages = [page for page in file.pages if not page.is_reduced] or file.pages[:1]
        first, is_stack = pages[0], 1 < len(pages) == channels and pages[0].samplesperpixel == 1
        used = pages if is_stack else pages[:1]
        pixels = max(first.imagelength * first.imagewidth, 1)
        tiles = max(1, first.tilelength * first.tilewidth / pixels)
        limits.check(first.imagelength, first.imagewidth, len(used) * tiles * first.nbytes / pixels)
        # ImageJ and others write of a long stack the first page alone, and the rest behind it.
        hidden = (file.is_imagej or file.is_shaped) and file.series[0].size > len(file.pages) * first.size
        if hidden or first.imagedepth > 1:
            raise ValueError("it is a volume within one page; write each slice as a page or as a file of its own")
        if len({(page.shape, page.dtype, page.photometric) for page in used}) > 1:
            raise ValueError("its pages are not alike, and so no channels of one image")
        rasters = [_read_page(data, page) for page in used]
        values = np.concatenate([raster.values for raster in rasters], axis=2)
        return rasters[0]._replace(values=values, pages=1 if is_stack else len(pages))


def _read_page(data: bytes, page: Any) -> Raster:
    if _is_plain(page):
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            image.seek(page.index)
            image.load()
            return raster_of_picture(ImageOps.exif_transpose(image))
    if page.photometric not in (0, 1, 2):
        kind = f"{getattr(page.photometric, 'name', 'a colour')} of {counted(page.bitspersample, 'bit')}"
        raise ValueError(f"{kind} is not read; make it gray or RGB")
    values, span = _values(data, page), None
    if values.dtype.kind == "u" and page.bitspersample <= 16:
        most = 2**page.bitspersample - 1
        stated = page.tags.valueof(281, most)  # of each sample, or of all
        span = 0.0, float(np.max(stated)) if 0 < np.max(stated) < most else float(most)
    opacity = {1: "associated", 2: "straight"}.get(int(page.extrasamples[-1]) if page.extrasamples else 0, "")
    return Raster(values, span, opacity, is_inverted=page.photometric == 0)


def _open_tiff(data: bytes) -> Any:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised
    return tifffile.TiffFile(io.BytesIO(data))


def is_odd_tiff(data: bytes) -> bool:
    """Whether Pillow does not read a TIFF, or other numbers than it holds; ValueError where these are not the ones
    that were written."""
    if data[:4] not in TIFF:
        return False
    with _open_tiff(data) as file:
        page = file.pages[0]
        if _is_plain(page):
            return False
        if page.compression not in (1, 32773, *PREDICTED):
            raise ValueError(f"{page.compression.name} compression may change numbers; write maps as PNG")
        return True


def _is_plain(page: Any) -> bool:
    """Whether Pillow reads a page as it is. It has most compressions, for which tifffile needs imagecodecs."""
    is_big = page.parent.is_bigtiff and page.parent.byteorder == ">"
    if is_big or page.compression not in (_PLAIN if page.predictor == 1 else PREDICTED):
        return False
    if page.bitspersample == 16:
        return page.dtype == np.uint16 and page.photometric == page.samplesperpixel == 1 and 281 not in page.tags
    kind = page.bitspersample in (1, 2, 4, 8) and page.dtype in (np.uint8, np.bool_) and page.photometric < 7
    return bool(kind and page.planarconfig == 1 and {*map(int, page.extrasamples)} <= {1, 2})


def _values(data: bytes, page: Any) -> NDArray[Any]:
    """(H, W, samples), upright."""
    if page.compression in (8, 32946):  # which Python's own library would expand without end
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            expander = zlib.decompressobj()
            expander.decompress(data[start : start + count], max(page.nbytes, 2**20))
            if expander.unconsumed_tail:
                raise ValueError("it holds more than its header says")
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise ValueError(f"{page.compression.name} compression needs `pip install beit[tiff]`") from error
        raise
    values = np.moveaxis(values, 0, 2) if page.axes == "SYX" else values.reshape(*values.shape[:2], -1)
    return turn(values, page.tags.valueof(274, 1))


def png_white(data: bytes, values: NDArray[Any]) -> float:
    """What is white in the `values` of a PNG of 16 bits. One that states fewer (sBIT) should spread them over 16; one
    that does not is told by its numbers."""
    header = data[: max(0, data.find(b"IDAT"))]
    place = header.find(b"sBIT")
    bits = max(header[place + 4 : place + 4 + header[place - 1]], default=16) if place > 0 else 16
    stored = bits < 16 and values.max() < 2**bits and bool((values & (2 ** (16 - bits) - 1)).any())
    return 2.0**bits - 1 if stored else 65535.0
