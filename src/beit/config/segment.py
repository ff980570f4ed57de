"""`beit segment`."""

import math
from dataclasses import dataclass
from typing import Literal

from beit.config.architecture import Sides, sides
from beit.config.errors import require
from beit.config.start import StartConfig
from beit.config.values import NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, Share, ShareBelowOne

IGNORE = 255
"""Stands for "no class" in label maps, in files as in tensors."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(StartConfig):
    """Semantic segmentation (paper section 3.2; defaults: the released BEiT-base recipe with UPerNet on ADE20K)."""

    data: str | tuple[str, ...]
    """Folder with `images/{training,validation}` and `annotations/{training,validation}` (names as of ADE20K; label
    maps with a class number in each pixel), or `demo`: the built-in set."""
    init: str | None = None
    """Start from this run or model, pre-trained, a classifier or a segmenter, ours or not (as SOURCE of `beit
    convert`)."""

    classes: str | None = None
    """File of classes (csv or tsv): first the line `value,name` or `value,name,r,g,b`, then one for each class; null:
    the one in the data's folder."""
    reduce_zero_label: bool = False
    """Value 0 of a label map is to be ignored, and value 1 is the first class (ADE20K's convention)."""

    decoder: Literal["upernet", "pup"] = "upernet"
    """UPerNet (released code), or progressive upsampling (SETR-PUP, the paper's tables)."""
    layers: tuple[int, ...] | None = None
    """Blocks that the decoder reads (0 the first), the last block last; null: blocks 3, 5, 7, 11 of 12 for UPerNet
    (released code) and 2, 5, 8, 11 for PUP, and in proportion for another depth."""
    channels: PositiveInt | None = None
    """Width of the decoder; null for the encoder's width (UPerNet) or 256 (PUP)."""
    transposed: bool = False
    """PUP enlarges by transposed convolutions, as the paper's text says, instead of bilinearly (SETR's code)."""
    head_dropout: ShareBelowOne | None = None
    """Dropout of whole channels before the decoder's last layer; null for 0.1 (UPerNet) or 0 (PUP)."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Weight of the loss of each auxiliary head; 0 for none."""

    crop: PositiveInt | Sides | None = None
    """Side, or height and width, of the crops to train on and of the windows of evaluation, in pixels; null for
    the image size of `init`."""
    resize: PositiveInt | None = None
    """Bring the shorter side of every image to so many pixels first; null leaves images as they are."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which a training image is resized besides."""
    category_share: PositiveShare = 0.75
    """Draw another crop (up to ten) when one class covers more than this share of it."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Change brightness, contrast, saturation and hue."""

    window: Literal["slide", "whole"] = "slide"
    """Judge images in overlapping windows of the size of a crop, or in one pass."""
    stride: PositiveInt | Sides | None = None
    """Steps between windows, down and across; null for two thirds of a window."""

    steps: int | None = 160_000
    batch_size: int = 16
    lr: float = 7e-4
    lr_batch_size: int = 16
    min_lr: float = 0.0
    """Learning rate at the end, scaled like `lr`."""
    power: PositiveFloat = 1.0
    """The learning rate falls as (1 - share of the run) to this power; 1 is a straight line."""
    warmup_epochs: float | None = None
    warmup_steps: int | float | None = 1500

    SIZE = "crop"

    def check(self) -> None:
        if self.patch_size is not None:
            self.require_whole_patches(self.patch_size)
        super().check()
        smallest, largest = self.scale
        scale = f"--scale {smallest} {largest}"
        finite = 0 < smallest < math.inf and 0 < largest < math.inf
        require(finite, f"{scale}: both must be finite and above 0")
        require(smallest <= largest, f"{scale}: name the smaller first")
        slides = self.window == "slide" or self.stride is None
        require(slides, "--stride is for --window slide; drop it, or drop --window")

    def require_whole_patches(self, patch: int) -> None:
        """UserError unless a crop holds whole patches of `patch` pixels."""
        height, width = self.stated_size or (patch, patch)
        near = " ".join(str(max(1, round(side / patch)) * patch) for side in (height, width))
        problem = f"--crop {height} {width} does not hold whole patches of {patch} px; choose --crop {near}"
        require(height % patch == width % patch == 0, problem)

    def strides(self, crop: Sides) -> Sides | None:
        """Steps between windows of the size `crop`; None to judge images in one pass."""
        if self.window == "whole":
            return None
        down, right = sides(self.stride) or self.two_thirds(crop)
        gaps = f"is larger than the windows of {crop[0]}x{crop[1]} px and would leave gaps; choose a smaller one"
        require(down <= crop[0] and right <= crop[1], f"--stride {down} {right} {gaps}")
        return down, right

    @staticmethod
    def two_thirds(crop: Sides) -> Sides:
        """Steps between windows of the size `crop` in the released code: 341 px for 512, 426 for 640."""
        return max(1, crop[0] * 2 // 3), max(1, crop[1] * 2 // 3)
