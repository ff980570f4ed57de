"""Images that look alike though their bytes differ: by a difference hash of 64 bits, sought band by band."""

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from beit.data.base import grouped
from beit.data.sources.holdout import Members, units_of
from beit.pixels import to_unit

Look = NDArray[np.float16]
DISTANCE = 3
"""Bits in which the hashes of two images that look alike may differ."""
LIKENESS = 0.9
"""The least correlation of what they were hashed from, which tells them from two that are only bright at one side.
What both find: docs/images.md."""
_ROWS, _COLUMNS, _FLAT = 8, 9, 0.02


def look_of(image: Tensor) -> Look:
    """Image (C, H, W), uint8 or float in [0, 1] -> 8 x 9 means of its gray, (72,), of mean 0 and length 1; shorter
    where it is nearly even, so that it is like no other."""
    means = F.adaptive_avg_pool2d(to_unit(image), (_ROWS, _COLUMNS)).mean(dim=0).flatten()
    return F.normalize(means - means.mean(), dim=0, eps=_FLAT).numpy().astype(np.float16)


def groups_alike(look_of_name: Mapping[str, Look]) -> list[list[str]]:
    """The names whose looks are each like another of their group.

    A hash says between which neighbours in a row it grows lighter (dHash). Of two hashes that differ in three bits,
    one of four bands is the same, so that a look is compared with those alone that share a band with it.
    """
    looks = np.array([*look_of_name.values()], dtype=np.float32).reshape(-1, _ROWS * _COLUMNS)
    lighter = np.diff(looks.reshape(-1, _ROWS, _COLUMNS), axis=2) > 0
    signs = np.where(lighter, 1, -1).astype(np.float32).reshape(-1, _ROWS * (_COLUMNS - 1))
    links: Members = []
    for band in np.split(lighter, DISTANCE + 1, axis=1):
        words = np.packbits(band.reshape(len(looks), 16), axis=1).view(np.uint16)[:, 0].tolist()
        for sharing in grouped(range(len(looks)), words.__getitem__):
            rest = np.array(sharing)
            while len(rest) > 1:
                chain, rest = [int(rest[0])], rest[1:]
                for number in chain:  # which grows on the way
                    distance = (signs.shape[1] - signs[rest] @ signs[number]) / 2
                    near = (distance <= DISTANCE) & (looks[rest] @ looks[number] >= LIKENESS)
                    chain += rest[near].tolist()
                    rest = rest[~near]
                links.append(chain)
    unit_of = dict(zip(look_of_name, units_of(len(looks), links), strict=True))
    return [group for group in grouped(unit_of, unit_of.__getitem__) if len(group) > 1]
