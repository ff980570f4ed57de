"""Presets named after published recipes hold the published figures, written down here a second time."""

from __future__ import annotations

from typing import Any

import pytest

from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.run import TrainingConfig
from beit.config.segment import SegmentConfig
from beit.presets import configure, recipes_of
from beit.presets.trials import prospect
from beit.recipes.finetune import require_pairs

# ------------------------------------------------------------------------------------------------------------
# `beit finetune`

GRID = {"lr": 4e-3}  # the paper picks it from 2e-3, 3e-3, 4e-3 and 5e-3
UNMIXED = {"mixup": 0, "cutmix": 0}
BASE = {
    **{"batch_size": 1024, "epochs": 100, "warmup_epochs": 20, "layer_decay": 0.65, "drop_path_rate": 0.1},
    **{"mixup": 0.8, "cutmix": 1.0},
}
LARGE = {**BASE, "epochs": 50, "warmup_epochs": 5, "layer_decay": 0.75}
BASE_22K = {**BASE, "epochs": 90, "warmup_epochs": 5, "drop_path_rate": 0.2, **UNMIXED}
TO_1K = {"batch_size": 512, "lr": 2e-5, "epochs": 30, "warmup_epochs": 5, "weight_decay": 1e-8, **UNMIXED}
TO_1K_BASE = {**TO_1K, "layer_decay": 0.85, "drop_path_rate": 0.1}
TO_1K_LARGE = {**TO_1K, "layer_decay": 0.9, "drop_path_rate": 0.4}
LARGER = {"image_size": 384, "epochs": 10, "warmup_epochs": 1}
FINETUNE: dict[str, dict[str, Any]] = {
    # The released commands (README and get_started_for_image_classification.md); what they leave out is off there.
    "base": {**BASE, "lr": 4e-3},
    "large": {**LARGE, "lr": 1e-3, "drop_path_rate": 0.2},
    "base-22k": {**BASE_22K, "batch_size": 4096, "lr": 3e-3, "clip_grad": 3.0},
    "large-22k": {**BASE_22K, "batch_size": 2048, "lr": 2e-3, "layer_decay": 0.75, "clip_grad": 1.0},
    "base-22k-to-1k": TO_1K_BASE,
    "large-22k-to-1k": TO_1K_LARGE,
    # Table 13 of the paper, whose base models alone see repeated views, as DeiT's three.
    "base-paper": {**BASE, **GRID, "repeats": 3},
    "large-paper": {**LARGE, **GRID},
    "cifar100": {**BASE, **GRID, "batch_size": 512, "epochs": 150, "weight_decay": 0.3}
    | {"erasing": 0, "repeats": 3, "image_size": 224},
    # Section 3.1: ten more epochs, at the rates of the released step from 22k to 1k.
    "base-384": {**TO_1K_BASE, **LARGER},
    "large-384": {**TO_1K_LARGE, **LARGER},
}
FINETUNE_ALL = {
    **{"weight_decay": 0.05, "clip_grad": None, "erasing": 0.25, "repeats": 1, "image_size": None},
    **{"label_smoothing": 0.1, "randaugment": 9, "randaugment_std": 0.5, "min_lr": 1e-6, "dropout": 0},
    **{"cutmix_share": 0.5, "color_jitter": 0, "flip": 0.5, "min_crop": 0.08, "crop_pct": None, "pool": None},
    **{"beta1": 0.9, "beta2": 0.999, "ema_decay": None},
}
"""What these recipes share, where they do not say otherwise."""

# ------------------------------------------------------------------------------------------------------------
# `beit segment`: the released configurations on ADE20K, and table 14 of the paper

FROM_22K = {"lr": 3e-5, "layer_decay": 0.9}
LARGE_22K = {"lr": 2e-5, "layer_decay": 0.95, "drop_path_rate": 0.2}
AT_640 = {"crop": 640, "resize": 640}
SEGMENT: dict[str, dict[str, Any]] = {
    "base": {"lr": 7e-4, "layer_decay": 0.65},
    "base-paper": {"lr": 1e-3, "layer_decay": 0.65, "decoder": "pup"},
    "base-from-classifier": FROM_22K,
    "base-640": {**FROM_22K, **AT_640},
    "large": LARGE_22K,
    # 320,000 passes of half a batch, two to a step, of which 3,000 warm up.
    "large-640": {**LARGE_22K, **AT_640, "accumulate": 2},
}
SEGMENT_ALL = {
    **{
        "steps": 160_000,
        "warmup_steps": 1500,
        "batch_size": 16,
        "weight_decay": 0.05,
        "min_lr": 0,
        "power": 1,
    },
    **{
        "crop": 512,
        "resize": 512,
        "scale": (0.5, 2.0),
        "category_share": 0.75,
        "flip": 0.5,
        "photometric": True,
    },
    **{"decoder": "upernet", "auxiliary_weight": 0.4, "drop_path_rate": 0.1, "dropout": 0, "clip_grad": None},
    **{"reduce_zero_label": True, "accumulate": 1, "window": "slide", "beta1": 0.9, "beta2": 0.999},
}

# ------------------------------------------------------------------------------------------------------------
# `beit probe`: paper appendix D, and run_linear_eval.py of the released code

PROBE: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 50, "lr": 4e-3, "batch_size": 1024, "lr_batch_size": 1024, "pool": "mean"},
    "released": {"epochs": 100, "lr": 1e-3, "lr_batch_size": 256, "pool": "cls_mean", "crop_pct": 0.875},
}
PROBE_ALL = {
    **{"weight_decay": 1e-4, "warmup_epochs": 0, "min_lr": 0, "clip_grad": None, "standardize": False},
    **{"augment": True, "min_crop": 0.08, "flip": 0.5},
}

# ------------------------------------------------------------------------------------------------------------
# `beit pretrain`: table 12 of the paper, and the released commands

PLAIN = {
    "position": "absolute",
    "layer_scale_init": None,
    "mask_count": "more_than",
    "block_aspect": "uniform",
}
B16 = {"width": 768, "depth": 12, "num_heads": 12, "clip_grad": 3.0}
L16 = {"width": 1024, "depth": 24, "num_heads": 16, "clip_grad": 1.0}
PRETRAIN: dict[str, dict[str, Any]] = {
    "base": {**B16, "normalization": "imagenet"},
    "large": {**L16, "normalization": "imagenet", "layer_scale_init": 1e-5},
    "base-paper": {**B16, **PLAIN},
    "large-paper": {**L16, **PLAIN},
    "base-22k": {
        **B16,
        "epochs": 150,
        "warmup_epochs": None,
        "warmup_steps": 10_000,
        "normalization": "half",
    },
}
PRETRAIN_ALL = {
    **{
        "epochs": 800,
        "warmup_epochs": 10,
        "batch_size": 2048,
        "lr": 1.5e-3,
        "min_lr": 1e-5,
        "weight_decay": 0.05,
    },
    **{
        "image_size": 224,
        "patch_size": 16,
        "mlp_ratio": 4,
        "drop_path_rate": 0.1,
        "dropout": 0,
        "ema_decay": None,
    },
    **{
        "position": "shared_bias",
        "layer_scale_init": 0.1,
        "masking": "block",
        "num_masked": None,
        "min_block": None,
    },
    **{"color_jitter": 0.4, "flip": 0.5, "min_crop": 0.08, "beta1": 0.9, "beta2": 0.999, "predict": "masked"},
}

TABLES = [
    (FinetuneConfig, FINETUNE, FINETUNE_ALL, {"init": "i"}),
    (SegmentConfig, SEGMENT, SEGMENT_ALL, {"init": "i"}),
    (ProbeConfig, PROBE, PROBE_ALL, {"init": "i"}),
    (PretrainConfig, PRETRAIN, PRETRAIN_ALL, {"tokenizer": "t"}),
]


@pytest.mark.parametrize(
    ("config_type", "name", "expected", "start"),
    [
        pytest.param(config_type, name, of_all | own, start, id=f"{config_type.__name__}-{name}")
        for config_type, table, of_all, start in TABLES
        for name, own in table.items()
    ],
)
def test_a_preset_is_what_was_published(
    config_type: type[TrainingConfig], name: str, expected: dict[str, Any], start: dict[str, str]
) -> None:
    config = configure(config_type, name, data="x", out="y", **start)
    assert {field: getattr(config, field) for field in expected} == expected
    # Its rate is meant for its batch, but for the released probe, whose 256 images are those of one GPU.
    factor = 4 if (config_type, name) == (ProbeConfig, "released") else 1
    assert config.scaled(config.lr) == pytest.approx(factor * config.lr)
    if isinstance(config, FinetuneConfig):
        for devices in (1, 8):
            require_pairs(config, devices)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_recipe_of_the_large_model_is_said_to_be_one(verb: str) -> None:
    for name, preset in recipes_of(verb).items():
        assert not name.startswith("large") or "base" not in preset.summary
        assert not name.startswith("base") or "large" not in preset.summary.replace("larger", "")


def test_what_to_expect_is_what_was_measured_and_nothing_else() -> None:
    assert prospect("classifier", 1_422, 201, 224, 60).startswith("58.2 to 61.4 % right answers")
    assert prospect("segmenter", 1_000, 400, 480, 60).startswith("34.5 to 34.6 % mean IoU")
    assert prospect("classifier", 47_500, 4_750, 32, 20).startswith("53.3 to 54.3 %")
    for task, images in (("classifier", 300), ("segmenter", 100_000), (None, 1_422)):
        assert prospect(task, images, 201, 224, 60).startswith("not known")
