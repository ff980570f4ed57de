"""`beit tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from beit.config.architecture import DiscreteVAEConfig, DiscreteVAEKnobs
from beit.config.errors import require
from beit.config.run import TrainingConfig
from beit.config.values import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(DiscreteVAEKnobs, TrainingConfig):
    """Train a discrete VAE, the visual tokenizer (DALL-E, appendix A; defaults: the full recipe, for 112 px)."""

    image_size: int = 112
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
    clip_grad: float | None = None
    ema_decay: float | None = 0.999

    def check(self) -> None:
        super().check()
        self.architecture()
        cools = self.final_temperature <= self.temperature
        require(cools, "--final-temperature must not exceed --temperature")

    def architecture(self) -> DiscreteVAEConfig:
        """The network these knobs describe."""
        knobs = {knob.name: getattr(self, knob.name) for knob in fields(DiscreteVAEKnobs)}
        return DiscreteVAEConfig(image_size=(self.image_size, self.image_size), **knobs)
