"""`beit convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write a model in the format of another library: SOURCE DESTINATION --to FORMAT."""

    source: str
    """A run, a model/ folder, hf://owner/name, or a file or folder of another library, told by its contents."""
    destination: str
    """The file (unilm) or folder (all others) to write; it must not exist."""
    to: Literal["beit", "unilm", "timm", "huggingface", "dalle"]
    """The format to write."""
    num_heads: int | None = None
    """Attention heads, where the source cannot tell; one for every 64 dimensions by default."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches (or tokens), where the source cannot tell; a square by default."""
    pixel_mean: tuple[float, float, float] | None = None
    """Mean that images were normalised with, where the source cannot tell; 0.5 by default."""
    pixel_std: tuple[float, float, float] | None = None
    """Standard deviation of the same; 0.5 by default."""
    layers: tuple[int, int, int, int] | None = None
    """Blocks, 0 the first, that a segmenter's decoder reads, where the source cannot tell or tells them wrong."""
    strict: bool = True
    """Refuse unknown and missing weights; otherwise leave them out and draw them anew."""
    push: str | None = None
    """owner/name on the Hugging Face Hub to upload the written folder to; a new repository is private."""
