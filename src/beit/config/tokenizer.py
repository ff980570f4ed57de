"""`beit tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.config.architecture import DiscreteVAEConfig
from beit.config.errors import require, require_not_negative, require_positive, require_share
from beit.config.run import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(TrainingConfig):
    """Train a discrete VAE, the visual tokenizer (DALL-E, appendix A; defaults: the full recipe, for 112 px)."""

    image_size: int = 112
    """Side of the training crops in pixels."""
    vocab_size: int = 8192
    """Entries of the codebook."""
    width: int = 256
    """Channels after the first layer; each group of blocks doubles them."""
    stride: int = 8
    """Pixels per token along each axis."""
    blocks_per_group: int = 2
    """Residual blocks in each group."""
    code_width: int = 128
    """Channels of a codebook entry as the decoder receives it."""

    kl_weight: float = 6.6
    """Weight of the KL divergence to the uniform prior; at another stride s start from 6.6 (s / 8)^2."""
    kl_steps: int | float = 5000
    """Steps, or a share of the run up to 1, over which the KL weight rises from 0 along a cosine."""
    temperature: float = 1.0
    """First Gumbel-softmax temperature."""
    final_temperature: float = 1 / 16
    """Last Gumbel-softmax temperature."""
    temperature_steps: int | float = 150_000
    """Steps, or a share of the run up to 1, over which the temperature falls along a cosine."""

    crop: Literal["dalle", "random_resized"] = "dalle"
    """dalle: a square crop at 9/8 to 12/8 of the size (appendix A.2); random_resized: any area and shape."""
    min_crop: float = 0.2
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.architecture()
        require_not_negative({"--kl-weight": self.kl_weight})
        require_positive(
            {
                "--temperature": self.temperature,
                "--final-temperature": self.final_temperature,
                "--kl-steps": self.kl_steps,
                "--temperature-steps": self.temperature_steps,
                "--min-crop": self.min_crop,
            }
        )
        require_share({"--min-crop": self.min_crop})
        require(
            self.final_temperature <= self.temperature, "--final-temperature must not exceed --temperature"
        )

    def architecture(self) -> DiscreteVAEConfig:
        """The network these knobs describe."""
        return DiscreteVAEConfig(
            vocab_size=self.vocab_size,
            width=self.width,
            stride=self.stride,
            blocks_per_group=self.blocks_per_group,
            code_width=self.code_width,
            image_size=(self.image_size, self.image_size),
        )
