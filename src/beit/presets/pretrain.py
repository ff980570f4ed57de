"""Recipes of `beit pretrain`."""

from beit.presets import ENCODERS, PLAIN, Preset, for_large

BASE = Preset(
    {**ENCODERS["base"], "normalization": "imagenet"},
    "the released code's BEiT-base: shared relative position bias, LayerScale",
    "released README, IN-1k command",
    "about 5 days on 16 V100 for 800 ImageNet-1k epochs",
    "83.2 top-1 on ImageNet-1k after fine-tuning, at 300 epochs (paper table 5)",
)

BASE_PAPER = Preset(
    {**ENCODERS["base"], **PLAIN, "block_aspect": "uniform", "mask_count": "more_than"},
    "the paper's own base model: plain ViT, absolute positions, algorithm 1 to the letter",
    "paper table 12, algorithm 1",
    "as base",
    "83.2 top-1 on ImageNet-1k (paper table 1, 800 epochs); 82.9 after 300",
)

RECIPES = {
    "base": BASE,
    "large": for_large(BASE, ENCODERS["large"], "85.2 top-1 on ImageNet-1k for the plain network (paper table 1)"),
    "base-paper": BASE_PAPER,
    "large-paper": for_large(
        BASE_PAPER, {**ENCODERS["large"], "layer_scale_init": None}, "85.2 top-1 on ImageNet-1k (paper table 1)"
    ),
    "base-22k": Preset(
        {**ENCODERS["base"], "normalization": "half", "epochs": 150.0, "warmup_steps": 10_000},
        "base on ImageNet-22k",
        "released README, IN-22k command",
        "14.2 million images, 150 epochs",
        "83.7 top-1 on ImageNet-1k (released README)",
    ),
    "small": Preset(
        {**ENCODERS["small"], "batch_size": 256, "lr_batch_size": 256, "lr": 1e-3}
        | {"warmup_epochs": 5.0, "epochs": 300.0},
        "a quarter of base, for one GPU",
        "widths of DeiT-small; learning rate for a batch of 256",
        "about a quarter of base per image",
    ),
    "tiny": Preset(
        {
            **ENCODERS["tiny"],
            "image_size": 32,
            "patch_size": 4,
            "batch_size": 64,
            "lr_batch_size": 64,
            "lr": 1e-3,
            "min_lr": 1e-5,
        }
        | {"warmup_epochs": 1.0, "epochs": 30.0, "drop_path_rate": 0.0, "min_crop": 0.2, "ema_decay": None},
        "for a laptop CPU and a few thousand images, on the 8x8 tokens of `beit tokenizer --preset tiny`",
        cost="at depth 6 on 2 CPU cores: 59 images/s at 224 px, 213 at 32 px with 4 px patches (docs/results.md)",
        expected="docs/results.md",
    ),
}
