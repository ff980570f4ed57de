"""Two-way tables between our names of weights and those of another library.

In a name, {} stands for a number (a block, a layer) and a last * for all that a linear layer or a norm has.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from beit.checkpoints.own import WEIGHTS, write_weights
from beit.config.errors import UserError
from beit.untrusted import Facts, listed

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")


class KeyMap:
    """Rows of (our name, theirs). Where they keep one of our tensors in several, `theirs` is a tuple: its parts
    along dimension 0. `ignored`: names of theirs that carry no weights."""

    def __init__(self, rows: Iterable[tuple[str, str | tuple[str, ...]]], ignored: Sequence[str] = ()) -> None:
        self._theirs: dict[str, tuple[str, ...]] = {}
        self._ours: dict[str, str] = {}
        self._ignored = {*ignored}
        for ours, names in rows:
            parts = (names,) if isinstance(names, str) else names
            for leaf in LEAVES if ours.endswith("*") else ("",):
                own = ours.replace("*", leaf)
                self._theirs[own] = tuple(part.replace("*", leaf) for part in parts)
                self._ours |= dict.fromkeys(self._theirs[own], own)

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Their name or names of our tensor; none where they have no place for it."""
        template, numbers = _template(ours)
        return tuple(part.format(*numbers) for part in self._theirs.get(template, ()))

    def ours(self, keys: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Their keys -> our names with the keys that make each up, in order; and the keys that are unknown."""
        names: dict[str, list[str]] = {}
        unknown = []
        for key in keys:
            template, numbers = _template(key)
            if "{" in key:  # which stands for a number in templates alone
                unknown.append(key)
            elif template in self._ours:
                names.setdefault(self._ours[template].format(*numbers), []).append(key)
            elif template not in self._ignored:
                unknown.append(key)
        partial = {name for name, parts in names.items() if {*parts} != {*self.theirs(name)}}
        unknown += [key for name in partial for key in names[name]]
        return {name: self.theirs(name) for name in names if name not in partial}, unknown

    def write(self, weights: Mapping[str, Tensor], format_name: str) -> dict[str, Tensor]:
        """Our weights under their names. Raises :class:`UserError` naming what the format has no place for."""
        if homeless := [name for name in weights if not self.theirs(name)]:
            raise UserError(f"{format_name} has no place for {listed(homeless)}")
        written: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            parts = self.theirs(name)
            pieces = tensor.chunk(len(parts)) if len(parts) > 1 else (tensor,)
            # Parts of one tensor share its memory, which safetensors does not write.
            pairs = zip(parts, pieces, strict=True)
            written |= {key: in_float32(x.detach()).clone().contiguous() for key, x in pairs}
        return written


def write_folder(folder: Path, weights: Mapping[str, Tensor], files: Mapping[str, Facts]) -> None:
    """Makes the folder, with model.safetensors and NAME.json of `files`, as other libraries have them."""
    folder.mkdir()
    write_weights(weights, folder / WEIGHTS)
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def in_float32(tensor: Tensor) -> Tensor:
    """Numbers with a point in float32; counts as they are."""
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _template(key: str) -> tuple[str, list[str]]:
    return _NUMBER.sub("{}", key), _NUMBER.findall(key)
