"""What the images of a set are, told by an even choice: channels, bits, black and white, and their statistics."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from beit.config.errors import require
from beit.config.values import counted
from beit.data.base import Source
from beit.data.decode import Decoding, ImageError, depth_of, open_pillow, reading
from beit.data.rasters import Raster, read_raster
from beit.data.sources.files import FileSource
from beit.data.sources.splits import Parts, unlabeled
from beit.data.sources.subsets import spread
from beit.pixels import to_unit

LOOKS, PIXELS, STATISTICS = 32, 100_000, 256
"""Images that are looked at, pixels of each, about; and images whose pixels give mean and deviation."""
PERCENTILES = (0.1, 99.9)
"""Of a channel's numbers are black and white where nobody says what is."""


def settled(parts: Parts, decoding: Decoding) -> Decoding:
    """`decoding` with what it leaves open as the training images in `parts` are, which are told of it."""
    own = parts.get("train") or next(iter(parts.values()))
    decoding, notes = look_over(FileSource(unlabeled(own), decoding))
    own[0].notes.extend(notes)
    return decoding


def look_over(source: FileSource) -> tuple[Decoding, list[str]]:
    """How the images of `source` are decoded, whose own decoding may leave channels and bits open, and what is to be
    said of that. UserError where they have various numbers of channels."""
    decoding, rasters = source.decoding, _rasters(source, source.decoding.channels)
    if decoding.channels is None:
        decoding = decoding._replace(channels=_channels_of(rasters, source))
        rasters = _rasters(source, decoding.channels)  # with all pages of stacks
    if decoding.bits is not None:
        return decoding, _remarks(rasters, decoding)
    is_deep = bool(rasters) and all(raster.values.dtype != np.uint8 for raster in rasters)
    decoding = decoding._replace(bits=16 if is_deep else 8)
    kind = f"images of {counted(decoding.channels or 0, 'channel')}, of {'more than ' * is_deep}8 bits"
    notes = [kind, *_remarks(rasters, decoding)]
    if is_deep and decoding.value_range is None and not all(raster.is_stated for raster in rasters):
        ends = _percentiles(rasters)
        decoding = decoding._replace(value_range=tuple(ends.ravel().tolist()))
        words = ", ".join(f"{black:.6g} to {white:.6g}" for black, white in ends)
        notes.append(f"black and white are percentiles of each channel, for want of --value-range: {words}")
    return decoding, notes


def _remarks(rasters: Sequence[Raster], decoding: Decoding) -> list[str]:
    """What files hold that images of them do not show, one line each."""
    bands = [raster.bands for raster in rasters if raster.bands != decoding.channels]
    pages, bands = [raster.pages - 1 for raster in rasters], [n - min(n, 3 if n > 2 else 1) for n in bands]
    lines = [
        f"{some} of {len(rasters)} files looked at hold{'s' * (some == 1)} more {what} than the first, of which "
        f"{sum(counts):,} {'is' if sum(counts) == 1 else 'are'} dropped"
        for what, counts in (("pages", pages), ("bands", bands))
        if (some := sum(map(bool, counts)))
    ]
    if deep := sum(raster.depth > 8 for raster in rasters):
        lines.append(f"{deep} of {len(rasters)} files looked at are AVIF or HEIC of more than 8 bits, read as 8")
    highest = max((int(raster.values.max()) for raster in rasters if raster.span == (0, 0xFFFF)), default=0)
    if 0 < highest < 0x10000 / 8 and decoding.bits == 8 and decoding.value_range is None:
        dark = "the images of 16 bits that were looked at stay under an eighth of their range, nearly black"
        lines.append(f"{dark}; --value-range 0 {highest} would make {highest:,} white")
    return lines


def statistics_of(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of images in [0, 1], those of an even choice; damaged ones are left out."""
    moments = []
    for index in spread(len(source), min(STATISTICS, len(source))):
        with suppress(ImageError):
            pixels = to_unit(source.image(index)).double().flatten(1)
            moments.append(torch.stack([pixels.mean(1), pixels.square().mean(1)]))
    require(bool(moments), "--data: none of the images looked at can be read; `beit check` lists the damaged files")
    mean, square = torch.stack(moments).mean(0)
    std = (square - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(mean.numpy().round(6).tolist()), tuple(std.numpy().round(6).tolist())


def _rasters(source: FileSource, channels: int | None) -> list[Raster]:
    """Those of an even choice of the files, with some of their pixels; of a file that Pillow reads none."""
    rasters: list[Raster] = []
    limits = source.decoding.limits
    for index in spread(len(source), min(LOOKS, len(source))):
        with suppress(ImageError), reading(source.name(index)):  # damaged files are met where they are used
            data = source.read(index)
            raster = read_raster(data, limits, channels)
            if raster is None:
                is_gray = open_pillow(data, source.name(index), limits).mode[0] in "1LIF"
                raster = Raster(np.empty((0, 0, 1 if is_gray else 3), np.uint8), (0, 255), depth=depth_of(data))
            pixels = raster.values.reshape(1, -1, raster.values.shape[2])
            rasters.append(raster._replace(values=pixels[:, :: 1 + pixels.shape[1] // PIXELS].copy()))
    return rasters


def _channels_of(rasters: Sequence[Raster], source: FileSource) -> int:
    """How many channels images have: as the files, of which gray pages alike in number are a stack. Gray among
    colours is shown in colour."""
    stacks = {raster.bands * (raster.pages if raster.bands == 1 else 1) for raster in rasters}
    bands = sorted(stacks if len(stacks) == 1 else {raster.bands for raster in rasters})
    various = f"files have {' and '.join(map(str, bands))} channels; say how many are meant: --image-channels 3 takes"
    fits = len(bands) < 2 or bands[-1] <= 3
    require(fits, f"--data {source.describe()}: {various} the first three of each")
    return bands[0] if len(bands) == 1 else 3


def _percentiles(rasters: Sequence[Raster]) -> NDArray[np.float64]:
    """Black and white of each channel, (C, 2); those of all, (1, 2), where files differ in channels."""
    values = [raster.values[0] for raster in rasters]
    if len({part.shape[1] for part in values}) > 1:
        values = [part.reshape(-1, 1) for part in values]
    black, white = np.nanpercentile(np.concatenate(values), PERCENTILES, axis=0)
    return np.stack([black, np.where(white > black, white, black + 1)], axis=1)
