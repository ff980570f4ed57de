"""Recipes by name: every one a table of what differs from the defaults, its source, its cost and what to expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from beit.config import PretrainConfig, TokenizerConfig, TrainingConfig, UserError
from beit.config_file import layered

Config = TypeVar("Config", bound=TrainingConfig)


@dataclass(frozen=True)
class Preset:
    """A recipe: `values` over the defaults of a verb's configuration, and the evidence for it."""

    values: Mapping[str, Any]
    summary: str
    source: str
    cost: str
    expected: str


# Encoders. Base and large: paper table 12. Small and tiny: the DeiT family's widths at BEiT's depth.
ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "layer_scale_init": 1e-5, "clip_grad": 1.0},
}

# The paper's own backbone (main tables): plain ViT with learned positions, ImageNet statistics.
PLAIN = {"position": "absolute", "layer_scale_init": None, "normalization": "imagenet"}

PRETRAIN: Mapping[str, Preset] = {
    "base": Preset(
        {**ENCODERS["base"]},
        "the released code's BEiT-base: shared relative position bias, LayerScale",
        "released README, IN-1k/IN-22k commands",
        "about 5 days on 16 V100 for 800 ImageNet-1k epochs",
        "83.2 top-1 on ImageNet-1k after fine-tuning (300 epochs, paper table 5)",
    ),
    "large": Preset(
        {**ENCODERS["large"]},
        "the released code's BEiT-large",
        "released README; paper table 12",
        "3.5 times base per image",
        "86.0 top-1 on ImageNet-1k from ImageNet-22k (released README)",
    ),
    "base-paper": Preset(
        {**ENCODERS["base"], **PLAIN, "block_aspect": "uniform", "mask_count": "more_than"},
        "the paper's own base model: plain ViT, absolute positions, algorithm 1 to the letter",
        "paper table 12, algorithm 1",
        "as base",
        "83.2 top-1 on ImageNet-1k (paper table 1, 800 epochs); 82.9 after 300",
    ),
    "large-paper": Preset(
        {**ENCODERS["large"], **PLAIN, "block_aspect": "uniform", "mask_count": "more_than"},
        "the paper's own large model",
        "paper table 12, algorithm 1",
        "as large",
        "85.2 top-1 on ImageNet-1k (paper table 1)",
    ),
    "base-22k": Preset(
        {**ENCODERS["base"], "epochs": 150.0, "warmup_steps": 10_000},
        "base on ImageNet-22k",
        "released README, IN-22k command",
        "14.2 million images, 150 epochs",
        "83.7 top-1 on ImageNet-1k (released README)",
    ),
    "small": Preset(
        {
            **ENCODERS["small"],
            "batch_size": 256,
            "lr_batch_size": 256,
            "lr": 1e-3,
            "warmup_epochs": 5.0,
            "epochs": 300.0,
        },
        "a quarter of base, for one GPU",
        "widths of DeiT-small; learning rate for a batch of 256",
        "about a quarter of base per image",
        "not measured",
    ),
    "tiny": Preset(
        {
            **ENCODERS["tiny"],
            "batch_size": 64,
            "lr_batch_size": 64,
            "lr": 1e-3,
            "min_lr": 1e-5,
            "warmup_epochs": 1.0,
            "epochs": 30.0,
            "drop_path_rate": 0.0,
            "min_crop": 0.2,
            "ema_decay": None,
        },
        "for a laptop CPU and a few thousand images; name --image-size and --patch-size to fit",
        "ours",
        "24 images/s at 224 px on 2 CPU cores; 52 at 32 px with 4 px patches",
        "docs/results.md",
    ),
}

# Thousands of steps instead of millions: a high rate that falls all the way, and a temperature that stays soft.
SHORT: Mapping[str, Any] = {
    "batch_size": 32,
    "lr_batch_size": 32,
    "lr": 5e-3,
    "min_lr": 2.5e-4,
    "warmup_steps": 100,
    "kl_steps": 0.2,
    "final_temperature": 0.25,
    "temperature_steps": 0.999,
    "crop": "random_resized",
    "min_crop": 0.3,
    "clip_grad": 1.0,
    "ema_decay": 0.99,
    "save_every": "5m",
}

TOKENIZER: Mapping[str, Preset] = {
    "dalle": Preset(
        {"image_size": 256, "stride": 8},
        "OpenAI's tokenizer, the full recipe",
        "DALL-E paper, appendix A.1 to A.3",
        "3 million steps of 512 images on 64 V100",
        "reconstructions as in the DALL-E paper",
    ),
    "tiny": Preset(
        {
            **SHORT,
            "image_size": 32,
            "stride": 4,
            "width": 32,
            "vocab_size": 512,
            "kl_weight": 1.65,
            "steps": 5000,
        },
        "32 px to 8x8 tokens, for small images on a CPU",
        "ours: docs/results.md has the trials",
        "about 10 minutes on 2 CPU cores",
        "docs/results.md",
    ),
    "small": Preset(
        {**SHORT, "image_size": 112, "stride": 8, "width": 64, "vocab_size": 1024, "steps": 2000},
        "112 px to 14x14 tokens, for photographs on a CPU",
        "ours: docs/results.md has the trials",
        "16 images/s on 2 CPU cores",
        "docs/results.md",
    ),
    "base": Preset(
        {"epochs": 100.0, "steps": None, "kl_steps": 0.05, "temperature_steps": 0.5},
        "the same network at BEiT's 112 px, schedules as shares of the run",
        "architecture of DALL-E; schedules ours",
        "26 GMAC forward per image",
        "not measured",
    ),
}

# Scenes of 64 px: tokens from a second view of 32 px at 4 px each, patches of 8 px, both on an 8x8 grid.
DEMO_TOKENIZER = Preset(
    {
        **SHORT,
        "image_size": 32,
        "stride": 4,
        "width": 32,
        "vocab_size": 512,
        "kl_weight": 1.65,
        "lr": 1e-2,
        "min_lr": 5e-4,
        "warmup_steps": 30,
        "ema_decay": 0.98,
        "steps": 560,
        "evaluations": 3,
        "eval_images": 256,
        "log_every": 20,
        "save_every": "1m",
    },
    "the tokenizer of beit demo",
    "ours",
    "75 s on 2 CPU cores",
    "coloured blobs",
)
DEMO_PRETRAIN = Preset(
    {
        "image_size": 64,
        "patch_size": 8,
        "width": 128,
        "depth": 4,
        "num_heads": 4,
        "drop_path_rate": 0.0,
        "batch_size": 64,
        "lr_batch_size": 64,
        "lr": 1.5e-3,
        "warmup_steps": 40,
        "min_crop": 0.3,
        "steps": 400,
        "epochs": None,
        "evaluations": 3,
        "eval_images": 256,
        "log_every": 20,
        "save_every": "1m",
    },
    "the encoder of beit demo",
    "ours",
    "100 s on 2 CPU cores",
    "docs/results.md",
)

TABLES: Mapping[type[TrainingConfig], Mapping[str, Preset]] = {
    TokenizerConfig: {**TOKENIZER, "demo": DEMO_TOKENIZER},
    PretrainConfig: {**PRETRAIN, "demo": DEMO_PRETRAIN},
}


def find(config_type: type[TrainingConfig], name: str) -> Preset:
    """The preset `name` of the verb that `config_type` belongs to; UserError lists the names otherwise."""
    table = TABLES[config_type]
    if name not in table:
        raise UserError(f"--preset {name} does not exist; choose one of {', '.join(table)}")
    return table[name]


def configure(config_type: type[Config], preset: str, **values: Any) -> Config:
    """A configuration from a preset with `values` over it: ``configure(PretrainConfig, "tiny", data=…, out=…)``."""
    return config_type(**layered(config_type, [find(config_type, preset).values, values]))
