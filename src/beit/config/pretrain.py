"""`beit pretrain`."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import beit.config.architecture as network
from beit.config.errors import UserError, require
from beit.config.run import AdaptsChannels, TrainingConfig
from beit.config.values import PositiveInt, PositiveShare, Share

PixelNorm = Literal["patch", "none"]
"""By what pixels to predict are normalised beyond the network's constants: their patch, or nothing."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(network.EncoderKnobs, AdaptsChannels, TrainingConfig):
    """Masked image modelling (paper sections 2.3 to 2.5; defaults: the released BEiT-base recipe)."""

    tokenizer: str | None = None
    """The visual tokenizer: a run or model, ours or not (as SOURCE of `beit convert`; OpenAI's is `dall-e`). Not
    needed with `--target pixels`."""

    init: str | None = None
    """Go on from this run or model, ours or not (as SOURCE of `beit convert`): its network, and its head where that
    predicts the tokens of `tokenizer`; null for first values drawn at random."""
    layer_decay: PositiveShare = 1.0
    """With `init`: each layer learns at this share of the rate of the layer above it."""

    labels: str | None = None
    """File with one class for each image, as that of `beit finetune`; null: class folders. Labels are read for the
    k-NN figure and the choice of model-best/ alone, where there are any."""

    token_image_size: PositiveInt | network.Sides | None = None
    """Side of the tokenizer's view, or height and width, in pixels; null for what the tokenizer was trained at."""

    image_size: PositiveInt | network.Sides = 224
    """Side of the encoder's view, or height and width, in pixels."""
    position: network.Position = "shared_bias"
    """Learned absolute embeddings (paper), fixed sine-cosine ones, or none; shared_bias and block_bias are older
    words for none with that `bias`."""
    bias: network.Bias | None = None
    """Relative position bias, one for all blocks (released) or one for each; null for what `position` says, else
    none."""
    init_scheme: network.InitScheme = "beit"
    """First values: normal with a deviation of .02 whatever the width (paper), or as torch's own layers draw them,
    with one that follows the width."""
    normalization: network.Normalization | None = None
    """Pixel mean and deviation of the encoder, 0.5 and 0.5, ImageNet's, or those of the data; null for those of
    `init`, else half, but those of data that is not RGB of 8 bits."""

    masking: Literal["block", "random", "none"] = "block"
    """Hide blocks of patches (paper algorithm 1), single patches, or nothing."""
    num_masked: int | str | None = None
    """Hidden patches, a count or a share of all (`75%`); null for 75 of 196 in proportion."""
    min_block: int | None = None
    """Patches of the smallest block; null for 16 of 196 in proportion."""
    mask_count: Literal["exact", "at_most", "more_than"] = "exact"
    """Exactly `num_masked`; at most (released code, short in a third of the images); or the paper's rule."""
    block_aspect: Literal["log_uniform", "uniform"] = "log_uniform"
    """How a block's aspect ratio is drawn (released code: log-uniform; paper: uniform)."""
    encoder_sees: Literal["all", "visible"] = "all"
    """All patches, the hidden ones as [MASK] (BEiT), or the visible ones alone, which takes less time for each image:
    a light decoder then predicts the others."""
    decoder_depth: PositiveInt = 1
    """Transformer blocks of that decoder."""
    decoder_width: PositiveInt | None = None
    """Channels of its tokens, a multiple of 32; null for two fifths of `width`."""
    target: Literal["tokens", "pixels"] = "tokens"
    """Predict visual tokens, or the normalised pixels of the patches (ablation, paper table 4)."""
    pixel_norm: PixelNorm = "none"
    """With `--target pixels`: each patch by its own mean and deviation (MAE), or by `normalization` alone."""
    predict: Literal["masked", "all"] = "masked"
    """Predict the hidden patches, or all of them (ablation, paper table 4)."""

    min_crop: PositiveShare = 0.08
    """Smallest share of the image that a crop takes."""
    color_jitter: Share = 0.4
    """Strength of brightness, contrast and saturation changes; 0 for none."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    token_cache: PositiveInt | None = None
    """Let crop, flip and jitter of an image come again every so many epochs, under new masks, and keep their tokens
    in the run's state: the tokenizer runs in the first ones alone. null: no view comes again."""
    views: Literal["fast", "exact"] = "fast"
    """fast: crop, then jitter, on tensors; exact: the released order and resampling, on PIL images."""

    epochs: float | None = 800.0
    clip_grad: float | None = 3.0
    eval_images: int = 2048

    def check(self) -> None:
        super().check()
        self.architecture()
        if self.target == "tokens":
            require(self.tokenizer is not None, "--target tokens needs --tokenizer, a run of beit tokenizer")
            plain = self.pixel_norm == "none"
            require(plain, "--pixel-norm patch is for --target pixels; drop it, or add that")
        elif self.tokenizer is not None:
            raise UserError("--target pixels uses no tokenizer; drop --tokenizer")
        if self.masking == "none" and self.predict == "masked":
            raise UserError("--masking none hides nothing to predict; add --predict all")
        self.hidden_patches()
        if self.encoder_sees == "visible":
            hides = self.masking != "none"
            require(hides, "--encoder-sees visible needs hidden patches; drop --masking none")
            fixed = self.mask_count == "exact"
            varies = f"and --mask-count {self.mask_count} varies; choose --mask-count exact"
            require(fixed, f"--encoder-sees visible needs as many hidden patches in every image, {varies}")

    def idle(self) -> Mapping[str, Collection[str]]:
        blocks = {"min_block", "mask_count", "block_aspect"}
        rules = {"block": set[str](), "random": blocks, "none": blocks | {"num_masked"}}
        return {
            f"--masking {self.masking}": rules[self.masking],
            "--encoder-sees all": {"decoder_depth", "decoder_width"} if self.encoder_sees == "all" else (),
            "--target pixels": {"token_image_size", "token_cache"} if self.target == "pixels" else (),
            "a run without --init": {"layer_decay"} if self.init is None else (),
        }

    def hidden_patches(self) -> int | None:
        """`num_masked` as a count; None where it is the masking rule's own."""
        if not isinstance(self.num_masked, str):
            return self.num_masked
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", self.num_masked)
        if match is None:
            raise UserError(f"--num-masked {self.num_masked} is neither a count (49) nor a share (75%)")
        return round(float(match[1]) / 100 * math.prod(self.architecture().grid))

    def architecture(self) -> network.EncoderConfig:
        """The encoder these knobs describe."""
        return network.EncoderConfig(
            image_size=network.sides(self.image_size),
            position=self.position,
            bias=self.bias,
            **network.pixel_constants(self.normalization, self.pixels),
            **{knob.name: getattr(self, knob.name) for knob in fields(network.EncoderKnobs)},
        )
