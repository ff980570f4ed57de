"""Two-way tables between our names of weights and those of another library.

In a name, {} stands for a number (a block, a layer) and a last * for all that a linear layer or a norm has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from beit.config.errors import UserError
from beit.untrusted import listed

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")


class KeyMap:
    """Rows of (our name, theirs). Where they keep one of our tensors in several, `theirs` is a tuple: its parts
    along dimension 0. `ignored`: names of theirs that carry no weights."""

    def __init__(
        self, rows: Iterable[tuple[str, str | tuple[str, ...]]], ignored: Sequence[str] = ()
    ) -> None:
        self._theirs: dict[str, tuple[str, ...]] = {}
        self._ours: dict[str, tuple[str, int]] = {}
        self._ignored = {*ignored}
        for ours, names in rows:
            parts = (names,) if isinstance(names, str) else names
            for leaf in LEAVES if ours.endswith("*") else ("",):
                own = ours.replace("*", leaf)
                self._theirs[own] = tuple(part.replace("*", leaf) for part in parts)
                self._ours |= {part: (own, place) for place, part in enumerate(self._theirs[own])}

    def theirs(self, ours: str) -> tuple[str, ...] | None:
        """Their name or names of our tensor, or None where they have no place for it."""
        template, numbers = _template(ours)
        parts = self._theirs.get(template)
        return None if parts is None else tuple(part.format(*numbers) for part in parts)

    def ours(self, keys: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Their keys -> our names with the keys that make each up, in order; and the keys that are unknown."""
        names: dict[str, dict[int, str]] = {}
        unknown = []
        for key in keys:
            template, numbers = _template(key)
            if "{" in key:  # which stands for a number in templates alone
                unknown.append(key)
            elif template in self._ours:
                own, place = self._ours[template]
                names.setdefault(own.format(*numbers), {})[place] = key
            elif template not in self._ignored:
                unknown.append(key)
        whole = {}
        for name, parts in names.items():
            if len(parts) == len(self._theirs[_template(name)[0]]):
                whole[name] = tuple(parts[place] for place in sorted(parts))
            else:
                unknown += parts.values()
        return whole, unknown

    def write(self, weights: Mapping[str, Tensor], format_name: str) -> dict[str, Tensor]:
        """Our weights under their names. Raises :class:`UserError` naming what the format has no place for."""
        written: dict[str, Tensor] = {}
        homeless = []
        for name, tensor in weights.items():
            parts = self.theirs(name)
            if parts is None:
                homeless.append(name)
            else:
                pieces = tensor.chunk(len(parts)) if len(parts) > 1 else (tensor,)
                written |= dict(zip(parts, pieces, strict=True))
        if homeless:
            raise UserError(f"{format_name} has no place for {listed(homeless)}")
        # Parts of one tensor share its memory, which safetensors does not write.
        return {key: in_float32(tensor.detach()).clone().contiguous() for key, tensor in written.items()}


def in_float32(tensor: Tensor) -> Tensor:
    """Numbers with a point in float32; counts as they are."""
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _template(key: str) -> tuple[str, list[str]]:
    return _NUMBER.sub("{}", key), _NUMBER.findall(key)
