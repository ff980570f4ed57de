"""Models at rest, ours and other people's: the only door for weights. Names are resolved on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit.checkpoints.conversion import convert
    from beit.checkpoints.own import save_model, weights_sha256
    from beit.checkpoints.store import describe, load_encoder, load_model, load_tokenizer

__all__ = [
    "convert",
    "describe",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "save_model",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'beit.checkpoints' has no attribute {name!r}")
    home = "conversion" if name == "convert" else "store"
    return getattr(importlib.import_module(f"beit.checkpoints.{home}"), name)
