"""Any image file -> RGB uint8, or an :class:`ImageError` that names the file.

What decoding means here: EXIF orientation applied, first frame of an animation, alpha over white, 16 bits divided
by 257, ICC profiles ignored, the content rather than the extension decides the format. The size is read from the
header and refused above a limit before anything is decoded, because a 300 KB file can hold gigabytes of pixels.
"""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

try:
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as decode_with_torchvision
except ImportError:  # deprecated since torchvision 0.29: once it is gone, Pillow decodes everything
    decode_with_torchvision = None

# Only formats that hold pixels: Pillow would hand others (EPS, PSD, FITS ...) to interpreters of much wider scope.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


class ImageError(Exception):
    """A file that is no usable image. The message is one line that names the file and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, " ".join(reason.split()) or "unknown reason"
        super().__init__(f"{name}: {self.reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (self.name, self.reason)  # so that it crosses from a worker to the main process


def decode_image(data: bytes, name: str, max_megapixels: float = 64, *, pillow: bool = False) -> Tensor:
    """The picture in `data` as uint8 (3, H, W), stored channels-last.

    Ordinary JPEG goes through torchvision (1.3 to 1.7 times as fast), everything else through Pillow; `pillow`
    sends JPEG there as well, for runs that must match the released pipeline to the last bit.
    Raises :class:`ImageError` with `name` for anything that is damaged, too large or no image.
    """
    image = open_pillow(data, name, max_megapixels)
    try:
        # Of metadata that plays no part here, and of torchvision's plans.
        with warnings.catch_warnings(action="ignore"):
            if decode_with_torchvision is not None:
                if not pillow and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                    return _torchvision(data, ImageReadMode.RGB)
                if image.format == "PNG" and data[24] == 16:  # where the header has the bit depth
                    return _from_sixteen_bits(_torchvision(data, ImageReadMode.UNCHANGED))
            rgb = to_rgb(image)
    except Exception as error:  # a hostile file may fail in any way a parser can fail: all mean a bad file
        refuse_need(error)
        raise ImageError(name, _reason(error)) from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def open_pillow(data: bytes, name: str, max_megapixels: float = 64) -> Image.Image:
    """The picture of `data` with only its header read and its size checked; :class:`ImageError` otherwise."""
    if not data:
        raise ImageError(name, "the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=_known_formats())
    except Image.DecompressionBombError as error:
        reason = f"larger than --max-megapixels {max_megapixels:g} allows, or than Pillow opens"
        raise ImageError(name, reason) from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "not an image in a known format") from error
    except Exception as error:
        refuse_need(error)
        raise ImageError(name, _reason(error)) from error
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        size = f"{width}x{height} is {width * height / 1e6:.0f} megapixels"
        raise ImageError(name, f"{size}; the limit (--max-megapixels) is {max_megapixels:g}")
    return image


def refuse_need(error: Exception) -> None:
    """MemoryError where `error` tells of the machine's need, and not of damage. Torch has its own words for it."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        raise MemoryError(str(error)) from error


def upright_size(data: bytes, name: str, max_megapixels: float = 64) -> tuple[int, int]:
    """(height, width) of the picture that :func:`decode_image` gives, from its header alone."""
    image = open_pillow(data, name, max_megapixels)
    try:
        with warnings.catch_warnings(action="ignore"):
            sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # unreadable EXIF says nothing about the pixels
        sideways = False
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size Pillow may have turned already
        stored = ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength
        width, height = (int(image.tag_v2[tag]) for tag in stored)
    return (width, height) if sideways else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """First frame of `image`, upright, over white, as 8-bit RGB. Errors are whatever Pillow raises."""
    image.load()  # of an animation, this is the first frame
    turned = upright(image)
    if turned.mode == "I" or turned.mode.startswith("I;16"):
        turned = _from_wide_gray(turned)
    elif turned.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
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


def _from_wide_gray(image: Image.Image) -> Image.Image:
    """16-bit gray (Pillow's modes I and I;16) to 8 bits; a bare ``convert`` would clip it to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("gray values lie outside 16 bits; convert the file to 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _from_sixteen_bits(pixels: Tensor) -> Tensor:
    """uint16 (1 to 4 channels, H, W) to RGB uint8: divided by 257, alpha over white."""
    values = pixels.to(torch.float64)
    if len(values) in (2, 4):
        values = values[:-1] * (values[-1:] / 0xFFFF) + (0xFFFF - values[-1:])
    rgb = (values / 257).round().to(torch.uint8)
    return rgb.expand(3, -1, -1).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _torchvision(data: bytes, mode: ImageReadMode) -> Tensor:
    writable = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    decoded: Tensor = decode_with_torchvision(writable, mode, apply_exif_orientation=True)
    return decoded


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # torchvision: "decode_jpeg, /path/file.cpp:12, Image is incomplete ..."
    return text.rpartition(".cpp:")[2].partition(", ")[2] if ".cpp:" in text else text
