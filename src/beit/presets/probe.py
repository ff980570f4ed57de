"""Protocols of `beit probe`."""

from beit.presets import Preset

RECIPES = {
    "paper": Preset(
        {},
        "mean of the patches, 50 epochs; the best layer is a middle one (9th of 12 in base, 14th of 24 in large)",
        "paper appendix D",
        "an encoder's forward pass for each image and epoch",
        "ImageNet-1k top-1: 56.7 base, 73.5 large (paper table 9)",
    ),
    "released": Preset(
        {"pool": "cls_mean", "epochs": 100.0, "lr": 1e-3, "lr_batch_size": 256, "crop_pct": 0.875},
        "class token and mean of the patches, 100 epochs",
        "released code, run_linear_eval.py",
        "twice paper",
        "not published",
    ),
    "tiny": Preset(
        {"augment": False, "standardize": True, "crop_pct": 1.0, "steps": 2000, "epochs": None}
        | {"batch_size": 256, "lr": 1e-3, "lr_batch_size": 256}
        | {"log_every": 200, "evaluations": 4, "save_every": "5m"},
        "one pass of the encoder over the images, then probes on the features kept; for a CPU",
        cost="one forward pass for each image, and 30 s",
        expected="CIFAR-10 after 4,500 steps of pre-training: 47.5 % (docs/results.md)",
    ),
}
