"""From maps of features to a class for every cell: UPerNet with its feature pyramid, FCN, and SETR-PUP.

Shapes: B images, D channels of a feature map, C classes, (h, w) cells of a map. Names of weights are those of the
released ADE20K models. Convolutions with a batch norm have no bias of their own.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL_SCALES = (1, 2, 3, 6)
"""Sides of the maps that UPerNet pools the last features to."""
AUXILIARY_CHANNELS = 256


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU: (B, in_channels, h, w) -> (B, channels, h, w), or twice as high and wide
    where `doubling`, by a transposed convolution of 4 x 4."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, doubling: bool = False) -> None:
        super().__init__()
        self.conv: nn.Conv2d | nn.ConvTranspose2d = (
            nn.ConvTranspose2d(in_channels, channels, kernel_size=4, stride=2, padding=1, bias=False)
            if doubling
            else nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        )
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(features)))


class FeaturePyramid(nn.Module):
    """Four maps (B, D, h, w) of a plain transformer -> four maps of which each has half the side of the one before.

    The first has a cell for every 4 pixels where the patch size is a power of two: doubled by transposed
    convolutions, or pooled (released code, for patches of 16: x4, x2, x1, /2).
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        doublings = round(math.log2(patch_size)) - 2
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = (_rescaling(width, doublings - i) for i in range(4))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [level(x) for level, x in zip(levels, features, strict=True)]


class UPerHead(nn.Module):
    """UPerNet (Xiao et al. 2018): a pyramid of four maps (B, D, h_i, w_i) -> logits (B, C, h_0, w_0).

    The last map is joined by what it is on average over the whole image and its parts; then every map gets the
    coarser ones added, from the top down, and all are read together.
    """

    def __init__(self, width: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNorm(width, channels, 1)) for side in POOL_SCALES
        )
        self.bottleneck = ConvNorm(width + len(POOL_SCALES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(width, channels, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(3))
        self.fpn_bottleneck = ConvNorm(4 * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        *lower, top = pyramid
        pooled = [resize_map(module(top), top.shape[-2:]) for module in self.psp_modules]
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, lower, strict=True)]
        laterals.append(self.bottleneck(torch.cat([top, *pooled], dim=1)))
        for above, below in pairwise(reversed(range(4))):
            laterals[below] = laterals[below] + resize_map(laterals[above], laterals[below].shape[-2:])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals[:3], strict=True)]
        size = levels[0].shape[-2:]
        joined = torch.cat([resize_map(x, size) for x in (*levels, laterals[3])], dim=1)
        return cast(Tensor, self.conv_seg(self.dropout(self.fpn_bottleneck(joined))))


class FCNHead(nn.Module):
    """One convolution, then classes (Long et al. 2015): (B, D, h, w) -> logits (B, C, h, w)."""

    def __init__(self, width: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvNorm(width, channels, 3)])
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.conv_seg(self.dropout(self.convs[0](features))))


class PupHead(nn.Module):
    """Progressive upsampling (SETR-PUP, Zheng et al. 2021; paper section 2.6): norm, then `num_stages` convolutions
    of which each is followed by a doubling, then classes: (B, D, h, w) -> logits (B, C, h', w').

    With bilinear doublings (SETR) the last of them is left to whoever resizes the logits to the image:
    h' = h 2^(num_stages - 1). Bilinear resizing and a convolution of 1 x 1 commute, for the weights of the former
    add up to one, and at a quarter of the cells the latter is a quarter of the work. `transposed` makes every
    stage one transposed convolution that doubles ("several deconvolution layers", as the paper has it):
    h' = h 2^num_stages.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        num_classes: int,
        *,
        num_stages: int,
        transposed: bool,
        dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.transposed = transposed
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.up_convs = nn.ModuleList(
            ConvNorm(channels if stage else width, channels, 3, doubling=transposed) for stage in range(num_stages)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        # Channels last is how an encoder's maps lie in memory.
        features = self.norm(features.movedim(1, -1)).movedim(-1, 1)
        for stage, conv in enumerate(self.up_convs):
            if stage and not self.transposed:
                height, width = features.shape[-2:]
                features = resize_map(features, (2 * height, 2 * width))
            features = conv(features)
        return cast(Tensor, self.conv_seg(self.dropout(features)))


def resize_map(features: Tensor, size: Sequence[int]) -> Tensor:
    """(B, D, h, w) -> (B, D, *size), bilinear between the centres of cells."""
    if features.shape[-2:] == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def init_decoder(decoder: nn.Module) -> None:
    """Draws first values as the released code does through mmsegmentation:

    ===========================================  ================================================================
    convolution with a batch norm                normal(0, sqrt(2 / fan_out)) (He et al. 2015); fan_out is the first
                                                 dimension of its weight times the cells of its kernel
    conv_seg                                     weight normal(0, 0.01), bias 0
    transposed convolutions of the pyramid       torch's own: uniform +- 1 / sqrt(4 D), weight and bias
    norms                                        weight 1, bias 0 (torch's own)
    ===========================================  ================================================================
    """
    for name, module in decoder.named_modules():
        if isinstance(module, ConvNorm):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
        elif name.rpartition(".")[2] == "conv_seg":
            assert isinstance(module, nn.Conv2d) and module.bias is not None
            module.weight.normal_(0, 0.01)
            module.bias.zero_()


class _MaxPool(nn.Module):
    """Maximum of each square of cells; of a whole side where the map has fewer cells than the square."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        return F.max_pool2d(features, [min(self.side, cells) for cells in features.shape[-2:]])


def _rescaling(width: int, doublings: int) -> nn.Module:
    """A map of `width` channels made 2^doublings times as high and wide."""
    if doublings == 0:
        return nn.Identity()
    if doublings < 0:
        return _MaxPool(2**-doublings)
    layers: list[nn.Module] = [nn.ConvTranspose2d(width, width, 2, stride=2)]
    for _ in range(doublings - 1):
        layers += [nn.BatchNorm2d(width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, stride=2)]
    return nn.Sequential(*layers)
