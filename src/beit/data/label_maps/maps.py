"""Files of label maps: the number of a class for every pixel."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.config.errors import require
from beit.config.values import counted
from beit.data.decode import Decoding, ImageError, open_pillow, reading, upright
from beit.data.label_maps.colors import ColorKey
from beit.data.rasters import NPY, Raster, is_odd_tiff, read_raster
from beit.data.sources.files import Files, FileSource, Listing
from beit.data.sources.subsets import spread
from beit.pixels import Limits

_LOSSY = {"JPEG", "MPO", "JPEG2000", "AVIF", "HEIF", "jpeg", "tiff_jpeg"}  # the last ones within TIFF
_MEND = "write the number of its class for each pixel, as a gray or palette PNG"


class MapFiles(FileSource):
    """Files of label maps, each as large as the image of the same index in `images`."""

    def __init__(self, images: FileSource, maps: Sequence[Listing], decoding: Decoding, key: ColorKey) -> None:
        super().__init__(Files(list(maps), []), decoding)
        self._images, self._key = images, key

    def label_map(self, index: int) -> NDArray[np.integer[Any]]:
        """(H, W), the numbers as they are stored.

        Raises :class:`ImageError` for a damaged file, and :class:`UserError` for one that is no map of its image.
        """
        numbers = decode_label_map(self.read(index), self.name(index), self.decoding.limits, self._key)
        height, width = self._images.size(index)
        image = f"its image {self._images.name(index)} {width}x{height}; make the map of the image as it is"
        has = f"{self.name(index)} has {numbers.shape[1]}x{numbers.shape[0]} pixels"
        require(numbers.shape == (height, width), f"{has}, but {image}")
        return numbers

    def numbers(self, at_most: int = 500) -> tuple[dict[int, str], int, str | None]:
        """The name of a map for every number in an even choice of the maps, how many were read, and one of those that
        look like shades of gray, where many do. Damaged files are left to whoever reads them all.
        """
        names: dict[int, str] = {}
        shaded: list[str] = []
        indices = spread(len(self), at_most)
        for index in indices:
            with suppress(ImageError):
                numbers, counts = np.unique(self.label_map(index), return_counts=True)
                names = {number: self.name(index) for number in numbers.tolist()} | names
                # Shades between two classes are many and rare; classes in one picture are not.
                if len(numbers) >= 16 and (counts > counts.sum() / 100).sum() * 4 <= len(numbers):
                    shaded.append(self.name(index))
        return names, len(indices), shaded[0] if len(shaded) * 10 > len(indices) else None


def decode_label_map(data: bytes, name: str, limits: Limits, key: ColorKey) -> NDArray[np.integer[Any]]:
    """The numbers in a picture, (H, W): of gray as they are stored, whatever shade they stand for; of a palette the
    indices; of colours those that `key` has for them. Turned by its own EXIF orientation like an image.

    Raises :class:`ImageError` for a damaged file, and :class:`UserError` for a picture that is no label map.
    """
    if (raster := _raster_beyond_pillow(data, name, limits)) is not None:
        return _numbers_of_raster(raster, name, key)
    image = open_pillow(data, name, limits)
    reason = f"{name} is a {image.format} whose compression changes numbers; write maps as PNG from their source"
    require(_LOSSY.isdisjoint((image.format, image.info.get("compression"))), reason)
    _require_one_page(getattr(image, "n_frames", 1), name)
    raw_mode, white = _storage(image)
    colored = image.mode in ("RGB", "RGBA") and "16" not in raw_mode
    fits = colored or image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")
    require(fits, f"{name} is a picture of mode {image.mode} and no label map; {_MEND}")
    with reading(name):
        image.load()
        pixels = np.array(upright(image))
    if colored:
        return key.numbers(pixels, name)
    if image.mode == "P":
        key.require_same_palette(np.unique(pixels).tolist(), image.getpalette() or [], name)
    return _as_stored(pixels, raw_mode, white)


def _raster_beyond_pillow(data: bytes, name: str, limits: Limits) -> Raster | None:
    """An array, a DICOM file, or a TIFF that Pillow does not read, or not right; None for what it does."""
    with reading(name):
        return read_raster(data, limits) if data[:6] == NPY or data[128:132] == b"DICM" or is_odd_tiff(data) else None


def _numbers_of_raster(raster: Raster, name: str, key: ColorKey) -> NDArray[np.integer[Any]]:
    values = raster.values.view(np.uint8) if raster.values.dtype == np.bool_ else raster.values
    _require_one_page(raster.pages, name)
    if values.dtype == np.uint8 and values.shape[2] in (3, 4):
        return key.numbers(values, name)
    fits, bands = values.dtype.kind in "ui" and values.shape[2] == 1, counted(values.shape[2], "band")
    require(fits, f"{name} holds {values.dtype} numbers in {bands} and is no label map; {_MEND}")
    return values[..., 0]


def _require_one_page(pages: int, name: str) -> None:
    require(pages == 1, f"{name} has {pages} pages or frames, and a label map is one; write each as PNG")


def _storage(image: Image.Image) -> tuple[str, int | None]:
    """How the pixels lie in the file, as Pillow calls it, and the number that it makes white where the file says so;
    known only before they are read."""
    codec, _, _, arguments = [*getattr(image, "tile", []), ("", None, 0, "")][0]
    raw_mode, white = (*arguments, None)[:2] if isinstance(arguments, tuple) else (arguments, None)
    return str(raw_mode), white if codec.startswith("ppm") else None


def _as_stored(shades: NDArray[Any], raw_mode: str, white: int | None) -> NDArray[np.integer[Any]]:
    """The numbers that Pillow made `shades` of: it spreads few bits over 0..255, and turns them round where 0 is
    white."""
    shades = shades.astype(np.uint8) if shades.dtype == np.bool_ else shades
    kind, _, order = raw_mode.partition(";")
    most = white or {"2": 3, "4": 15}.get(order[:1], 1 if kind == "1" else 255)
    largest = 255 if shades.dtype == np.uint8 else 65535
    if most < largest and (kind == "L" or white):
        shades = np.rint(shades * (most / largest)).astype(shades.dtype)
    return most - shades if kind in ("1", "L") and "I" in order else shades
