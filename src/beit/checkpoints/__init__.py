"""Models at rest, ours and other people's: the only door for weights."""

from beit.checkpoints.convert import convert
from beit.checkpoints.describe import describe
from beit.checkpoints.store import load_encoder, load_model, load_tokenizer, save_model, weights_sha256

__all__ = [
    "convert",
    "describe",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "save_model",
    "weights_sha256",
]
