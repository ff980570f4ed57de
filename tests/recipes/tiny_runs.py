"""Configurations of the smallest runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import TokenizerConfig

SHORT: dict[str, Any] = {
    "preset": None,
    "batch_size": 8,
    "lr_batch_size": 8,
    "workers": 0,
    "precision": "float32",
    "log_every": 2,
    "evaluations": 2,
    "eval_images": 8,
    "holdout": 0.2,
}


def tokenizer_config(images: Path, out: Path, **values: Any) -> TokenizerConfig:
    """Four steps of a tokenizer of 16 codes: 16 px to 4x4 tokens."""
    small = {"image_size": 16, "stride": 4, "width": 8, "vocab_size": 16, "blocks_per_group": 1}
    schedule = {"steps": 4, "kl_steps": 0.5, "temperature_steps": 0.5}
    return TokenizerConfig(data=str(images), out=str(out), **{**small, **schedule, **SHORT, **values})


def pretrain_config(images: Path, out: Path, **values: Any) -> PretrainConfig:
    """Four steps of an encoder of two blocks on a 4x4 grid."""
    small = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
    return PretrainConfig(data=str(images), out=str(out), **{**small, "steps": 4, "epochs": None, **SHORT, **values})


def going_on(images: Path, out: Path, init: Path | str, **values: Any) -> PretrainConfig:
    """Two steps of the network of `init`, none of whose knobs is given."""
    length = {"steps": 2, "epochs": None, **SHORT}
    return PretrainConfig(**{"data": str(images), "out": str(out), "init": str(init), **length, **values})


def finetune_config(data: Path, out: Path, **values: Any) -> FinetuneConfig:
    """Four steps of a classifier; from scratch the encoder of :func:`pretrain_config`."""
    small = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
    schedule = {"steps": 4, "epochs": None, "warmup_epochs": 0.0, "min_crop": 0.5}
    start = {} if values.get("init") else small
    return FinetuneConfig(data=str(data), out=str(out), **{**start, **schedule, **SHORT, **values})


def segment_config(data: Path | str, out: Path, **values: Any) -> SegmentConfig:
    """Four steps of a segmenter; from scratch the encoder of :func:`pretrain_config`."""
    small = {"crop": 32, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2}
    decoder = {"layers": (0, 0, 1, 1), "channels": 8} if values.get("decoder") != "pup" else {"channels": 8}
    schedule = {"steps": 4, "warmup_steps": 0, "scale": (0.8, 1.2), "eval_images": 100}
    start = {} if values.get("init") else small
    return SegmentConfig(data=str(data), out=str(out), **{**start, **decoder, **SHORT, **schedule, **values})


def probe_config(images: Path | str, out: Path, init: Path, **values: Any) -> ProbeConfig:
    """Sixty steps of probes on features that are kept, and all held-back images to judge them."""
    kept = {"augment": False, "standardize": True, "crop_pct": 1.0, "lr": 0.05, "knn": 5}
    whole = {**SHORT, "batch_size": 16, "lr_batch_size": 16, "eval_images": 1000, "log_every": 20}
    return ProbeConfig(
        data=str(images),
        out=str(out),
        init=str(init),
        **{**kept, "steps": 60, "epochs": None, **whole, **values},
    )
