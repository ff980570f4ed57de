"""Verbs that use a trained model: evaluate, predict, info."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.config.errors import require, require_not_negative, require_positive
from beit.config.run import DataConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataConfig):
    """Judge a model on images: accuracy, mIoU, reconstruction error, or masked-token loss, as its kind asks."""

    model: str
    """A run or model, ours or not (as SOURCE of `beit convert`); brings classes, image size and normalisation."""
    split: Literal["eval", "train", "all"] = "eval"
    """Which images: those held back from training, those trained on, or both."""
    labels: str | None = None
    """For a classifier: a file of labels as in `beit finetune`; null for one folder per class."""
    tokenizer: str | None = None
    """For a pre-trained model: the tokenizer whose tokens it predicts; null for the one its run names."""
    window: Literal["slide", "whole"] | None = None
    """For a segmenter: overlapping windows, or one pass over each image; null for what it was trained with."""
    multi_scale: bool = False
    """For a segmenter: average over six sizes of each image, from 0.5 to 1.75, and their mirror images."""
    baseline_images: int = 2048
    """For a pre-trained model: training images that the baselines count tokens on, at most."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | Literal["auto"] = "auto"
    """Processes that load images."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bf16 where this machine is fast at it, else float32."""
    seed: int = 0
    """Seed of the masks, and of the choice that `limit` makes."""
    out: str | None = None
    """A .json file for all figures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive({"--batch-size": self.batch_size, "--baseline-images": self.baseline_images})
        require_not_negative(
            {"--workers": None if self.workers == "auto" else self.workers, "--seed": self.seed}
        )
        require(self.out is None or self.out.endswith(".json"), f"--out {self.out} must end in .json")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What a model makes of images: labels, label maps, tokens, or features, as its kind asks."""

    images: tuple[str, ...]
    """Image files, folders of images at any depth, and tar shards (`shards-{000..099}.tar`)."""
    model: str
    """A run or model, ours or not (as SOURCE of `beit convert`); brings labels, image size and normalisation."""
    out: str | None = None
    """File for the results: .csv or .jsonl for labels, .jsonl or .npz for tokens, .npz for features; for label maps
    a folder, which gets `maps/`, `overlays/` and classes.tsv."""
    overlays: bool = True
    """For a segmenter: also write every image under the colours of its classes."""
    window: Literal["slide", "whole"] | None = None
    """For a segmenter: see images in overlapping windows, or in one pass; null as in training."""
    top_k: int = 5
    """Labels of each image, the likeliest first."""
    layer: int | None = None
    """Block whose features are written (0 the first, -1 the last); null for the last."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | Literal["auto"] = "auto"
    """Processes that load images."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bf16 where this machine is fast at it, else float32."""
    max_megapixels: float = 64.0
    """Refuse images larger than this many million pixels."""

    def __post_init__(self) -> None:
        require(bool(self.images), "--images names nothing; give image files or folders")
        require_positive(
            {
                "--top-k": self.top_k,
                "--batch-size": self.batch_size,
                "--max-megapixels": self.max_megapixels,
            }
        )
        require_not_negative({"--workers": None if self.workers == "auto" else self.workers})


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Say what a run or a model is, and where a run stands."""

    path: str
    """A run or model, ours or not (as SOURCE of `beit convert`)."""
