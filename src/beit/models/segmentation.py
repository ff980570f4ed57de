"""SemanticSegmenter: a class for every pixel; and how images of any size are shown to it.

Shapes: B images of (H, W) pixels, C classes. `predict` is any function (B, 3, H, W) -> logits (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import MAX_DEPTH
from beit.config.errors import UserError
from beit.models.decoders import (
    AUXILIARY_CHANNELS,
    FCNHead,
    FeaturePyramid,
    PupHead,
    UPerHead,
    init_decoder,
    resize_map,
)
from beit.models.encoder import BeitEncoder
from beit.pixels import to_unit

Decoder = Literal["pup", "upernet"]
Predict = Callable[[Tensor], Tensor]
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of multi-scale inference (released code)."""


def released_layers(decoder: Decoder, depth: int) -> tuple[int, int, int, int]:
    """The blocks, 0 the first, that a decoder reads in an encoder of `depth` blocks.

    UPerNet: after 1/3, 1/2, 2/3 and all of them, in the released code (3, 5, 7, 11) of 12 and (7, 11, 15, 23) of 24.
    SETR-PUP: after each quarter, (2, 5, 8, 11) of 12; of 24 those of its authors, (9, 14, 19, 23).
    """
    if (decoder, depth) == ("pup", 24):
        return 9, 14, 19, 23
    first, second, third = (1 / 3, 1 / 2, 2 / 3) if decoder == "upernet" else (1 / 4, 1 / 2, 3 / 4)
    at = [max(int(depth * share + 0.5) - 1, 0) for share in (first, second, third)]
    return at[0], at[1], at[2], depth - 1


class SemanticSegmenter(nn.Module):
    """An encoder and a decoder that gives every pixel a class (paper section 2.6, table 4).

    decoder "pup", the paper's: SETR-PUP on the last of `layers`; the others have an auxiliary head each.
        Doublings by bilinear resizing, or `transposed` convolutions; as many as fit into a patch (four into 16).
    decoder "upernet", the released code's: a pyramid of exactly four `layers`; one auxiliary head on the third.
    layers: blocks of the encoder, 0 the first, in ascending order (:func:`released_layers`).
    channels: of the decoder. SETR-PUP has 256, the released UPerNet as many as the encoder.
    dropout: of whole channels before the classes. UPerNet has 0.1, SETR-PUP none.

    The decoder's first values: :func:`beit.models.decoders.init_decoder`. UPerNet's batch norms need two images
    at least in training, for they also see averages over whole images.
    Raises :class:`UserError` for layers that do not fit.
    """

    def __init__(
        self,
        encoder: BeitEncoder,
        num_classes: int,
        *,
        decoder: Decoder,
        layers: Sequence[int],
        channels: int,
        transposed: bool = False,
        auxiliary: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _require_fit(decoder, layers, encoder.config.depth, transposed)
        self.encoder = encoder
        self.num_classes = num_classes
        self.decoder = decoder
        self.layers = tuple(layers)
        self.channels = channels
        self.transposed = transposed
        self.auxiliary = auxiliary
        width, patch_size = encoder.config.width, encoder.config.patch_size

        def pup(num_stages: int) -> PupHead:
            return PupHead(
                width,
                channels,
                num_classes,
                num_stages=num_stages,
                transposed=transposed,
                dropout=dropout,
                layer_norm_eps=encoder.config.layer_norm_eps,
            )

        self.pyramid = FeaturePyramid(width, patch_size) if decoder == "upernet" else None
        self.decode_head: nn.Module
        self.auxiliary_head: nn.Module | None = None
        if decoder == "upernet":
            self.decode_head = UPerHead(width, channels, num_classes, dropout)
            if auxiliary:
                self.auxiliary_head = FCNHead(width, AUXILIARY_CHANNELS, num_classes, dropout)
        else:
            self.decode_head = pup(num_stages=max(patch_size.bit_length() - 1, 1))
            if auxiliary:
                self.auxiliary_head = nn.ModuleList(pup(num_stages=1) for _ in self.layers[:-1])
        for part in (self.pyramid, self.decode_head, self.auxiliary_head):
            if part is not None:
                init_decoder(part)

    @overload
    def forward(self, images: Tensor, auxiliary: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, auxiliary: Literal[True]) -> list[Tensor]: ...

    def forward(self, images: Tensor, auxiliary: bool = False) -> Tensor | list[Tensor]:
        """(B, 3, H, W), float in [0, 1] or uint8 -> logits (B, C, H, W), float32 at least.

        H and W are any multiples of the patch size. auxiliary: gives a list, those logits and then those of every
        auxiliary head, all of the same shape.
        """
        layers = self.layers if auxiliary or self.pyramid is not None else self.layers[-1:]
        features = self.encoder.intermediates(images, layers)
        if self.pyramid is not None:
            features = self.pyramid(features)
            outputs = [self.decode_head(features)]
        else:
            outputs = [self.decode_head(features[-1])]
        if auxiliary:
            outputs += self._auxiliary_outputs(features)
        size = images.shape[-2:]
        logits = [resize_map(x.to(torch.promote_types(x.dtype, torch.float32)), size) for x in outputs]
        return logits if auxiliary else logits[0]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The encoder's groups by depth, with the decoder in the last; see :meth:`BeitEncoder.layer_groups`."""
        *lower, last = self.encoder.layer_groups()
        own = [x for name, x in self.named_parameters() if not name.startswith("encoder.")]
        return [*lower, [*last, *own]]

    def _auxiliary_outputs(self, features: Sequence[Tensor]) -> list[Tensor]:
        if isinstance(self.auxiliary_head, nn.ModuleList):
            return [head(x) for head, x in zip(self.auxiliary_head, features[:-1], strict=True)]
        return [] if self.auxiliary_head is None else [self.auxiliary_head(features[2])]


def whole_image(model: SemanticSegmenter, images: Tensor) -> Tensor:
    """Logits (B, C, H, W) of images (B, 3, H, W) of any size, float in [0, 1] or uint8, in one pass.

    Right and below they are padded with the encoder's mean pixel, zero once normalised, to multiples of the patch.
    """
    config = model.encoder.config
    height, width = images.shape[-2:]
    down, right = -height % config.patch_size, -width % config.patch_size
    logits: Tensor
    if not down and not right:
        logits = model(images)
        return logits
    images = to_unit(images)
    mean = torch.stack([images.new_full((), value) for value in config.pixel_mean])
    padded = mean.view(1, 3, 1, 1).repeat(len(images), 1, height + down, width + right)
    padded[..., :height, :width] = images
    logits = model(padded)[..., :height, :width]
    return logits


def sliding_window(
    predict: Predict,
    images: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    *,
    max_batch: int = 8,
) -> Tensor:
    """Logits (B, C, H, W) of images (B, 3, H, W): of overlapping windows, averaged where they overlap.

    window, stride: (height, width) in pixels. The last window of a row or column ends at the edge; along an axis
    that is shorter than the window there is one, of that length (mmsegmentation's rule).
    max_batch: windows that `predict` is given at once.
    """
    if not 0 < stride[0] <= window[0] or not 0 < stride[1] <= window[1]:
        raise UserError(f"windows of {window} pixels every {stride} leave gaps; choose a smaller stride")
    height, width = (min(side, length) for side, length in zip(window, images.shape[-2:], strict=True))
    corners = [
        (image, top, left)
        for image in range(len(images))
        for top in _starts(images.shape[-2], height, stride[0])
        for left in _starts(images.shape[-1], width, stride[1])
    ]
    total: Tensor | None = None
    count = torch.zeros(images.shape[-2:], device=images.device)
    for first in range(0, len(corners), max_batch):
        batch = corners[first : first + max_batch]
        crops = [images[i, :, top : top + height, left : left + width] for i, top, left in batch]
        logits = predict(torch.stack(crops))
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], *images.shape[-2:])
        for (image, top, left), values in zip(batch, logits, strict=True):
            total[image, :, top : top + height, left : left + width] += values
            count[top : top + height, left : left + width] += image == 0
    assert total is not None
    return total.div_(count)


def multi_scale_flip(
    predict: Predict,
    images: Tensor,
    shown: Sequence[tuple[int, int]],
    *,
    flip: bool = True,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Class probabilities (B, C, H, W), averaged over images (B, 3, H, W) in the sizes `shown` and mirrored.

    shown: (height, width) of each; resized once, from `images`, so that these are to be the originals.
    size: (H, W) of the result, by default that of the images. Logits are resized to it before they are made
    probabilities, as in mmsegmentation.
    """
    height, width = images.shape[-2:]
    images = to_unit(images)
    total: Tensor | None = None
    for wanted in shown:
        scaled = _rescaled(images, wanted)
        for mirrored in (False, True) if flip else (False,):
            logits = predict(scaled.flip(-1) if mirrored else scaled)
            logits = logits.flip(-1) if mirrored else logits
            shares = resize_map(logits, size or (height, width)).softmax(dim=1)
            total = shares if total is None else total.add_(shares)
    assert total is not None
    return total.div_(len(shown) * (2 if flip else 1))


def _rescaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: `stride` apart, the last flush with the end."""
    return [*range(0, length - window, stride), length - window]


def _require_fit(decoder: str, layers: Sequence[int], depth: int, transposed: bool) -> None:
    ascending = list(layers) == sorted(layers) and 0 < len(layers) <= MAX_DEPTH
    if not ascending or not 0 <= layers[0] <= layers[-1] < depth:
        raise UserError(
            f"layers {list(layers)} of {depth} blocks; give ascending numbers from 0 to {depth - 1}"
        )
    if decoder == "upernet" and len(layers) != 4:
        raise UserError(f"UPerNet reads four layers, not {len(layers)} ({list(layers)}); give four")
    if decoder == "upernet" and transposed:
        raise UserError("transposed convolutions are SETR-PUP's; UPerNet has no such choice")
