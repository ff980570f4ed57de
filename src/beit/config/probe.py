"""`beit probe`."""

from dataclasses import dataclass
from typing import Literal

from beit.config.architecture import Sides
from beit.config.run import TrainingConfig
from beit.config.values import PositiveFloat, PositiveInt, PositiveShare, Share


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(TrainingConfig):
    """Linear classifiers and k-NN on every layer of a frozen encoder (defaults: the paper's, appendix D)."""

    init: str
    """The encoder to judge: a run or model, ours or not (as SOURCE of `beit convert`)."""

    labels: str | None = None
    """File with one class for each image: .csv (`image,class`) or .json ({image: [class]}); null: class folders."""

    class_weights: str | None = None
    """Weights of the classes in the loss of the linear classifiers, as of `beit finetune`; null for all alike."""

    image_size: PositiveInt | Sides | None = None
    """Side of the images, or height and width, in pixels; null for the size that the encoder was trained at."""
    pool: Literal["mean", "cls_mean"] = "mean"
    """Features of a layer: the mean of its patches (paper), or the class token and that mean (released code)."""
    standardize: bool = False
    """Bring every feature to mean 0 and deviation 1 over the training images first."""
    augment: bool = True
    """Train on random crops and flips, through the encoder at every step; else on features computed once."""
    min_crop: PositiveShare = 0.08
    """Smallest share of the image that a random crop takes."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    crop_pct: PositiveShare | None = None
    """Share of the resized image that evaluation looks at; null for 0.875, but 1 from 384 px on and up to 32 px."""

    knn: PositiveInt = 20
    """Neighbours that vote in the k-NN classifier: at most as many as the smallest class has training images."""
    knn_temperature: PositiveFloat = 0.07
    """A neighbour's vote weighs exp(cosine similarity / this)."""
    knn_images: PositiveInt = 50_000
    """Training images among which neighbours are sought, at most."""

    epochs: float | None = 50.0
    batch_size: int = 1024
    lr: float = 4e-3
    lr_batch_size: int = 1024
    min_lr: float = 0.0
    warmup_epochs: float | None = 0.0
    weight_decay: float = 1e-4
