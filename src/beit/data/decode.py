"""Any image file -> its pixels, uint8 or of more bits float32, or an :class:`ImageError` that names the file.

What decoding means here: EXIF orientation applied, first frame of an animation, alpha over white, 16 bits scaled by
what the file or --value-range says is black and white, ICC profiles ignored, the content rather than the extension
decides the format. The size is read from the header and refused above a limit before anything is decoded,
because a 300 KB file can hold gigabytes of pixels.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as decode_with_torchvision

from beit.pixels import Limits

# Only formats that hold pixels: Pillow would hand others (EPS, PSD, FITS ...) to interpreters of much wider scope.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")


class ImageError(Exception):
    """A file that is no usable image. The message is one line that names the file and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, " ".join(reason.split()) or "unknown reason"
        super().__init__(f"{name}: {self.reason}")

    def __reduce__(self) -> "tuple[type[ImageError], tuple[str, str]]":
        return ImageError, (self.name, self.reason)  # so that it crosses from a worker to the main process


class Decoding(NamedTuple):
    """How files are made images."""

    limits: Limits = Limits()
    channels: int | None = 3
    """Of the images; None where the files are still to be asked."""
    bits: int | None = 8
    """8, or 16 for images of more; likewise."""
    value_range: tuple[float, ...] | None = None
    """The numbers that are black and white, of all channels or of one after another, where a file has more than 8
    bits; None for what it states itself."""
    pillow: bool = False
    """Send JPEG to Pillow too, for runs that must match the released pipeline to the last bit."""


USUAL = Decoding()


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever fails inside is an :class:`ImageError` with `name`: a hostile file fails in any way a parser can."""
    try:
        # Of metadata that plays no part here, and of torchvision's plans.
        with warnings.catch_warnings(action="ignore"):
            yield
    except ImageError:
        raise
    except Exception as error:
        # Of the machine's need, and of no damage; torch has its own words for it.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        # torchvision: "decode_jpeg, /path/file.cpp:12, Image is incomplete ..."
        raise ImageError(name, text.rpartition(".cpp:")[2].partition(", ")[2] if ".cpp:" in text else text) from error


def decode_image(data: bytes, name: str, decoding: Decoding = USUAL) -> Tensor:
    """The picture in `data`, (C, H, W) stored channels-last: uint8, or, of more than 8 bits, float32 in [0, 1].

    Ordinary JPEG goes through torchvision (1.3 to 1.7 times as fast), what is not RGB of 8 bits through a
    :class:`beit.data.rasters.Raster`, everything else through Pillow. Raises :class:`ImageError` with `name` for
    anything that is damaged, too large or no image.
    """
    from beit.data.rasters import pixels_of, read_raster  # which few sets need

    channels, bits = decoding.channels or 3, decoding.bits or 8
    with reading(name):
        raster = read_raster(data, decoding.limits, channels)
        if raster is None:
            image = open_pillow(data, name, decoding.limits)
            jpeg = (channels, bits) == (3, 8) and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
            if jpeg and not decoding.pillow:
                writable = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                decoded: Tensor = decode_with_torchvision(writable, ImageReadMode.RGB, apply_exif_orientation=True)
                return decoded
            return pixels_of_picture(image, decoding)
        return torch.from_numpy(pixels_of(raster, channels, bits, decoding.value_range)).permute(2, 0, 1)


def pixels_of_picture(image: Image.Image, decoding: Decoding) -> Tensor:
    """What :func:`decode_image` gives of what Pillow has opened. Errors are whatever Pillow raises."""
    from beit.data.rasters import pixels_of, raster_of_picture

    channels, bits = decoding.channels or 3, decoding.bits or 8
    if (channels, bits) == (3, 8) and image.mode[0] not in "IF":
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
    image.load()
    pixels = pixels_of(raster_of_picture(upright(image), image.format), channels, bits, decoding.value_range)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_pillow(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture of `data` with only its header read and its size checked; :class:`ImageError` otherwise."""
    with reading(name):
        if not data:
            raise ValueError("the file is empty")
        if data[4:8] == b"ftyp" and any(brand in data[8:40] for brand in (b"heic", b"heix", b"hevc", b"heim")):
            _open_heif()
        try:
            image = Image.open(io.BytesIO(data), formats=_known_formats())
        except Image.DecompressionBombError as error:
            limit = f"--max-megapixels {limits.megapixels:g}"
            raise ValueError(f"larger than {limit} allows, or than Pillow opens") from error
        except UnidentifiedImageError as error:
            # Start of frame: marker, length, bits.
            frame = re.search(rb"\xff[\xc0-\xc3]\0[\x0b\x11\x14](.)", data, re.DOTALL)
            if frame and data[:2] == b"\xff\xd8":
                raise ValueError(f"a JPEG of {frame[1][0]} bits, which is not read; write PNG or TIFF") from error
            raise ValueError("not an image in a known format") from error
        limits.check(image.height, image.width, bytes_per_pixel=4)
        return image


def depth_of(data: bytes) -> int:
    """Bits of a channel in an AVIF or HEIC file, by its boxes called `pixi`; 8 of any other."""
    depths = (box[1][0] for box in re.finditer(rb"pixi\0{4}.(.)", data, re.DOTALL) if data[4:8] == b"ftyp")
    return max(depths, default=8)


def upright_size(data: bytes, name: str, limits: Limits) -> tuple[int, int]:
    """(height, width) of the picture that :func:`decode_image` gives, from its header alone."""
    from beit.data.rasters import raster_size

    with reading(name):
        if size := raster_size(data, limits):
            return size
    image = open_pillow(data, name, limits)
    try:
        with warnings.catch_warnings(action="ignore"):
            sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # unreadable EXIF says nothing about the pixels
        sideways = False
    return image.size if sideways else image.size[::-1]


def to_rgb(image: Image.Image) -> Image.Image:
    """First frame of `image`, upright, over white, as 8-bit RGB. Errors are whatever Pillow raises."""
    image.load()  # of an animation, this is the first frame
    turned = upright(image)
    if turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info:
        colour = turned.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    return turned.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """`image`, already loaded, as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about the pixels, which are whole
        return image


@cache
def _open_heif() -> None:
    """Have Pillow read HEIC, as phones write it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError("HEIC needs `pip install beit[heif]`") from error
    register_heif_opener()
    _known_formats.cache_clear()


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
