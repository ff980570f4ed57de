"""Where the knobs of the training verbs arrive; runs that have all those of a table are in test_knobs.py."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from arrivals import Arrived, Knob
from torch import Tensor

from beit.data.base import Source
from beit.data.batches import ImageBatch, PretrainBatch, SegmentationBatch
from beit.data.views.evaluation import LabeledView
from beit.masking import NoMasking, RandomMasking
from beit.recipes.probe import feature_view
from beit.tokenizers.objective import elbo_loss

Knobs = Mapping[str, Knob]

# ------------------------------------------------------------------------------------------------------------
# What all training verbs share, seen in a tokenizer's run on 41 images

STEPS = 40
PEAK = 2e-3 * (6 / 12) ** 0.5
SHARED: Knobs = {
    "limit": Knob(20, lambda a: len(a.feed.images.train)),
    "holdout": Knob(0.4, lambda a: len(a.feed.images.held_back), 16),
    "image_channels": Knob(1, lambda a: a.model.config.channels),
    "max_bad": Knob(0.3, lambda a: a.arguments["Loader"]["max_bad"]),
    "steps": Knob(STEPS, lambda a: a.plan.steps),
    "batch_size": Knob(6, lambda a: a.arguments["Loader"]["batch_size"]),
    "accumulate": Knob(2, lambda a: a.arguments["Loader"]["accumulate"]),
    "checkpoint_activations": Knob("on", lambda a: a.model.encoder.checkpoint_activations, True),
    "compile": Knob("on", lambda a: a.plan.config.compile),
    "lr": Knob(2e-3, lambda a: max(map(a.rate, range(STEPS))), PEAK),
    "lr_batch_size": Knob(12, lambda a: a.state.optimizer.defaults["lr"], PEAK),
    "lr_scaling": Knob("sqrt", lambda a: a.rate(5), PEAK),
    "warmup_steps": Knob(5, lambda a: a.rate(2), PEAK / 2),
    "min_lr": Knob(1e-4, lambda a: a.rate(STEPS), 1e-4 * (6 / 12) ** 0.5),
    "lr_steps": Knob(0.5, lambda a: a.rate(STEPS // 2), 1e-4 * (6 / 12) ** 0.5),
    "weight_decay": Knob(0.3, lambda a: {g["weight_decay"] for g in a.state.optimizer.param_groups}, {0, 0.3}),
    "beta1": Knob(0.8, lambda a: a.state.optimizer.defaults["betas"][0]),
    "beta2": Knob(0.95, lambda a: a.state.optimizer.defaults["betas"][1]),
    "ema_decay": Knob(0.7, lambda a: a.state.ema_decay),
    "nonfinite": Knob("skip", lambda a: a.state.guard.policy),
    "precision": Knob("bf16", lambda a: a.precision),
    "workers": Knob(1, lambda a: a.arguments["Loader"]["workers"]),
    "timeout": Knob("90s", lambda a: a.arguments["Loader"]["timeout"], 90.0),
    "seed": Knob(7, lambda a: a.arguments["Loader"]["seed"]),
    "save_every": Knob("3m", lambda a: [a.plan.should_save(1, s) for s in (179, 180)], [False, True]),
    "log_every": Knob(9, lambda a: [s for s in range(STEPS) if a.plan.should_report(s)], [0, 9, 18, 27, 36]),
    "evaluations": Knob(5, lambda a: [s for s in range(41) if a.plan.should_evaluate(s)], [8, 16, 24, 32, 40]),
}


def first_digits(source: Source) -> set[str]:
    """What the names of images begin with, where that is a digit."""
    return {source.key(index)[0] for index in range(len(source))} & set(string.digits)


LENGTH: Knobs = {  # in passes over 20 images
    "limit": Knob(20, lambda a: len(a.feed.images.train)),
    "steps": Knob(None, lambda a: a.plan.steps, 10),
    "epochs": Knob(4.0, lambda a: a.plan.epoch(a.plan.steps)),
    "schedule": Knob("constant", lambda a: a.plan.branch, 9),
    "warmup_epochs": Knob(1.6, lambda a: a.plan.warmup_steps, 2),  # 4 steps, but a fifth at most
    "eval_images": Knob(3, lambda a: len(a.feed.images.held_back)),
    "group_by": Knob(r"^(\d)", lambda a: len(first_digits(a.feed.images.all_held_back)), 1),
}

# ------------------------------------------------------------------------------------------------------------
# The tokenizer: 40 steps, of which the schedules take a half and a quarter


def annealed(arrived: Arrived, index: int) -> tuple[float, float]:
    """The temperature that the model is called with in step `index`, and the KL divergence's share of the loss."""
    temperatures: list[float] = []
    image = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    logits, statistics = torch.randn(2, 32, 16, 16), torch.randn(2, 6, 32, 32)

    def model(images: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        temperatures.append(temperature)
        return logits, statistics

    loss = arrived.step(model, ImageBatch(image), index).loss
    nll, kl = elbo_loss(image, logits, statistics, 0.0)[1:]
    return temperatures[0], float((loss * image[0].numel() - nll) / kl)


TOKENIZER: Knobs = {
    "image_size": Knob(32, lambda a: (a.view.image_size, a.evaluation_view.image_size), ((32, 32),) * 2),
    "vocab_size": Knob(32, lambda a: a.model.config.vocab_size),
    "width": Knob(12, lambda a: a.model.config.width),
    "stride": Knob(2, lambda a: a.model.config.stride),
    "blocks_per_group": Knob(3, lambda a: a.model.config.blocks_per_group),
    "code_width": Knob(20, lambda a: a.model.config.code_width),
    "steps": Knob(STEPS, lambda a: a.plan.steps),
    "kl_weight": Knob(3.0, lambda a: annealed(a, 10)[1]),
    "kl_steps": Knob(0.25, lambda a: annealed(a, 5)[1], 1.5),
    "temperature": Knob(2.0, lambda a: annealed(a, 0)[0]),
    "final_temperature": Knob(0.5, lambda a: annealed(a, 20)[0]),
    "temperature_steps": Knob(0.5, lambda a: annealed(a, 10)[0], 1.25),
    "crop": Knob("random_resized", lambda a: a.view.crop),
    "min_crop": Knob(0.3, lambda a: a.view.min_scale),
}

KMEANS: Knobs = {
    "kind": Knob("kmeans", lambda a: a.model.kind),
    "pixel_norm": Knob("patch", lambda a: a.model.config.pixel_norm),
    "vocab_size": Knob(9, lambda a: len(a.model.centers.unique(dim=0))),
    "stride": Knob(8, lambda a: a.model.patches.shape[-1]),
}

FEATURES: Knobs = {
    "kind": Knob("features", lambda a: a.model.kind),
    "teacher_layer": Knob(-2, lambda a: a.model.layer, 0),  # of two blocks
}

# ------------------------------------------------------------------------------------------------------------
# The encoder, wherever it is trained from scratch

ENCODER: Knobs = {
    "patch_size": Knob(8, lambda a: a.encoder.patch_size),
    "width": Knob(24, lambda a: a.encoder.width),
    "depth": Knob(3, lambda a: a.encoder.depth),
    "num_heads": Knob(3, lambda a: a.encoder.num_heads),
    "mlp_ratio": Knob(2.0, lambda a: a.encoder.mlp_ratio),
    "position": Knob("absolute", lambda a: a.encoder.position),
    "bias": Knob("shared", lambda a: a.encoder.bias),
    # .118 at a width of 24
    "init_scheme": Knob("torch", lambda a: a.model.encoder.blocks[0].attn.qkv.weight.std() > 0.1, True),
    "layer_scale_init": Knob(0.3, lambda a: a.encoder.layer_scale_init),
    "drop_path_rate": Knob(0.15, lambda a: a.encoder.drop_path_rate),
    "dropout": Knob(0.05, lambda a: a.encoder.dropout),
    "normalization": Knob("imagenet", lambda a: a.encoder.pixel_mean[0], 0.485),
}


def share_predicted(arrived: Arrived) -> float:
    """Of a batch's patches, an eighth of them hidden, those whose tokens the model is asked for."""
    image, mask = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 0] = True
    wanted: list[float] = []

    def model(images: Tensor, mask: Tensor, predict: Tensor, tokens: Tensor, count: int | None) -> Any:
        wanted.append(float(predict.float().mean()))
        return torch.zeros(()), torch.zeros(())

    arrived.step(model, PretrainBatch(image, image[:, :, :32, :32], mask))
    return wanted[0]


PRETRAIN: Knobs = {
    **ENCODER,
    "image_size": Knob(64, lambda a: (a.encoder.image_size, a.view.image_size), ((64, 64),) * 2),
    "token_image_size": Knob(32, lambda a: (a.view.token_size, a.evaluation_view.token_size), ((32, 32),) * 2),
    "num_masked": Knob(20, lambda a: a.view.masking.num_masked),
    "min_block": Knob(3, lambda a: a.view.masking.min_block),
    "mask_count": Knob("at_most", lambda a: a.view.masking.count),
    "block_aspect": Knob("uniform", lambda a: a.view.masking.aspect),
    "predict": Knob("all", share_predicted, 1.0),
    "min_crop": Knob(0.3, lambda a: a.view.min_scale),
    "color_jitter": Knob(0.25, lambda a: a.view.color_jitter),
    "flip": Knob(0.2, lambda a: a.view.flip),
    "views": Knob("exact", lambda a: a.view.mode),
    "token_cache": Knob(3, lambda a: a.arguments["Loader"]["cycle"]),
}


def power_of_targets(arrived: Arrived) -> float:
    """The mean square of the pixels to predict."""
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = PretrainBatch(image, image, torch.ones(2, 4, 4, dtype=torch.bool))
    return float(arrived.step(lambda images, mask, predict: torch.zeros(32, 192), batch).loss)


PIXELS: Knobs = {
    "target": Knob("pixels", lambda a: a.model.vocab_size, 3 * 8 * 8),
    "pixel_norm": Knob("patch", power_of_targets, 191 / 192),  # a variance over 192 values less one
    "masking": Knob("random", lambda a: type(a.view.masking), RandomMasking),
    "num_masked": Knob("75%", lambda a: (a.evaluation_view.masking.num_masked, a.model.num_masked), (12, 12)),
    "encoder_sees": Knob("visible", lambda a: a.model.encoder_sees),
    "decoder_depth": Knob(2, lambda a: len(a.model.decoder.blocks)),
    "decoder_width": Knob(64, lambda a: a.model.decoder.width),
}

BARE: Knobs = {
    "target": PIXELS["target"],
    "masking": Knob("none", lambda a: type(a.view.masking), NoMasking),
    "predict": Knob("all", lambda a: a.view.masking.num_masked, 0),
    "layer_scale_init": Knob(None, lambda a: a.encoder.layer_scale_init),
}

# ------------------------------------------------------------------------------------------------------------
# Classification; 3 classes of 20 images


def layer_scales(arrived: Arrived) -> set[float]:
    """The shares of the rate at which the optimiser's groups learn."""
    return {group["lr_scale"] for group in arrived.state.optimizer.param_groups}


FINETUNE: Knobs = {
    **ENCODER,
    "from_scratch": Knob(True, lambda a: a.method.notes.about[0].startswith("from scratch")),
    "image_size": Knob(48, lambda a: (a.view.image_size, a.evaluation_view.view.image_size), ((48, 48),) * 2),
    "normalization": Knob("imagenet", lambda a: (a.view.mean[0], a.view.std[0]), (0.485, 0.229)),
    "max_megapixels": Knob(2.0, lambda a: a.arguments["open_splits"]["decoding"].limits.megapixels),
    "max_gibibytes": Knob(0.5, lambda a: a.arguments["open_splits"]["decoding"].limits.gibibytes),
    "value_range": Knob((0.0, 99.0), lambda a: a.arguments["open_splits"]["decoding"].value_range),
    "labels_per_class": Knob(5, lambda a: len(a.feed.images.train), 15),
    "pool": Knob("cls", lambda a: a.model.pool),
    "init_scale": Knob(0, lambda a: int(a.model.head.weight.count_nonzero())),
    "min_crop": Knob(0.3, lambda a: a.view.min_scale),
    "flip": Knob(0.2, lambda a: a.view.flip),
    "color_jitter": Knob(0.35, lambda a: a.view.color_jitter),
    "randaugment": Knob(7.0, lambda a: a.view.randaugment.magnitude),
    "randaugment_std": Knob(0.7, lambda a: a.view.randaugment.std),
    "erasing": Knob(0.15, lambda a: a.view.erasing),
    "repeats": Knob(4, lambda a: a.arguments["Loader"]["repeats"]),
    "layer_decay": Knob(0.5, layer_scales, {1}),  # no decay from scratch
    "crop_pct": Knob(0.8, lambda a: a.evaluation_view.view.crop_share),
}

FROM_ENCODER: Knobs = {
    "drop_path_rate": Knob(0.3, lambda a: a.encoder.drop_path_rate),
    "dropout": Knob(0.05, lambda a: a.encoder.dropout),
    "position": Knob("shared_bias", lambda a: a.encoder.bias, "shared"),
    "label_share": Knob(0.25, lambda a: len(a.feed.images.train), 15),
    "layer_decay": Knob(0.5, layer_scales, {1, 0.5, 0.25, 0.125}),
}

GOING_ON: Knobs = {"layer_decay": Knob(0.5, layer_scales, {1, 0.5, 0.25, 0.125})}

FROZEN: Knobs = {
    "freeze": Knob(1, lambda a: a.model.encoder.frozen_blocks),
    "layer_decay": Knob(0.5, layer_scales, {1, 0.5}),  # of two blocks one is left, below the head
}

# ------------------------------------------------------------------------------------------------------------
# Probes of an encoder of width 16

PROBE: Knobs = {
    "image_size": Knob(48, lambda a: a.view.view.image_size, (48, 48)),
    "pool": Knob("cls_mean", lambda a: a.model.weight.shape[-1], 2 * 16),
    "standardize": Knob(True, lambda a: bool((a.model.std != 1).all())),
    "augment": Knob(True, lambda a: type(a.view), LabeledView),
    "min_crop": Knob(0.3, lambda a: a.view.view.min_scale),
    "flip": Knob(0.2, lambda a: a.view.view.flip),
    "crop_pct": Knob(0.7, lambda a: a.arguments["EvaluationView"]["crop_share"]),
    "knn": Knob(3, lambda a: a.arguments["knn_votes"]["neighbours"]),
    "knn_temperature": Knob(0.2, lambda a: a.arguments["knn_votes"]["temperature"]),
    "knn_images": Knob(
        9, lambda a: a.method.notes.about[2], "the features of 31 images take 0.0 GiB"
    ),  # of 22 to judge
}

KEPT: Knobs = {
    "augment": Knob(False, lambda a: a.view, feature_view),
    "knn_images": Knob(9, lambda a: len(a.arguments["knn_votes"]["bank"])),
    "standardize": Knob(False, lambda a: bool((a.model.std == 1).all()), True),
}

# ------------------------------------------------------------------------------------------------------------
# Segmentation


def auxiliary_weight(arrived: Arrived) -> float:
    """The auxiliary loss in the whole, where it is as large as the decoder's."""
    logits = torch.zeros(1, 3, 8, 8)
    batch = SegmentationBatch(torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.int64))
    return float(arrived.step(lambda images, auxiliary: [logits, logits], batch).loss) / math.log(3) - 1


def inference(arrived: Arrived) -> Any:
    """How the evaluation shows images."""
    return arrived.method.evaluation.evaluate_batch.args[0]  # type: ignore[attr-defined]


def padding(arrived: Arrived) -> list[int]:
    """The pixel beside an image that does not fill the crop."""
    black = torch.zeros(3, 8, 8, dtype=torch.uint8)
    shown = arrived.view(black, torch.zeros(8, 8, dtype=torch.uint8), np.random.default_rng(0))
    return shown.image[:, 0, -1].tolist()


SEGMENT: Knobs = {
    **ENCODER,
    "from_scratch": Knob(True, lambda a: a.method.notes.about[0].startswith("from scratch")),
    "normalization": Knob("imagenet", padding, [124, 116, 104]),
    "reduce_zero_label": Knob(True, lambda a: a.model.num_classes, 3),
    "crop": Knob((32, 48), lambda a: (a.view.crop, inference(a).crop), ((32, 48),) * 2),
    "resize": Knob(40, lambda a: (a.view.base, a.evaluation_view.base, inference(a).resize), (40,) * 3),
    "scale": Knob((0.7, 1.3), lambda a: a.view.scale),
    "category_share": Knob(0.6, lambda a: a.view.category_share),
    "flip": Knob(0.3, lambda a: a.view.flip),
    "photometric": Knob(False, lambda a: a.view.photometric),
    "layers": Knob((0, 1, 1, 2), lambda a: a.model.layers),
    "channels": Knob(12, lambda a: a.model.channels),
    "head_dropout": Knob(0.3, lambda a: a.model.decode_head.dropout.p),
    "auxiliary_weight": Knob(0.3, auxiliary_weight),
    "stride": Knob((16, 24), lambda a: inference(a).stride),
    "power": Knob(2.0, lambda a: a.rate(2) / a.rate(0), 0.25),
}

PUP: Knobs = {
    "layer_decay": FROM_ENCODER["layer_decay"],
    "drop_path_rate": FROM_ENCODER["drop_path_rate"],
    "decoder": Knob("pup", lambda a: a.model.decoder),
    "transposed": Knob(True, lambda a: a.model.transposed),
    "auxiliary_weight": Knob(0.0, lambda a: a.model.auxiliary, False),
    "window": Knob("whole", lambda a: inference(a).stride is None, True),
}
