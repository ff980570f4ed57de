"""Files that hold a class number for each pixel: decoded without touching the numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from beit.config.errors import UserError
from beit.data.decode import ImageError, open_pillow, upright

_LOSSY = ("JPEG", "MPO", "JPEG2000")
_SCALED_BITS = {"L;2": 85, "L;4": 17}
"""Gray of 2 and 4 bits, which Pillow spreads over 0..255."""


def decode_label_map(data: bytes, name: str, max_megapixels: float = 64) -> NDArray[np.integer[Any]]:
    """The numbers in a gray or palette picture, (H, W), as they are stored: of a palette the indices, not colours.
    Turned by its own EXIF orientation like an image.

    Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a picture that holds colours, not
    numbers.
    """
    image = open_pillow(data, name, max_megapixels)
    if image.format in _LOSSY:
        raise UserError(
            f"{name} is a JPEG file, which changes the numbers of classes; write label maps as PNG from their source"
        )
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise UserError(
            f"{name} is a colour picture (mode {image.mode}) and no label map; write the number of its class for "
            f"each pixel, as a gray or palette PNG"
        )
    scale = _SCALED_BITS.get(_raw_mode(image), 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that plays no part here
            image.load()
            numbers = np.array(upright(image))
    except Exception as error:  # a damaged file may fail in any way a parser can fail
        raise ImageError(name, str(error) or type(error).__name__) from error
    if numbers.dtype == np.bool_:
        return numbers.astype(np.uint8)
    return numbers // scale if scale > 1 else numbers


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, as Pillow calls it; known only before they are read."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    arguments = image.tile[0][3]
    first = arguments[0] if isinstance(arguments, tuple) else arguments
    return first if isinstance(first, str) else ""
