"""`beit finetune`."""

from dataclasses import dataclass
from typing import Literal

from beit.config.architecture import Sides
from beit.config.errors import UserError, require
from beit.config.start import StartConfig
from beit.config.values import NonNegativeFloat, PositiveInt, PositiveShare, Share


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(StartConfig):
    """Classification (paper section 2.6; defaults: the released BEiT-base recipe on ImageNet-1k)."""

    init: str | None = None
    """Start from this run or model, pre-trained or a classifier, ours or not (as SOURCE of `beit convert`)."""

    labels: str | None = None
    """File of labels: .csv (`image,class;class` in each line), .json ({image: [classes]}), or .csv or .jsonl that
    `beit predict` wrote; null: class folders."""
    multilabel: bool = False
    """An image may have several classes, or none: a yes or no for each class (binary cross-entropy)."""
    label_share: PositiveShare | None = None
    """Learn from this share of the labels alone: a seeded choice, the same share of each class."""
    labels_per_class: PositiveInt | None = None
    """Learn from this many labels of each class alone: a seeded choice."""

    image_size: PositiveInt | Sides | None = None
    """Side of the images, or height and width, in pixels; null for that of `init`."""
    pool: Literal["mean", "cls"] | None = None
    """Classify the mean of the patches, or the class token; null for what a classifier in `init` does, else mean."""
    init_scale: NonNegativeFloat = 0.001
    """Scale of a new head's first weights."""

    mixup: NonNegativeFloat = 0.8
    """Alpha of mixup; 0 for none."""
    cutmix: NonNegativeFloat = 1.0
    """Alpha of cutmix; 0 for none."""
    cutmix_share: Share = 0.5
    """Share of the batches that are cut instead of mixed, where both are on."""
    label_smoothing: Share = 0.1
    """Share of the target that is spread over all classes."""
    randaugment: float = 9.0
    """Magnitude of RandAugment from 0 to 10; 0 for none."""
    randaugment_std: NonNegativeFloat = 0.5
    """Standard deviation of the magnitude."""
    erasing: Share = 0.25
    """Probability of random erasing."""
    color_jitter: Share = 0.0
    """Strength of brightness, contrast and saturation changes; 0 for none (the released recipe has RandAugment)."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    min_crop: PositiveShare = 0.08
    """Smallest share of the image that a crop takes."""
    repeats: PositiveInt = 1
    """Views of an image that stand together in a batch (repeated augmentation)."""
    crop_pct: PositiveShare | None = None
    """Share of the resized image that evaluation looks at; null for 0.875, but 1 from 384 px on and up to 32 px."""

    epochs: float | None = 100.0
    batch_size: int = 1024
    lr: float = 4e-3
    lr_batch_size: int = 1024
    min_lr: float = 1e-6
    warmup_epochs: float | None = 20.0

    def check(self) -> None:
        super().check()
        magnitude = self.randaugment
        require(0 <= magnitude <= 10, f"--randaugment must lie between 0 and 10, not {magnitude}")
        if self.multilabel and self.labels is None:
            raise UserError("--multilabel needs --labels FILE: a folder gives an image one class")
        needs = f"--labels-per-class {self.labels_per_class} (given, or of the preset) needs one class for each image"
        one_class = not self.multilabel or self.labels_per_class is None
        require(one_class, f"{needs}; use --label-share, or add --labels-per-class null")
