"""Weights written as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Writes `path`, to be read by whoever may read other new files: safetensors' own are for their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(weights), path, metadata={"format": "pt"})
    path.chmod(mode)
