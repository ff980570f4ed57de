"""Models at rest, ours and other people's: the only door for weights."""

from typing import TYPE_CHECKING, Any

from beit.checkpoints.store import describe, load_encoder, load_model, load_tokenizer, save_model, weights_sha256

if TYPE_CHECKING:
    from beit.checkpoints.conversion import convert

__all__ = ["convert", "describe", "load_encoder", "load_model", "load_tokenizer", "save_model", "weights_sha256"]


def __getattr__(name: str) -> Any:
    """`convert` on first use, for it knows the formats of all other libraries."""
    if name != "convert":
        raise AttributeError(f"module 'beit.checkpoints' has no attribute {name!r}")
    from beit.checkpoints.conversion import convert

    return convert
