"""Files of label maps: the number of a class for every pixel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.config.errors import UserError
from beit.data.decode import ImageError, open_pillow, refuse_need, upright
from beit.data.sources.files import Files, FileSource
from beit.data.sources.listing import Listing
from beit.data.sources.subsets import spread

_LOSSY = ("JPEG", "MPO", "JPEG2000")
_SCALED_BITS = {"L;2": 85, "L;4": 17}
"""Gray of 2 and 4 bits, which Pillow spreads over 0..255."""


class MapFiles(FileSource):
    """Files of label maps, each as large as the image of the same index in `images`."""

    def __init__(self, images: FileSource, maps: Sequence[Listing], max_megapixels: float) -> None:
        super().__init__(Files(list(maps), []), max_megapixels)
        self._images = images

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        """(H, W), the numbers as they are stored.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for one that is no map of its image.
        """
        numbers = decode_label_map(self.read(index), self.name(index), self._max_megapixels)
        height, width = self._images.size(index)
        if numbers.shape != (height, width):
            raise UserError(
                f"{self.name(index)} has {numbers.shape[1]}x{numbers.shape[0]} pixels, but its image "
                f"{self._images.name(index)} {width}x{height}; make the map of the image as it is"
            )
        return numbers

    def numbers(self, at_most: int = 500) -> tuple[dict[int, str], int]:
        """Every number in an even choice of the maps with the name of a map that has it, and how many were read.

        Damaged files are left to be met by whoever reads them all.
        """
        names: dict[int, str] = {}
        indices = spread(len(self), at_most)
        for index in indices:
            with suppress(ImageError):
                numbers = np.unique(self.label_map(index)).tolist()
                names = {number: self.name(index) for number in numbers} | names
        return names, len(indices)


def decode_label_map(data: bytes, name: str, max_megapixels: float) -> NDArray[np.integer[Any]]:
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
        with warnings.catch_warnings(action="ignore"):  # of metadata that plays no part here
            image.load()
            numbers = np.array(upright(image))
    except Exception as error:  # a damaged file may fail in any way a parser can fail
        refuse_need(error)
        raise ImageError(name, str(error) or type(error).__name__) from error
    return numbers.astype(np.uint8) if numbers.dtype == np.bool_ else numbers // scale


def _raw_mode(image: Image.Image) -> Any:
    """How the pixels lie in the file, as Pillow calls it; known only before they are read."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return arguments[0] if isinstance(arguments, tuple) else arguments
