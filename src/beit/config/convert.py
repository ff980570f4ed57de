"""`beit convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write a model in the format of another library: SOURCE DESTINATION --to FORMAT."""

    source: str
    """A run, a model/ folder, weights of another library (file, folder, hf://owner/name), told by their contents, or
    a released model by name (`beit presets`). PATH@num_heads=6,grid=24x16 says what a file cannot tell."""
    destination: str
    """The file (unilm) or folder (all others) to write; it must not exist."""
    to: Literal["beit", "unilm", "timm", "huggingface", "dalle"]
    """The format to write."""
    push: str | None = None
    """owner/name on the Hugging Face Hub to upload the written folder to; a new repository is private."""
