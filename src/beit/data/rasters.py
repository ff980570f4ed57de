"""What pictures of more than 8 bits, or of other channels than RGB, hold: the numbers that are stored."""

import io
import logging
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from beit.pixels import GRAY, Limits

TIFF, PNG = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\x89PNG"


class Raster(NamedTuple):
    """The numbers of a picture, upright."""

    values: NDArray[Any]
    """(H, W, channels), as they are stored, but that more is always lighter."""
    span: tuple[float, float] | None
    """The numbers that are black and white; None where there are no agreed ones."""
    opacity: str = ""
    """What the last channel is: "straight" opacity, "associated" (colours multiplied by it), or, "", no opacity."""
    pages: int = 1
    """Of the file, of which `values` are the first."""

    @property
    def bands(self) -> int:
        """Channels without opacity."""
        return int(self.values.shape[2]) - (self.opacity != "")

    @property
    def is_stated(self) -> bool:
        """Whether the file itself says what is black and white, and not its number of bits."""
        return self.span not in (None, (0, 0xFFFF))


def read_raster(data: bytes, limits: Limits, channels: int | None = None) -> Raster | None:
    """The numbers in a TIFF, a PNG of 16 bits, an NPY or a DICOM file, None for any other file. Each page of a TIFF
    that has as many as `channels` is a channel. Raises whatever a parser can."""
    if data[:4] in TIFF:
        return read_tiff(data, limits, channels)
    if data[:6] == b"\x93NUMPY":
        return read_npy(data, limits, channels)
    if data[128:132] == b"DICM":
        return read_dicom(data, limits)
    if data[:4] != PNG or data[24:25] != b"\x10":  # where the header has the bit depth
        return None
    from torchvision.io import ImageReadMode, decode_image

    width, height = struct.unpack(">II", data[16:24])
    limits.check(height, width, bytes_per_pixel=8)
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    decoded = decode_image(pixels, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    values = decoded.permute(1, 2, 0).numpy()
    return Raster(values, (0, png_white(data, values)), "straight" if values.shape[2] in (2, 4) else "")


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
        raise ValueError("its numbers have no agreed range; state it, as --value-range BLACK WHITE")
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    is_seen_through = raster.opacity != "" and values.shape[2] != channels
    opacity: NDArray[Any] = values[..., -1:] / np.float32(raster.span[1] if raster.span else 1)
    values = _fitted(values[..., :-1] if is_seen_through else values, channels)
    if is_byte and bits == 8 and tuple(span) == (0, 255) and not is_seen_through:
        return np.ascontiguousarray(np.rint(values).astype(np.uint8))
    black, white = np.array(span, dtype=np.float32).reshape(-1, 2).T
    unit: NDArray[np.float32] = np.clip((values - black) / (white - black), 0, 1).astype(np.float32)
    if is_seen_through:
        unit = unit * (opacity if raster.opacity == "straight" else np.float32(1)) + (1 - opacity)
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
    raise ValueError(f"it has {count} channels and not {channels}; leave it out, or see --image-channels")


def turn(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) as EXIF's `orientation` says, 1 to 8."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def raster_of_picture(image: Image.Image) -> Raster:
    """What Pillow reads as it is stored: gray of 8 or 16 bits, and RGB of 8; it makes RGB of all else."""
    opaque = "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa")
    if opaque and image.mode[0] in "IF":
        return Raster(np.asarray(image)[..., None], None if image.mode == "F" else (0, 0xFFFF))
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
    if len(shape) not in (2, 3) or dtype.kind not in "uif" or 0 in shape:
        raise ValueError(f"it is no array of images: {dtype} of shape {shape}")
    order: Literal["C", "F"] = "F" if is_fortran else "C"
    values = np.frombuffer(data, dtype, math.prod(shape), stream.tell()).reshape(shape, order=order)
    if values.ndim == 3 and (shape[0] == channels != shape[2] or (channels != shape[2] > shape[0])):
        values = np.moveaxis(values, 0, 2)
    values = values.reshape(*values.shape[:2], -1).astype(dtype.newbyteorder("="))
    limits.check(values.shape[0], values.shape[1], values.shape[2] * dtype.itemsize)
    spans = {np.dtype(np.uint8): (0.0, 255.0), np.dtype(np.uint16): (0.0, 65535.0)}
    return Raster(values, spans.get(values.dtype))


def read_dicom(data: bytes, limits: Limits) -> Raster:
    """The first frame of a DICOM file, its values rescaled as it says (Hounsfield units of a CT), and its window as
    black and white (DICOM PS3.3, C.11.1 and C.11.2). ValueError for a compression that nothing here reads."""
    try:
        from pydicom import dcmread
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.pixels.processing import apply_modality_lut
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
    values = apply_modality_lut(stored, file)
    is_plain = not file.PixelRepresentation and np.array_equal(values, stored)
    span = (_window(file) if samples == 1 else None) or ((0.0, most) if is_plain else None)
    values = stored if is_plain else values.astype(np.float32)
    if file.PhotometricInterpretation == "MONOCHROME1":  # where less is lighter
        values, span = (most - values).astype(values.dtype), span and (most - span[1], most - span[0])
    return Raster(values.reshape(*values.shape[:2], -1), span, pages=frames)


def _window(file: Any) -> tuple[float, float] | None:
    """The numbers that are black and white by the first window, if there is one."""
    if file.get("WindowWidth") is None or file.get("WindowCenter") is None:
        return None
    center, width = (float(np.ravel(file[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    # The linear function of the standard ends half a step early at either side, unless it is called exact.
    early = 0 if file.get("VOILUTFunction") == "LINEAR_EXACT" else 0.5
    return center - width / 2, center + width / 2 - 2 * early


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
        if any((page.shape, page.dtype) != (first.shape, first.dtype) for page in used):
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
        raise ValueError(f"{page.photometric!s} of {page.bitspersample} bits is not read; make it gray or RGB")
    values, span = _values(data, page), None
    if values.dtype.kind == "u" and page.bitspersample <= 16:
        most = 2**page.bitspersample - 1
        stated = page.tags.valueof(281, most)  # of each sample, or of all
        white = float(np.max(stated)) if 0 < np.max(stated) < most else float(most)
        span = 0.0, white
        if page.photometric == 0:
            values = (white - np.minimum(values, white)).astype(values.dtype)
    extra = int(page.extrasamples[-1]) if page.extrasamples else 0
    return Raster(values, span, {1: "associated", 2: "straight"}.get(extra, ""))


def _open_tiff(data: bytes) -> Any:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised
    return tifffile.TiffFile(io.BytesIO(data))


def _is_plain(page: Any) -> bool:
    """Whether Pillow reads a page as it is. It knows every compression; tifffile needs imagecodecs for most."""
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
