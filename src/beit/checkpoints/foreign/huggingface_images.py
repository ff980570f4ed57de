"""Hugging Face's preprocessor_config.json: how images are resized, cut and normalised before a network sees them.

Its BEiT processor squashes images to `size`, whatever their shape, and cuts `crop_size` out of their middle; with
`shortest_edge` in place of a height and a width, as its BiT processor has it, they keep their shape.
"""

import math
from typing import Any

from beit.checkpoints.preparation import LEAST_CROP, Preparation, stated_preparation
from beit.config.architecture import EncoderConfig
from beit.config.errors import require
from beit.models.position import Grid
from beit.untrusted import Facts, printable

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's numbers of them, which `resample` is one of."""
_BICUBIC = _FILTERS.index("bicubic")
WHOLE = Preparation("bicubic", 1.0, "squash")
"""How its models other than classifiers are shown images."""


def pixels_of(processor: Facts) -> dict[str, Any]:
    """Fields of :class:`EncoderConfig`, for pixels in [0, 1]; none where there is no such file."""
    if not processor:
        return {}
    # Theirs are for what rescaling makes of pixels in [0, 255].
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    known = type(factor) in (int, float) and 1e-6 < factor < 1e6
    require(known, f"its preprocessor_config.json says that rescale_factor is {printable(str(factor))}")
    identity = {"image_mean": 0.0, "image_std": 1.0}
    values = identity if processor.get("do_normalize") is False else processor
    return {f"pixel_{name}": _scaled(values.get(f"image_{name}"), 255 * factor) for name in ("mean", "std")}


def _scaled(value: Any, scale: float) -> tuple[Any, ...]:
    """A value for each channel; theirs may be one for all, and is 0.5 where there is none."""
    value = 0.5 if value is None else value
    channels = value if isinstance(value, list) else [value] * 3
    return tuple(channels) if scale == 1 else tuple(x / scale for x in channels)


def preparation_of(processor: Facts, size: Any) -> tuple[dict[str, Any], list[str]]:
    """Keys of model.json for a classifier of images of `size`, and a line where they cannot tell it."""
    if "size" not in processor:
        return {}, []
    resample = processor.get("resample", _BICUBIC)
    target = processor["size"]
    keeps_shape = isinstance(target, dict) and target.keys() == {"shortest_edge"}
    resized = _sides(target["shortest_edge"] if keeps_shape else target)
    uncut = None if keeps_shape else resized
    cut = _sides(processor.get("crop_size")) if processor.get("do_center_crop") else uncut
    share = _share(cut, resized) if cut and resized and cut == (*size,) else None
    if share is None or resample not in range(len(_FILTERS)) or processor.get("do_resize") is False:
        return {}, [f"preprocessor_config.json: not read, its sizes do not give {size} in a known way"]
    return stated_preparation(_FILTERS[resample], share, "center" if keeps_shape else "squash"), []


def _sides(size: Any) -> Grid | None:
    """Height and width: {"height": 224, "width": 224}, or 224 in older files."""
    sides: Any = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    height, width = sides
    return (height, width) if type(height) is type(width) is int and min(sides) > 0 else None


def _share(cut: Grid, resized: Grid) -> float | None:
    """The `crop_pct` that makes `resized` of `cut`; of all these numbers the one with the fewest digits."""
    # Rounded down, since a larger share would make a smaller image.
    near = [10**digits * cut[0] // resized[0] / 10**digits for digits in range(1, 9)]
    near.append(math.nextafter(cut[0] / resized[0], 0))  # 112 / 0.56 is 199.99999999999997
    fits = (x for x in near if LEAST_CROP <= x <= 1 and before_cut(cut, x) == resized)
    return next(fits, None)


def before_cut(size: Grid, crop_pct: float) -> Grid:
    """Height and width of the image that `size` is cut out of."""
    return int(size[0] / crop_pct), int(size[1] / crop_pct)


def content(config: EncoderConfig, prepared: Preparation) -> dict[str, Any]:
    """preprocessor_config.json. What it cannot tell of `prepared` has the value that WHOLE has."""
    (height, width), (rows, columns) = config.image_size, before_cut(config.image_size, prepared.crop_pct)
    # Where a height and a width are wanted, its processors know one shorter edge alone.
    keeps_shape = prepared.crop_mode == "center" and height == width
    filter_name = prepared.interpolation
    return {
        "image_processor_type": "BitImageProcessor" if keeps_shape else "BeitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": rows} if keeps_shape else {"height": rows, "width": columns},
        "resample": _FILTERS.index(filter_name) if filter_name in _FILTERS else _BICUBIC,
        "do_center_crop": keeps_shape or (rows, columns) != (height, width),
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
    }
