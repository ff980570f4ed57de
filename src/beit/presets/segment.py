"""Recipes of `beit segment`. The architecture is that of `--init`; the figures are those of the models named."""

from beit.presets import Preset, Values

ADE20K_512: Values = {"reduce_zero_label": True, "resize": 512, "crop": 512}
ADE20K_640: Values = {"reduce_zero_label": True, "resize": 640, "crop": 640}
# After a supervised stage the weights are close: small rates, and nearly the same for all layers.
FROM_CLASSIFIER: Values = {"lr": 3e-5, "layer_decay": 0.9}
LARGE: Values = {"lr": 2e-5, "layer_decay": 0.95, "drop_path_rate": 0.2}
FEW_IMAGES: Values = {
    **{"layer_decay": 0.75, "steps": None, "warmup_steps": None, "warmup_epochs": 1.0, "save_every": "2m"}
}
# On a CPU the decoder would take most of the time: few channels, and no auxiliary head to draw logits of every pixel.
SMALL_DECODER: Values = {"channels": 64, "drop_path_rate": 0.05, "auxiliary_weight": 0.0}
TINY: Values = {
    **{**FEW_IMAGES, **SMALL_DECODER, "epochs": 16.0, "batch_size": 8, "lr_batch_size": 8, "lr": 1e-3},
    **{"evaluations": 2, "log_every": 20},
}

RECIPES = {
    "base": Preset(
        ADE20K_512,
        "ADE20K with UPerNet from a pre-trained BEiT-base, the released configuration",
        "released upernet_beit_base_12_512_slide_160k_ade20k_pt",
        "160,000 steps of 16 crops of 512 px",
        "45.7 mIoU from 300 epochs of ImageNet-1k (paper table 5)",
    ),
    "base-paper": Preset(
        {**ADE20K_512, "decoder": "pup", "lr": 1e-3},
        "ADE20K with progressive upsampling, as in the paper's tables",
        "paper table 14; decoder and auxiliary heads as in SETR-PUP, the code being unreleased",
        "160,000 steps of 16 crops of 512 px",
        "45.6 mIoU from 800 epochs of ImageNet-1k, 47.7 after intermediate fine-tuning (paper table 3)",
    ),
    "base-from-classifier": Preset(
        {**ADE20K_512, **FROM_CLASSIFIER},
        "ADE20K with UPerNet from a BEiT-base fine-tuned on ImageNet-22k",
        "released upernet_beit_base_12_512_slide_160k_ade20k_pt2ft",
        "as base",
        "not published at 512 px",
    ),
    "base-640": Preset(
        {**ADE20K_640, **FROM_CLASSIFIER},
        "the same with crops of 640 px",
        "released upernet_beit_base_12_640_slide_160k_ade20k_pt2ft",
        "160,000 steps of 16 crops of 640 px",
        "53.6 mIoU, 54.2 over several scales (paper table 7)",
    ),
    "large": Preset(
        {**ADE20K_512, **LARGE},
        "ADE20K with UPerNet from a BEiT-large fine-tuned on ImageNet-22k",
        "released upernet_beit_large_24_512_slide_160k_ade20k_pt2ft",
        "3.5 times base",
        "not published at 512 px",
    ),
    "large-640": Preset(
        {**ADE20K_640, **LARGE, "accumulate": 2, "warmup_steps": 1500},
        "the same with crops of 640 px",
        "released upernet_beit_large_24_640_slide_160k_ade20k_pt2ft: 320,000 passes, two for each step",
        "3.5 times base-640",
        "56.7 mIoU, 57.0 over several scales (paper table 7)",
    ),
    "small-data": Preset(
        {**FEW_IMAGES, "epochs": 80.0, "lr": 2e-4, "warmup_epochs": 4.0, "evaluations": 10},
        "a few hundred to a few thousand labelled images, on one GPU",
        "ours: rate and decay between those for pre-trained models and for classifiers",
        "for 500 images of 512 px and BEiT-base: 40,000 crops",
    ),
    "tiny": Preset(
        TINY,
        "a few hundred small images on a CPU, from `beit pretrain --preset tiny`",
        cost="about 12 crops of 224 px a second on one CPU core, at width 192 and depth 6",
        expected="docs/results.md has camvid",
    ),
    "camvid": Preset(
        {**TINY, "reduce_zero_label": True, "window": "whole", "epochs": 24.0, "layer_decay": 0.9},
        "CamVid's eleven classes in frames of 480x360 px, on a CPU",
        "ours, the best of the trials in docs/results.md",
        "12 minutes on one CPU core at width 192 and depth 6, 13 crops of 224 px a second",
        "34.5 mIoU, from scratch 28.6 (docs/results.md, means of two seeds)",
    ),
}
