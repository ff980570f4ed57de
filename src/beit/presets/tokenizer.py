"""Recipes of `beit tokenizer`."""

from beit.presets import Preset, Values

# Thousands of steps instead of millions: a high rate that falls all the way, and a temperature that stays soft.
SHORT: Values = {
    **{"batch_size": 32, "lr_batch_size": 32, "lr": 5e-3, "min_lr": 2.5e-4, "lr_steps": 1.0},
    **{"warmup_steps": 100, "kl_steps": 0.2, "final_temperature": 0.25, "temperature_steps": 1.0},
    **{"crop": "random_resized", "min_crop": 0.3, "clip_grad": 1.0, "ema_decay": 0.99, "save_every": "5m"},
}
# Tokens of 4 px, for a CPU.
SMALL: Values = {**SHORT, "stride": 4, "width": 32, "vocab_size": 512, "kl_weight": 1.65}

RECIPES = {
    "dalle": Preset(
        {"image_size": 256, "stride": 8},
        "OpenAI's tokenizer, the full recipe",
        "DALL-E paper, appendix A.1 to A.3",
        "3 million steps of 512 images on 64 V100",
        "reconstructions as in the DALL-E paper",
    ),
    "tiny": Preset(
        {**SMALL, "image_size": 32, "steps": 5000},
        "32 px to 8x8 tokens, for small images on a CPU",
        "ours: docs/results.md has the trials",
        "about 10 minutes on 2 CPU cores",
        "docs/results.md",
    ),
    "small": Preset(
        {**SMALL, "image_size": 56, "vocab_size": 1024, "steps": 2500},
        "56 px to 14x14 tokens, the grid of a 224 px encoder, for photographs on a CPU",
        "ours: docs/results.md has the trials",
        "about 15 minutes on 2 CPU cores",
        "docs/results.md",
    ),
    "base": Preset(
        {"epochs": 100.0, "steps": None, "lr_steps": 1.0, "kl_steps": 0.05, "temperature_steps": 0.5},
        "the same network at BEiT's 112 px, schedules as shares of the run",
        "architecture of DALL-E; schedules ours",
        "26 GMAC forward per image",
    ),
}
