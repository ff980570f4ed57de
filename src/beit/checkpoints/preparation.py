"""How images are shown to a model that is judged: further keys of model.json, and what leaving one out means.

Of classifiers they have timm's names and meaning: images are resized (`interpolation`) until `crop_pct` of them is
the network's size, keeping their shape (`crop_mode` center) or not (squash), and the middle is cut out.
"""

from typing import Any, NamedTuple

from torch import nn

from beit.config.architecture import EncoderConfig, default_crop
from beit.models.heads import ImageClassifier
from beit.models.position import Grid
from beit.models.segmentation import SemanticSegmenter
from beit.untrusted import Facts

LEAST_CROP = 0.1
"""A `crop_pct` below would blow images up without bound."""


class Preparation(NamedTuple):
    """How an image becomes one of the size that a classifier takes."""

    interpolation: str
    """Here bicubic or bilinear; configurations may name others."""
    crop_pct: float
    crop_mode: str
    """Here center or squash."""


def preparation(description: Facts, size: Grid) -> Preparation:
    """That of a model.json, for a network of images of `size` (H, W)."""
    crop = description.get("crop_pct")
    return Preparation(
        description.get("interpolation", "bicubic"),
        default_crop(size) if crop is None else crop,
        description.get("crop_mode", "center"),
    )


def stated_preparation(interpolation: Any, crop_pct: Any, crop_mode: Any) -> dict[str, Any]:
    """Keys of model.json for what a foreign configuration states; None and what is out of bounds: nothing."""
    share = isinstance(crop_pct, float | int) and LEAST_CROP <= crop_pct <= 1
    names = {"interpolation": interpolation, "crop_mode": crop_mode}
    keys = {name: value for name, value in names.items() if isinstance(value, str)}
    return ({"crop_pct": crop_pct} if share else {}) | keys


def in_full(model: nn.Module, extra: Facts) -> dict[str, Any]:
    """`extra`, further keys of the model.json of `model`, with those that it leaves out."""
    if isinstance(model, ImageClassifier):
        config: EncoderConfig = model.encoder.config
        return {"multilabel": False, **extra, **preparation(extra, config.image_size)._asdict()}
    if isinstance(model, SemanticSegmenter):
        crop = [*model.encoder.config.image_size]
        whole = {"resize": None, "crop": crop, "stride": None, "reduce_zero_label": False}
        return {**whole, "ignore_value": 255, **extra}
    return dict(extra)
