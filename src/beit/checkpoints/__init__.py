"""Models at rest, ours and other people's: the only door for weights."""

from beit.checkpoints.store import load_encoder, load_model, load_tokenizer, save_model, weights_sha256

__all__ = ["load_encoder", "load_model", "load_tokenizer", "save_model", "weights_sha256"]
