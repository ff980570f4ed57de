"""`beit pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beit.config.architecture import PIXEL_STATISTICS, EncoderConfig, Sides, sides
from beit.config.errors import UserError, require, require_positive, require_share
from beit.config.run import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Masked image modelling (paper sections 2.3 to 2.5; defaults: the released BEiT-base recipe)."""

    tokenizer: str | None = None
    """The visual tokenizer: a run or model, ours or not (as SOURCE of `beit convert`; OpenAI's is `dall-e`). Not
    needed with `--target pixels`."""

    token_image_size: int | Sides | None = None
    """Side of the tokenizer's view, or height and width, in pixels; null for what the tokenizer was trained at."""

    image_size: int | Sides = 224
    """Side of the encoder's view, or height and width, in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Channels of every token."""
    depth: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of `width`."""
    position: Literal["shared_bias", "absolute"] = "shared_bias"
    """Relative position bias shared by all blocks (released), or learned absolute embeddings (paper)."""
    layer_scale_init: float | None = 0.1
    """First value of LayerScale; null for none (paper)."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block."""
    dropout: float = 0.0
    """Dropout after the MLP and the attention projection."""
    normalization: Literal["half", "imagenet"] = "half"
    """Pixel mean and deviation of the encoder: 0.5 and 0.5, or ImageNet's."""

    masking: Literal["block", "random", "none"] = "block"
    """Hide blocks of patches (paper algorithm 1), single patches, or nothing."""
    num_masked: int | None = None
    """Hidden patches; null for 75 of 196 in proportion."""
    min_block: int | None = None
    """Patches of the smallest block; null for 16 of 196 in proportion."""
    mask_count: Literal["exact", "at_most", "more_than"] = "exact"
    """Exactly `num_masked`; at most (released code, short in a third of the images); or the paper's rule."""
    block_aspect: Literal["log_uniform", "uniform"] = "log_uniform"
    """How a block's aspect ratio is drawn (released code: log-uniform; paper: uniform)."""
    target: Literal["tokens", "pixels"] = "tokens"
    """Predict visual tokens, or the normalised pixels of the patches (ablation, paper table 4)."""
    predict: Literal["masked", "all"] = "masked"
    """Predict the hidden patches, or all of them (ablation, paper table 4)."""

    min_crop: float = 0.08
    """Smallest share of the image that a crop takes."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation changes; 0 for none."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    views: Literal["fast", "exact"] = "fast"
    """fast: crop, then jitter, on tensors; exact: the released order and resampling, on PIL images."""

    epochs: float | None = 800.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.architecture()
        require_positive({"--min-crop": self.min_crop})
        require_share({"--min-crop": self.min_crop, "--flip": self.flip, "--color-jitter": self.color_jitter})
        self.require_other_run("--tokenizer", self.tokenizer)
        if self.target == "tokens":
            require(self.tokenizer is not None, "--target tokens needs --tokenizer, a run of beit tokenizer")
        elif self.tokenizer is not None:
            raise UserError("--target pixels uses no tokenizer; drop --tokenizer")
        if self.masking == "none" and self.predict == "masked":
            raise UserError("--masking none hides nothing to predict; add --predict all")

    def architecture(self) -> EncoderConfig:
        """The encoder these knobs describe."""
        mean, std = PIXEL_STATISTICS[self.normalization]
        return EncoderConfig(
            image_size=sides(self.image_size),
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            position=self.position,
            layer_scale_init=self.layer_scale_init,
            drop_path_rate=self.drop_path_rate,
            dropout=self.dropout,
            pixel_mean=mean,
            pixel_std=std,
        )
