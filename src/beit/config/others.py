"""Verbs that train nothing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.config.errors import require_positive
from beit.config.run import DataConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole story on built-in images: tokenizer, pre-training, fine-tuning, segmentation, report."""

    out: str = "demo"
    """Folder for the demo's runs and its report.html."""
    seed: int = 0
    """Seed of everything random."""
    scale: float = 1.0
    """Lengthen or shorten every stage; 1 takes a few minutes on 2 CPU cores."""

    overwrite: bool = False
    """Delete the demo's runs in `out` and start afresh."""

    def __post_init__(self) -> None:
        require_positive({"--scale": self.scale})


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataConfig):
    """Look a data set over before anything is trained: counts, sizes, label maps, broken files, duplicates."""

    workers: int | Literal["auto"] = "auto"
    """Processes that read images."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one offline HTML page about one or several runs."""

    runs: tuple[str, ...]
    """Run directories; several are set side by side."""
    out: str | None = None
    """The page; by default report.html in the (first) run."""


@dataclass(frozen=True, kw_only=True)
class PresetsConfig:
    """List recipes and released models by name, with their sources."""
