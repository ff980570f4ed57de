"""Every knob of every verb, as frozen dataclasses: the command line, the Python API and the YAML on disk.

A field's docstring is its help text. Defaults are the released BEiT-base recipe unless a line says otherwise;
:mod:`beit.presets` holds the other recipes. Nothing here imports torch, so that ``beit --help`` stays fast.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal


class UserError(ValueError):
    """A mistake that the user can mend, told in one line that names the flag or file and the remedy.

    The command line prints the message alone and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that cannot go on, told in one line; exit status 1."""


class Interrupted(RuntimeError):
    """A run that was stopped from outside and saved its state; the same command continues it. Status 75."""


# ------------------------------------------------------------------------------------------------------------
# Architectures: saved with the weights.


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Architecture of a :class:`beit.BeitEncoder` (paper section 2.5 and table 12; defaults: BEiT-base)."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels that the position information is stored for; multiples of `patch_size`."""
    patch_size: int = 16
    """Side of a square patch in pixels."""
    width: int = 768
    """Channels of every token."""
    depth: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of `width`."""
    position: Literal["shared_bias", "block_bias", "absolute", "none"] = "shared_bias"
    """One relative position bias for all blocks, one for each block, learned absolute embeddings, or none."""
    layer_scale_init: float | None = 0.1
    """First value of LayerScale; null for none (the paper's plain ViT)."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout after the MLP and the attention projection."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from images in [0, 1], per channel."""
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides images after the subtraction, per channel."""

    def __post_init__(self) -> None:
        if any(side % self.patch_size or side <= 0 for side in self.image_size):
            raise UserError(
                f"--image-size {'x'.join(map(str, self.image_size))} is not a multiple of "
                f"--patch-size {self.patch_size}; choose a multiple"
            )
        if self.width % self.num_heads:
            raise UserError(f"--width {self.width} is not divisible by --num-heads {self.num_heads}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig:
    """Architecture of a :class:`beit.tokenizers.DiscreteVAE` (DALL-E, arXiv 2102.12092; defaults: OpenAI's)."""

    vocab_size: int = 8192
    """Entries of the codebook."""
    width: int = 256
    """Channels after the first layer; each group of blocks doubles them."""
    stride: int = 8
    """Pixels per token along each axis; a power of two. The number of groups is log2(stride) + 1."""
    blocks_per_group: int = 2
    """Residual blocks in each group."""
    code_width: int = 128
    """Channels of a codebook entry as the decoder receives it."""
    image_size: tuple[int, int] = (112, 112)
    """Height and width in pixels that the tokenizer is meant for; it runs at any multiple of `stride`."""

    def __post_init__(self) -> None:
        if self.stride < 2 or self.stride & (self.stride - 1):
            raise UserError(f"--stride {self.stride} is not a power of two of at least 2")
        if any(side % self.stride or side <= 0 for side in self.image_size):
            raise UserError(
                f"tokenizer image size {'x'.join(map(str, self.image_size))} is not a multiple of "
                f"--stride {self.stride}"
            )
        if self.width % 4:
            raise UserError(f"--width {self.width} of a tokenizer must be a multiple of 4")


# ------------------------------------------------------------------------------------------------------------
# Runs: what `beit VERB` takes.


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how much damage among them is bearable."""

    data: str | tuple[str, ...]
    """Folders of images, tar shards (`shards-{000..099}.tar`), torchvision data sets by name, or `demo`."""
    limit: int | None = None
    """Use only this many images: a fixed choice, spread over the set."""
    holdout: float = 0.05
    """Share of the images held back for evaluation where the data has no split of its own."""
    max_bad: float = 0.05
    """Stop when more than this share of the images cannot be read."""
    max_megapixels: float = 64.0
    """Refuse images larger than this many million pixels."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("--data names no images; give a folder, tar shards, a data set's name, or demo")
        require(self.limit is None or self.limit > 0, "--limit must be positive")
        require(0 < self.holdout < 1, "--holdout is a share between 0 and 1")
        require(0 <= self.max_bad <= 1, "--max-bad is a share between 0 and 1")

    @property
    def sources(self) -> tuple[str, ...]:
        """`data` as a tuple, however it was given."""
        return (self.data,) if isinstance(self.data, str) else tuple(self.data)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig):
    """What every training verb shares: length, optimiser, machine, and what is written when."""

    out: str
    """The run directory. The same command on a directory that holds a run continues it."""

    epochs: float | None = None
    """Length in passes over the images. Excludes `steps`."""
    steps: int | None = None
    """Length in optimiser steps. Excludes `epochs`."""
    batch_size: int = 2048
    """Images per optimiser step over all devices and accumulation steps."""
    accumulate: int = 1
    """Split every device's share of the batch into this many passes, to save memory."""

    lr: float = 1.5e-3
    """Peak learning rate at a batch of `lr_batch_size`."""
    lr_batch_size: int = 2048
    """The batch that `lr` is meant for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate follows the batch size away from `lr_batch_size`."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine, scaled like `lr`."""
    warmup_epochs: float = 10.0
    """Linear warm-up from 0 in epochs; at most a fifth of the run."""
    warmup_steps: int | None = None
    """Linear warm-up in steps, instead of `warmup_epochs`."""
    weight_decay: float = 0.05
    """AdamW weight decay; biases, norms, class token and position embeddings have none."""
    beta1: float = 0.9
    """AdamW first moment."""
    beta2: float = 0.999
    """AdamW second moment."""
    clip_grad: float | None = 3.0
    """Largest norm of the gradient; null for no clipping."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights, reached as min(decay, (1 + t) / (10 + t)); null for none."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Stop at a loss or gradient that is not finite, or skip that step."""

    devices: int | Literal["auto"] = "auto"
    """Processes to start on this machine, one per GPU; auto: every GPU, or one CPU process."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bf16 where this machine is fast at it, else float32."""
    workers: int | Literal["auto"] = "auto"
    """Processes that load images, for each device. Does not change the result."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    seed: int = 0
    """Seed of everything random."""

    save_every: str = "10m"
    """Save a state to resume from every so many steps (`500`) or minutes (`10m`)."""
    keep: int = 2
    """States to keep."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    evaluations: int = 10
    """Evaluations on held-back images over the run, the last one included."""
    eval_images: int = 2048
    """Held-back images to evaluate on, at most."""
    tensorboard: bool = False
    """Also log to TensorBoard, in the run directory (needs `pip install beit[tensorboard]`)."""
    wandb: str | None = None
    """Also log to this Weights & Biases project (needs `pip install beit[wandb]`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.steps is None) != (self.epochs is None),
            "give the length of the run as either --epochs or --steps",
        )
        require((self.steps or self.epochs or 0) > 0, "--steps or --epochs must be positive")
        for flag, value in {
            "--batch-size": self.batch_size,
            "--accumulate": self.accumulate,
            "--lr-batch-size": self.lr_batch_size,
            "--keep": self.keep,
            "--log-every": self.log_every,
            "--evaluations": self.evaluations,
            "--eval-images": self.eval_images,
        }.items():
            require(value > 0, f"{flag} must be positive")
        require(self.lr > 0, "--lr must be positive")
        require(self.seed >= 0, "--seed must not be negative")
        require(self.devices == "auto" or self.devices > 0, "--devices must be positive, or auto")
        require(self.workers == "auto" or self.workers >= 0, "--workers must not be negative, or auto")
        self.save_interval()

    def save_interval(self) -> tuple[int | None, float | None]:
        """`save_every` as (steps, None) or (None, minutes)."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", self.save_every)
        if match is None or float(match[1]) <= 0 or (not match[2] and "." in match[1]):
            raise UserError(f"--save-every {self.save_every} is neither steps (500) nor minutes (10m)")
        return (None, float(match[1])) if match[2] else (int(match[1]), None)

    def scaled(self, lr: float) -> float:
        """`lr` at this run's batch size."""
        ratio = self.batch_size / self.lr_batch_size
        return lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[self.lr_scaling]


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
    """Steps, or share of the run below 1, over which the KL weight rises from 0 along a cosine."""
    temperature: float = 1.0
    """First Gumbel-softmax temperature."""
    final_temperature: float = 1 / 16
    """Last Gumbel-softmax temperature."""
    temperature_steps: int | float = 150_000
    """Steps, or share of the run below 1, over which the temperature falls along a cosine."""

    crop: Literal["dalle", "random_resized"] = "dalle"
    """dalle: a square crop at 9/8 to 12/8 of the size (appendix A.2); random_resized: any area and shape."""
    min_crop: float = 0.2
    """Smallest share of the image that a `random_resized` crop takes."""

    batch_size: int = 512
    steps: int | None = 3_000_000
    lr: float = 1e-4
    lr_batch_size: int = 512
    min_lr: float = 1.25e-6
    warmup_epochs: float = 0.0
    weight_decay: float = 1e-4
    clip_grad: float | None = None
    ema_decay: float | None = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        self.architecture()
        require(self.kl_weight >= 0, "--kl-weight must not be negative")
        require(
            0 < self.final_temperature <= self.temperature, "--temperature must fall to --final-temperature"
        )
        require(self.kl_steps > 0 and self.temperature_steps > 0, "schedule lengths must be positive")

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


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """Masked image modelling (paper sections 2.3 to 2.5; defaults: the released BEiT-base recipe)."""

    tokenizer: str | None = None
    """The visual tokenizer: a run or model directory. Not needed with `--target pixels`."""

    token_image_size: int | None = None
    """Side of the tokenizer's view in pixels; null for the size that the tokenizer was trained at."""

    image_size: int = 224
    """Side of the encoder's view in pixels."""
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
            image_size=(self.image_size, self.image_size),
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


PIXEL_STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation that encoders are trained with."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


# ------------------------------------------------------------------------------------------------------------
# Verbs that train nothing themselves.


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole story on built-in images: tokenizer, pre-training, report."""

    out: str = "demo"
    """Folder for the demo's runs and its report.html."""
    seed: int = 0
    """Seed of everything random."""
    scale: float = 1.0
    """Lengthen or shorten every stage; 1 takes a few minutes on 2 CPU cores."""

    def __post_init__(self) -> None:
        require(self.scale > 0, "--scale must be positive")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataConfig):
    """Look a data set over before anything is trained: counts, sizes, broken files, duplicates."""

    workers: int | Literal["auto"] = "auto"
    """Processes that read images."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one offline HTML page about one or several runs."""

    runs: tuple[str, ...]
    """Run directories; several are set side by side."""
    out: str | None = None
    """The page; by default report.html in the (first) run."""


@dataclass(frozen=True, kw_only=True)
class PresetsConfig:
    """List the recipes by name, with their sources."""
