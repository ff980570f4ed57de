"""What the colours in label maps mean: numbers, by a table of classes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.config.errors import require
from beit.config.values import counted
from beit.data.label_maps.table import read_class_rows

_PLACES = np.array([1 << 16, 1 << 8, 1])


class ColorKey:
    """The colours of the class table at `path`, if there is one, and those of the palettes that were met so far."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        colors = {} if path is None else {number: color for number, _, color in read_class_rows(path) if color}
        shared = Counter(colors.values())
        self._numbers = {color: number for number, color in colors.items() if shared[color] == 1}
        self._palette: dict[int, tuple[Sequence[int], str]] = {}

    def numbers(self, pixels: NDArray[np.uint8], name: str) -> NDArray[np.integer[Any]]:
        """(H, W, 3 or 4) -> (H, W): the number of each colour, exactly. UserError for a colour that has none."""
        mend = "write the number of its class for each pixel, as a gray or palette PNG"
        table = "name the colours in a table of classes (classes.tsv: value, name, r, g, b)"
        require(bool(self._numbers), f"{name} is a colour picture and no label map; {mend}, or {table}")
        seen = f"{name} has transparent pixels, which have no class; write it without transparency"
        require(pixels.shape[2] == 3 or bool((pixels[..., 3] == 255).all()), seen)
        number_of = {int(np.array(color) @ _PLACES): number for color, number in self._numbers.items()}
        order = np.array(sorted(number_of))
        codes = pixels[..., :3] @ _PLACES
        places = np.searchsorted(order, codes).clip(max=len(order) - 1)
        unknown = codes[order[places] != codes]
        require(not len(unknown), f"{name} holds {self._in_words(unknown)}")
        numbers = np.array([number_of[code] for code in order.tolist()])
        labels: NDArray[np.integer[Any]] = numbers[places]
        return labels

    def _in_words(self, unknown: NDArray[Any]) -> str:
        counts = Counter(unknown.tolist())
        most = ((code >> 16, code >> 8 & 255, code & 255) for code, _ in counts.most_common(3))
        more = f" and {len(counts) - 3:,} more" if len(counts) > 3 else ""
        smooth = " (resize maps without smoothing, and write no JPEG)" if len(counts) > len(self._numbers) else ""
        where = f"{more} in {counted(len(unknown), 'pixel')}"
        return (
            f"the colours {', '.join(map(str, most))}{where}, which {self._path} gives to "
            f"no class, or to two; name them in the table, or correct the map{smooth}"
        )

    def require_same_palette(self, indices: Iterable[int], palette: Sequence[int], name: str) -> None:
        """UserError where one of the `indices` in the map `name` has another colour than in the table or in an
        earlier map, and so may mean something else. A palette of grays says nothing of them."""
        entries = [*zip(palette[::3], palette[1::3], palette[2::3], strict=False)]
        colors = {index: entries[index] for index in indices if index < len(entries)}
        if all(set(color) == {index} for index, color in colors.items()):
            return
        for index, color in colors.items():
            number = self._numbers.get(color, index)
            earlier, file = self._palette.setdefault(index, (color, name))
            other = f"{self._path} gives to {number}" if number != index else f"is {earlier} in {file}"
            mend = "write the maps in gray if their numbers mean the same, else in RGB, which a table of classes"
            has = f"{name} has the colour {color} for the number {index}, which {other}"
            require(number == index and color == earlier, f"{has}; {mend} tells apart")
