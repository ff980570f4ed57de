"""Recipes of `beit finetune`. The architecture is that of `--init`; the figures are those of the models named."""

from beit.presets import Preset, Values, for_large

# Rates for a batch of `size`, to be scaled with the batch that is used.
BATCH_64: Values = {"batch_size": 64, "lr_batch_size": 64}
BATCH_512: Values = {"batch_size": 512, "lr_batch_size": 512}
UNMIXED: Values = {"mixup": 0.0, "cutmix": 0.0}
# The released commands for ImageNet-22k name neither mixup nor cutmix, and their script has none by itself.
INTERMEDIATE: Values = {**UNMIXED, "epochs": 90.0, "warmup_epochs": 5.0, "drop_path_rate": 0.2}
THIRTY_EPOCHS: Values = {"epochs": 30.0, "warmup_epochs": 5.0}
# After a supervised stage the weights are close: small rates, hardly any decay of weights, no mixing.
FROM_22K: Values = {**BATCH_512, **UNMIXED, "lr": 2e-5, "weight_decay": 1e-8, **THIRTY_EPOCHS}
TEN_EPOCHS_AT_384: Values = {"image_size": 384, "epochs": 10.0, "warmup_epochs": 1.0}
LARGE: Values = {"epochs": 50.0, "warmup_epochs": 5.0, "layer_decay": 0.75}

BASE = Preset(
    {},
    "ImageNet-1k from a pre-trained BEiT-base, the released command",
    "released README",
    "100 epochs of ImageNet-1k at 3 x 17.6 GMAC for each image",
    "83.7 top-1 from ImageNet-22k pre-training (released README)",
)
BASE_384 = Preset(
    {**FROM_22K, **TEN_EPOCHS_AT_384, "layer_decay": 0.85},
    "ten more epochs at 384 px, from a classifier of 224 px with the same classes",
    "paper section 3.1; rates of the released 22k-to-1k command, because the paper gives none",
    "10 epochs of ImageNet-1k at three times the work of 224 px",
    "84.6 top-1 from 83.2 (paper table 1)",
)
BASE_22K = Preset(
    {**INTERMEDIATE, "batch_size": 4096, "lr_batch_size": 4096, "lr": 3e-3, "clip_grad": 3.0},
    "intermediate fine-tuning on the 21,841 classes of ImageNet-22k",
    "released README",
    "90 epochs of 14.2 million images",
    "85.2 top-1 on ImageNet-1k after base-22k-to-1k (released README)",
)
BASE_22K_TO_1K = Preset(
    {**FROM_22K, "layer_decay": 0.85},
    "ImageNet-1k from an ImageNet-22k classifier; --image-size 384 for the larger size",
    "released README, ft22k commands",
    "30 epochs of ImageNet-1k",
    "85.2 top-1 at 224 px, 86.8 at 384 px (released README)",
)

RECIPES = {
    "base": BASE,
    "large": for_large(
        BASE,
        {**LARGE, "lr": 1e-3, "drop_path_rate": 0.2},
        "86.0 top-1 from ImageNet-22k pre-training (released README)",
    ),
    "base-paper": Preset(
        {"repeats": 3},
        "ImageNet-1k as in the paper, with repeated augmentation; it picks --lr from 2e-3, 3e-3, 4e-3 and 5e-3",
        "paper table 13; three repeats as in DeiT",
        "as base, four times for the choice of rate",
        "83.2 top-1 (paper table 1, 800 epochs of pre-training); 82.9 after 300",
    ),
    "large-paper": Preset(
        LARGE,
        "ImageNet-1k as in the paper, the large model; it picks --lr from 2e-3, 3e-3, 4e-3 and 5e-3",
        "paper table 13",
        "as large, four times for the choice of rate",
        "85.2 top-1 (paper table 1)",
    ),
    "base-384": BASE_384,
    "large-384": for_large(
        BASE_384, {"layer_decay": 0.9, "drop_path_rate": 0.4}, "86.3 top-1 from 85.2 (paper table 1)"
    ),
    "base-22k": BASE_22K,
    "large-22k": for_large(
        BASE_22K,
        {"batch_size": 2048, "lr_batch_size": 2048, "lr": 2e-3, "clip_grad": 1.0, "layer_decay": 0.75},
        "87.4 top-1 on ImageNet-1k after large-22k-to-1k (released README)",
    ),
    "base-22k-to-1k": BASE_22K_TO_1K,
    "large-22k-to-1k": for_large(
        BASE_22K_TO_1K,
        {"layer_decay": 0.9, "drop_path_rate": 0.4},
        "87.4 top-1 at 224 px, 88.4 at 384 px (released README)",
    ),
    "cifar100": Preset(
        {**BATCH_512, "epochs": 150.0, "weight_decay": 0.3, "erasing": 0.0, "repeats": 3, "image_size": 224},
        "CIFAR-100 enlarged to 224 px, from BEiT-base; it picks --lr from 2e-3, 3e-3, 4e-3 and 5e-3",
        "paper table 13; three repeats as in DeiT",
        "150 epochs of 50,000 images at 224 px",
        "90.1 top-1; 91.8 after ImageNet-1k (paper table 11)",
    ),
    "small-data": Preset(
        {**BATCH_64, **UNMIXED, "epochs": 60.0, "warmup_epochs": 5.0, "lr": 5e-4, "layer_decay": 0.75}
        | {"randaugment": 7.0, "erasing": 0.0, "min_crop": 0.35, "save_every": "5m"},
        "a few hundred to a few thousand photographs, on one GPU",
        "ours: rate and decay between the released and BEiT-large's, light augmentation, nothing mixed",
        "for 1,000 images of 224 px and BEiT-base: 60,000 views at 3 x 17.6 GMAC",
        "201 flowers of 5 kinds, a small encoder: 58 to 61 %, from scratch 43 to 53 % (docs/results.md)",
    ),
    "tiny": Preset(
        {**BATCH_64, **UNMIXED, "epochs": 30.0, "warmup_epochs": 3.0, "lr": 1e-3, "layer_decay": 0.75}
        | {"drop_path_rate": 0.05, "randaugment": 0.0, "color_jitter": 0.3, "erasing": 0.0, "min_crop": 0.4}
        | {"log_every": 20, "save_every": "2m"},
        "a few hundred to a few thousand small images on a CPU, from `beit pretrain --preset tiny`",
        "ours; the rate chosen among three (docs/results.md)",
        "280 images/s at 32 px with 4 px patches and depth 6, on 2 CPU cores",
        "CIFAR-10 with 10 % of the labels: 49 %, from scratch 35 % (docs/results.md)",
    ),
}
