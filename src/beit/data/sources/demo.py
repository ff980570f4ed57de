"""The built-in data set: textured objects on textured grounds, drawn with numpy.

Every class has its outline and its typical texture; colours are drawn for each object, whatever its class, so that
they tell nothing of it. Scenes are functions of (seed, index) and look the same at any size. All arithmetic is
float64, so that rounding to 8 bits hides the last-digit differences between machines.
"""

import colorsys
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.data.base import Split

Array = NDArray[np.float64]


class Look(NamedTuple):
    """What objects of one class look like, up to variation."""

    outline: Callable[[Array, Array], Array]
    """Signed distance (approximate, negative inside) from the border, in units of the object's radius."""
    texture: Callable[[Array, Array, float], Array]
    """A wave over the object's own coordinates, of a frequency in radians; negative is dark."""


def _polygon(sides: int) -> Callable[[Array, Array], Array]:
    def distance(x: Array, y: Array) -> Array:
        directions = 2 * math.pi * (np.arange(sides) + 0.5) / sides - math.pi / 2
        reach = [x * math.cos(a) + y * math.sin(a) for a in directions]
        furthest: Array = np.maximum.reduce(reach)
        return furthest - math.cos(math.pi / sides)

    return distance


def _star(x: Array, y: Array) -> Array:
    """Five points: the polygon's border bent inwards between them."""
    step = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + step / 2) % step - step / 2)  # from the nearest point
    radius = np.hypot(x, y)
    # The edge from a tip (1, 0) to the notch between two tips at 0.5 of the radius.
    notch_x, notch_y = 0.5 * math.cos(step / 2), 0.5 * math.sin(step / 2)
    length = math.hypot(1 - notch_x, notch_y)
    return ((radius * np.cos(angle) - 1) * notch_y + radius * np.sin(angle) * (1 - notch_x)) / length


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.66) - 0.26


def _cross(x: Array, y: Array) -> Array:
    ax, ay = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(ax - 0.32, ay - 0.95), np.maximum(ay - 0.32, ax - 0.95))


def _bar(x: Array, y: Array) -> Array:
    return np.hypot(np.maximum(np.abs(x) - 0.68, 0), y) - 0.32


def _dots(x: Array, y: Array, f: float) -> Array:
    return 0.6 * (np.cos(2 * f * x) + np.cos(2 * f * y)) - 0.3


LOOKS: dict[str, Look] = {
    "disc": Look(lambda x, y: np.hypot(x, y) - 0.88, _dots),
    "square": Look(_polygon(4), lambda x, y, f: 2 * np.sin(f * x) * np.sin(f * y)),
    "triangle": Look(_polygon(3), lambda x, y, f: np.sin(1.5 * f * x)),
    "star": Look(_star, lambda x, y, f: 0.4 - np.hypot(x, y)),
    "ring": Look(_ring, lambda x, y, f: np.sin(np.arctan2(y, x) * round(2 * f / math.pi))),
    "cross": Look(_cross, lambda x, y, f: np.sin(0.8 * f * x) + np.sin(0.8 * f * y)),
    "bar": Look(_bar, lambda x, y, f: np.sin(f * (x + 0.7 * y))),
    "hexagon": Look(_polygon(6), lambda x, y, f: np.sin(2 * f * np.hypot(x, y))),
}
CLASSES = tuple(LOOKS)
VERSION = 2
"""Of the scenes: runs on those of another are runs on other images."""


def _soft(wave: Array) -> Array:
    """A sine made into two tones with a soft edge."""
    return np.clip(0.5 + 1.6 * wave, 0, 1)


def _noise(x: Array, y: Array, cells: float, rng: np.random.Generator) -> Array:
    """Smooth value noise in [0, 1] over coordinates in about [-1.5, 1.5]."""
    side = 16
    table = rng.random((side, side))
    u, v = (x + 8) * cells / 2, (y + 8) * cells / 2
    iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    iu, iv, ju, jv = iu % side, iv % side, (iu + 1) % side, (iv + 1) % side
    top = table[iv, iu] * (1 - fu) + table[iv, ju] * fu
    bottom = table[jv, iu] * (1 - fu) + table[jv, ju] * fu
    return top * (1 - fv) + bottom * fv


def _rgb(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _blend(dark: Array, light: Array, amount: Array) -> Array:
    return dark + (light - dark) * amount[..., None]


def _ground(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """A muted backdrop (H, W, 3): two tones mixed by noise, stripes, checks or a plain slope of light."""
    hue, turn = rng.random(), rng.uniform(0, 2 * math.pi)
    value = rng.uniform(0.35, 0.95)
    first = _rgb(hue, rng.uniform(0.05, 0.35), value)
    second = _rgb(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.35), value * rng.uniform(0.6, 0.88))
    u = x * math.cos(turn) + y * math.sin(turn)
    v = y * math.cos(turn) - x * math.sin(turn)
    kind = rng.integers(4)
    frequency = rng.uniform(2, 5)
    if kind == 0:
        pattern = _noise(x, y, frequency, rng)
    elif kind == 1:
        pattern = _soft(np.sin(math.pi * frequency * u) * 0.6)
    elif kind == 2:
        pattern = _soft(np.sin(math.pi * frequency * u) * np.sin(math.pi * frequency * v))
    else:
        pattern = 0.5 + 0.35 * u + 0.3 * (_noise(x, y, 2 * frequency, rng) - 0.5)
    light = 1 + 0.14 * v
    return _blend(first, second, np.clip(pattern, 0, 1)) * light[..., None]


def render_scene(seed: int, index: int, size: int = 64) -> tuple[NDArray[np.uint8], int, NDArray[np.uint8]]:
    """One scene: image uint8 (size, size, 3), label 0..7, and label map uint8 (size, size).

    The label is the class of the object with the largest visible area; in the map 0 is the ground, a class of its
    own, and 1 + class marks objects. One to three objects, later ones in front.
    """
    rng = np.random.default_rng((seed, index))
    axis = (np.arange(size, dtype=np.float64) + 0.5) * (2 / size) - 1
    canvas = _ground(np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size)), rng)
    owner = np.zeros((size, size), dtype=np.int64)  # which object is seen; 0 = ground
    labels = [0]  # of the ground, and of each object
    count = int(rng.choice(3, p=(0.6, 0.3, 0.1))) + 1
    for number in range(1, count + 1):
        labels.append(1 + int(rng.integers(len(CLASSES))))
        _draw(canvas, owner, number, LOOKS[CLASSES[labels[-1] - 1]], axis, rng)
    image = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)
    areas = np.bincount(owner.ravel(), minlength=count + 1)[1:]
    return image, labels[1 + int(areas.argmax())] - 1, np.array(labels, dtype=np.uint8)[owner]


def _draw(
    canvas: Array, owner: NDArray[np.int64], number: int, look: Look, axis: Array, rng: np.random.Generator
) -> None:
    """Put one object with its shadow on the canvas, within the square that it can touch."""
    radius = rng.uniform(0.5, 0.8) * (1 if number == 1 else 0.6)
    centre_x, centre_y = rng.uniform(-0.95 + 0.8 * radius, 0.95 - 0.8 * radius, 2)
    turn, stretch, frequency = rng.uniform(-0.5, 0.5), rng.uniform(0.82, 1.0), rng.uniform(2.0, 2.6)
    # One object in eight borrows the texture of another class: outlines must be learned too.
    texture = LOOKS[str(rng.choice(CLASSES))].texture if rng.random() < 1 / 8 else look.texture
    hue = rng.random()
    light_tone = _rgb(hue - 0.02, rng.uniform(0.15, 0.45), rng.uniform(0.9, 1.0))
    dark_tone = _rgb(hue + 0.03, rng.uniform(0.45, 0.75), rng.uniform(0.3, 0.5))

    pixel, reach = 2 / len(axis), radius + 0.12
    columns = slice(*np.searchsorted(axis, (centre_x - reach, centre_x + reach)))
    rows = slice(*np.searchsorted(axis, (centre_y - reach, centre_y + reach)))
    dx, dy = axis[None, columns] - centre_x, axis[rows, None] - centre_y
    cosine, sine = math.cos(turn), math.sin(turn)
    shift = 0.05  # the shadow falls to the lower right
    scale_x, scale_y = 1 / radius, 1 / (radius * stretch)

    def own(sx: Array, sy: Array) -> tuple[Array, Array]:
        return (sx * cosine + sy * sine) * scale_x, (sy * cosine - sx * sine) * scale_y

    x, y = own(dx, dy)
    coverage = np.clip(0.5 - look.outline(x, y) * (radius * stretch) / pixel, 0, 1)
    shade = np.clip(0.5 - look.outline(*own(dx - shift, dy - shift)) * (radius * stretch) / 0.09, 0, 1)
    body = _blend(dark_tone, light_tone, _soft(texture(x, y, math.pi * frequency)))
    body *= (1.0 - 0.22 * (dx + dy) / radius)[..., None]  # lit from the upper left
    area = canvas[rows, columns]
    area *= (1 - 0.4 * shade)[..., None]
    area += (body - area) * coverage[..., None]
    owner[rows, columns][coverage >= 0.5] = number


class DemoSource:
    """The built-in set as a source: 6,000 training scenes, or 2,048 others, which are its `test`.

    Rendered once per process and size (about 1.3 ms a scene of 64 pixels), and kept as one tensor, which loader
    processes share instead of copying.
    """

    classes: tuple[str, ...] | None = CLASSES
    label_classes: tuple[str, ...] = ("ground", *CLASSES)

    splits: tuple[Split, ...] = ("train", "test")

    def __init__(self, split: Split, *, size: int = 64, count: int | None = None) -> None:
        # Test scenes start where no training set will ever reach.
        start, usual = (0, 6000) if split == "train" else (1 << 40, 2048)
        self._pictures, self._labels, self._maps = _render_all(start, count or usual, size)
        self._split, self._size = split, size
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        return f"demo scene {self.key(index)}"

    def key(self, index: int) -> str:
        return f"{self._split}/{index}"

    def size(self, index: int) -> tuple[int, int]:
        """(height, width)."""
        return self._size, self._size

    def length(self, index: int) -> int:
        return 3 * self._size**2

    def read(self, index: int, last: int | None = None) -> bytes:
        return bytes(self._pictures[index].flatten()[-(last or self.length(index)) :].numpy())

    def image(self, index: int) -> Tensor:
        return self._pictures[index].permute(2, 0, 1)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """(H, W): 0 = ground, 1.. = `label_classes`."""
        return self._maps[index].numpy()

    def describe(self) -> str:
        return f"{len(self):,} built-in scenes of {self._size}x{self._size} pixels, {len(CLASSES)} classes"

    @property
    def fingerprint(self) -> str:
        return f"{self.describe()} ({self._split}), version {VERSION}"


@cache
def _render_all(start: int, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    pictures = np.empty((count, size, size, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    maps = np.empty((count, size, size), dtype=np.uint8)
    for i in range(count):
        pictures[i], labels[i], maps[i] = render_scene(0, start + i, size)
    return torch.from_numpy(pictures), torch.from_numpy(labels), torch.from_numpy(maps)
