"""What pictures of more than 8 bits, or of other channels than RGB, hold: the numbers that are stored."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from beit.pixels import Limits

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Raster(NamedTuple):
    """The numbers of a picture, upright."""

    values: NDArray[Any]
    """(H, W, channels), as they are stored, but that more is always lighter."""
    white: float | None
    """The number that is white; None where there is no agreed one."""
    opacity: str = ""
    """What the last channel is: "straight" opacity, "associated" (colours multiplied by it), or, "", no opacity."""
    pages: int = 1
    """Of the file, of which `values` are the first."""


def read_raster(data: bytes, limits: Limits) -> Raster | None:
    """The numbers in a TIFF or a PNG of 16 bits, None for any other file. Raises whatever a parser can."""
    if data[:4] in TIFF:
        return read_tiff(data, limits)
    if data[:4] != b"\x89PNG" or data[24:25] != b"\x10":  # where the header has the bit depth
        return None
    from torchvision.io import ImageReadMode, decode_image

    width, height = struct.unpack(">II", data[16:24])
    limits.check(height, width, bytes_per_pixel=8)
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    decoded = decode_image(pixels, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    values = decoded.permute(1, 2, 0).numpy()
    return Raster(values, png_white(data, values), "straight" if values.shape[2] in (2, 4) else "")


def rgb_of(raster: Raster, value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """uint8 (H, W, 3): the first three channels, or gray three times; opacity over white. `value_range` is for
    numbers of more than 8 bits."""
    values, stated = raster.values, None if raster.values.dtype == np.uint8 else value_range
    black, white = stated or (0.0, raster.white)
    if white is None or not (stated or 0 <= values.min() <= values.max() <= 0xFFFF):
        raise ValueError("its numbers have no agreed range; state it, as --value-range BLACK WHITE")
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    if values.dtype != np.uint8 or white != 255 or raster.opacity:
        unit = np.clip((values - np.float32(black)) / np.float32(white - black), 0, 1)
        if raster.opacity:
            alpha = values[..., -1:] / np.float32(raster.white or 1)
            unit = unit[..., :-1] * (alpha if raster.opacity == "straight" else 1) + (1 - alpha)
        values = np.rint(unit * 255).astype(np.uint8)
    return np.ascontiguousarray(values[..., :3] if values.shape[2] > 2 else values[..., [0, 0, 0]])


def remarks(rasters: Sequence[Raster], stated: bool) -> list[str]:
    """What files hold that images of them do not show, one line each; `stated`: their range is."""
    bands = [raster.values.shape[2] - (raster.opacity != "") for raster in rasters]
    spare = {"pages": [raster.pages - 1 for raster in rasters]}
    spare["bands"] = [count - (3 if count > 2 else 1) for count in bands]
    lines = [
        f"{sum(map(bool, counts))} of {len(rasters)} files looked at hold more {what} than the first, of which "
        f"{sum(counts):,} are dropped"
        for what, counts in spare.items()
        if any(counts)
    ]
    highest = max((int(raster.values.max()) for raster in rasters if raster.white == 0xFFFF), default=0)
    if 0 < highest < 0x10000 / 8 and not stated:
        lines.append(
            f"the images of 16 bits that were looked at stay under an eighth of their range, nearly black; "
            f"--value-range 0 {highest} would make {highest:,} white"
        )
    return lines


def turn(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) as EXIF's `orientation` says, 1 to 8."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def raster_of_picture(image: Image.Image) -> Raster:
    """What Pillow reads as it is stored: gray of 8 or 16 bits, and RGB of 8; it makes RGB of all else."""
    opaque = "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "La", "RGBa")
    if opaque and image.mode[0] in "IF":
        return Raster(np.asarray(image)[..., None], None if image.mode == "F" else 65535)
    mode = "RGBA" if not opaque else "L" if image.mode in ("1", "L") else "RGB"
    values = np.asarray(image.convert(mode))
    return Raster(values.reshape(*values.shape[:2], -1), 255, "" if opaque else "straight")


def tiff_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header alone."""
    with _open_tiff(data) as file:
        page = file.pages[0]
        size = page.imagelength, page.imagewidth
        return size[::-1] if page.tags.valueof(274, 1) in (5, 6, 7, 8) else size


def read_tiff(data: bytes, limits: Limits) -> Raster:
    """The first page of a TIFF; ValueError, or whatever a parser can raise, for what cannot be read."""
    with _open_tiff(data) as file:
        page, count = file.pages[0], sum(not page.is_reduced for page in file.pages)
        pixels = max(page.imagelength * page.imagewidth, 1)
        tiles = max(1, page.tilelength * page.tilewidth / pixels)
        limits.check(page.imagelength, page.imagewidth, tiles * page.nbytes / pixels)
        if _is_plain(page):
            with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
                image.load()
                return raster_of_picture(ImageOps.exif_transpose(image))._replace(pages=count)
        if page.photometric not in (0, 1, 2):
            raise ValueError(f"{page.photometric!s} of {page.bitspersample} bits is not read; make it gray or RGB")
        values, white = _values(data, page), None
        if values.dtype.kind == "u" and page.bitspersample <= 16:
            most = 2**page.bitspersample - 1
            stated = page.tags.valueof(281, most)  # of each sample, or of all
            white = float(np.max(stated)) if 0 < np.max(stated) < most else float(most)
            if page.photometric == 0:
                values = (white - np.minimum(values, white)).astype(values.dtype)
        extra = int(page.extrasamples[-1]) if page.extrasamples else 0
        return Raster(values, white, {1: "associated", 2: "straight"}.get(extra, ""), count)


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
