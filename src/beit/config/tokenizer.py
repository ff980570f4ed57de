"""`beit tokenizer`, and the architectures that it alone makes."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from beit.config.architecture import DiscreteVAEConfig, DiscreteVAEKnobs, Side, TokenArchitecture
from beit.config.errors import UserError, require
from beit.config.run import TrainingConfig
from beit.config.values import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare

LEVELS = {
    math.prod(levels): levels
    for levels in (
        *((5, 5), (8, 8), (8, 6, 5), (8, 8, 8), (8, 5, 5, 5), (8, 8, 6, 5), (7, 5, 5, 5, 5)),
        *((8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5)),
    )
}
"""Levels of finite scalar quantisation by the size of the vocabulary, from 240 on those that its paper recommends
(arXiv 2309.15505, table 1, and for 512 and 1920 after its rule of at least 5 levels)."""
MAX_LAYERS = 64
"""Of an encoder or decoder that lists them: more is an attack."""
TRAINED = ("dvae", "fsq", "plain")
"""The kinds that learn by gradient steps; a codebook of k-means is computed at once."""


@dataclass(frozen=True, kw_only=True)
class FiniteScalarVAEConfig(DiscreteVAEConfig):
    """Architecture of a :class:`beit.tokenizers.fsq.FiniteScalarVAE`; `code_width` is that of the decoder's input."""

    levels: tuple[int, ...]
    """Values of each channel between encoder and decoder; `vocab_size` is their product."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = min(self.levels, default=0) > 1 and math.prod(self.levels) == self.vocab_size
        require(fits, f"levels {self.levels} do not multiply to a vocabulary of {self.vocab_size}")


@dataclass(frozen=True, kw_only=True)
class PatchKMeansConfig(TokenArchitecture):
    """Architecture of a :class:`beit.tokenizers.kmeans.PatchKMeans`, whose patches have the side `stride`."""

    pixel_norm: Literal["none", "patch"] = "none"
    """Whether patches are compared as they are, or each less its mean and divided by its deviation."""


Layer = tuple[Literal["stride", "residual", "pointwise"], PositiveInt, PositiveInt]
"""A strided convolution of 4x4 with ReLU, a residual block, or a 1x1 convolution; channels in and out."""


@dataclass(frozen=True, kw_only=True)
class PlainVAEConfig(TokenArchitecture):
    """Architecture of a :class:`beit.tokenizers.plain_dvae.PlainDVAE`."""

    code_width: PositiveInt
    """Channels of a codebook entry."""
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    """Their layers in order; "stride" halves the size in the one and doubles it in the other."""
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """What images in [0, 1] are normalised with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = 2 ** sum(kind == "stride" for kind, *_ in self.encoder) == self.stride
        require(fits, f"its encoder does not halve the size as often as --stride {self.stride} says")
        require(max(len(self.encoder), len(self.decoder)) <= MAX_LAYERS, f"it has more than {MAX_LAYERS} layers")


_OF_PATCHES, _OF_FEATURES = {"pixel_norm"}, {"teacher", "teacher_layer"}
_OF_DISTRIBUTIONS = {"kl_weight", "kl_steps", "temperature", "final_temperature", "temperature_steps"}
_OF_GRADIENTS = {
    *("width", "blocks_per_group", "code_width", "epochs", "steps", "accumulate", "lr", "lr_batch_size"),
    "checkpoint_activations",
    *("lr_scaling", "min_lr", "lr_steps", "warmup_epochs", "warmup_steps", "weight_decay", "beta1", "beta2"),
    *("extend_to", "schedule"),
    *("clip_grad", "ema_decay", "nonfinite", "save_every", "keep", "log_every", "evaluations"),
}
IDLE: Mapping[str, Collection[str]] = {
    "dvae": _OF_PATCHES | _OF_FEATURES,
    "fsq": _OF_PATCHES | _OF_FEATURES | _OF_DISTRIBUTIONS,
    "plain": _OF_PATCHES | _OF_FEATURES | {"kl_weight", "kl_steps", "width", "blocks_per_group"},
    "kmeans": _OF_FEATURES | _OF_DISTRIBUTIONS | _OF_GRADIENTS | {"init"},
    "features": {"init"} | _OF_PATCHES | _OF_DISTRIBUTIONS | _OF_GRADIENTS | {"stride"},
}
"""The knobs that each kind has no use for."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(DiscreteVAEKnobs, TrainingConfig):
    """Make a visual tokenizer: a discrete VAE (DALL-E, appendix A; defaults: the full recipe, for 112 px), or a kind
    that costs less."""

    kind: Literal["auto", "dvae", "kmeans", "fsq", "features", "plain"] = "dvae"
    """auto: that of the preset, as where none is given; dvae: a discrete VAE; kmeans: the nearest of a few patches;
    fsq: the same network with finite scalar quantisation; features: the nearest of a few features of `teacher`;
    plain: DALLE-pytorch's network, that of `init`, by its squared error."""
    init: str | None = None
    """dvae, fsq, plain: go on from this run or model, ours or not (as SOURCE of `beit convert`), and its network."""
    pixel_norm: Literal["none", "patch"] = "none"
    """kmeans: compare patches as they are, or each less its mean and divided by its deviation."""
    teacher: str | None = None
    """features: the encoder of this run or model, ours or not (as SOURCE of `beit convert`), stays as it is."""
    teacher_layer: int | None = None
    """features: the block that is read (0 the first, -1 the last); null for the one two thirds of the way up."""
    image_size: Side = 112
    """Side of the training crops in pixels."""
    kl_weight: NonNegativeFloat = 6.6
    """Weight of the KL divergence to the uniform prior; at another stride s start from 6.6 (s / 8)^2."""
    kl_steps: PositiveInt | PositiveFloat = 5000
    """Steps, or a share of the run up to 1, over which the KL weight rises from 0 along a cosine."""
    temperature: PositiveFloat = 1.0
    """First Gumbel-softmax temperature."""
    final_temperature: PositiveFloat = 1 / 16
    """Last Gumbel-softmax temperature."""
    temperature_steps: PositiveInt | PositiveFloat = 150_000
    """Steps, or a share of the run up to 1, over which the temperature falls along a cosine."""

    crop: Literal["dalle", "random_resized"] = "dalle"
    """dalle: a square crop at 9/8 to 12/8 of the size (appendix A.2); random_resized: any area and shape."""
    min_crop: PositiveShare = 0.2
    """Smallest share of the image that a `random_resized` crop takes."""

    batch_size: int = 512
    steps: int | None = 3_000_000
    lr: float = 1e-4
    lr_batch_size: int = 512
    min_lr: float = 1.25e-6
    lr_steps: int | float = 1_200_000
    warmup_epochs: float | None = 0.0
    weight_decay: float = 1e-4
    ema_decay: float | None = 0.999
    eval_images: int = 2048

    def as_typed(self, typed: Mapping[str, Any]) -> Self:
        return super().as_typed({key: value for key, value in typed.items() if (key, value) != ("kind", "auto")})

    def check(self) -> None:
        super().check()
        require(self.kind != "auto", "--kind auto needs a preset that chooses; name a kind")
        begins = self.init is None or self.is_trained
        require(begins, f"--kind {self.kind} is computed at once and has no use for --init; drop it")
        if self.kind == "features":
            require(self.teacher is not None, "--kind features needs --teacher, a run or model with an encoder")
        elif self.kind == "plain":
            require(self.init is not None, "--kind plain goes on from a tokenizer of its kind; give it as --init")
        else:
            self.architecture()
        cools = self.final_temperature <= self.temperature
        require(cools, "--final-temperature must not exceed --temperature")

    @property
    def is_trained(self) -> bool:
        """Whether the kind learns by gradient steps."""
        return self.kind in TRAINED

    def num_steps(self, images: int) -> int:
        return super().num_steps(images) if self.is_trained else 0

    def idle(self) -> Mapping[str, Collection[str]]:
        return {f"--kind {self.kind}": IDLE[self.kind]}

    def architecture(self) -> DiscreteVAEConfig | PatchKMeansConfig:
        """The tokenizer that these knobs describe; of features it is the teacher's, of plain ones that of `init`."""
        pixels, size = self.pixels or {}, (self.image_size, self.image_size)
        shared: dict[str, Any] = {"image_size": size, "channels": pixels.get("channels", 3)}
        if self.kind == "kmeans":
            knobs = ("vocab_size", "stride", "pixel_norm")
            return PatchKMeansConfig(**{name: getattr(self, name) for name in knobs}, **shared)
        shared |= {knob.name: getattr(self, knob.name) for knob in fields(DiscreteVAEKnobs)}
        shared["pixel_bits"] = pixels.get("bits", 8)
        if self.kind == "dvae":
            return DiscreteVAEConfig(**shared)
        if self.vocab_size not in LEVELS:
            near = sorted(sorted(LEVELS, key=lambda size: abs(size / self.vocab_size - 1))[:2])
            wrong = f"--vocab-size {self.vocab_size} is no product of the levels of --kind fsq"
            raise UserError(f"{wrong}; near it are {near[0]} and {near[1]}, of all {', '.join(map(str, LEVELS))}")
        return FiniteScalarVAEConfig(levels=LEVELS[self.vocab_size], **shared)
