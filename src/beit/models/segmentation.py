"""SemanticSegmenter: a class for every pixel. Images of any size are shown to it by :mod:`beit.models.windows`.

Shapes: B images of (H, W) pixels, C classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

import beit.models.decoders as decoders
from beit.config.architecture import MAX_DEPTH
from beit.config.errors import require
from beit.config.values import counted
from beit.models.encoder import BeitEncoder
from beit.models.heads import EncoderWithHead

Decoder = Literal["pup", "upernet"]


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


class SemanticSegmenter(EncoderWithHead):
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
        eps = encoder.config.layer_norm_eps
        pup = partial(
            decoders.PupHead, width, channels, num_classes, transposed=transposed, dropout=dropout, layer_norm_eps=eps
        )
        self.pyramid = decoders.FeaturePyramid(width, patch_size) if decoder == "upernet" else None
        self.decode_head: nn.Module
        self.auxiliary_head: nn.Module | None = None
        if decoder == "upernet":
            self.decode_head = decoders.UPerHead(width, channels, num_classes, dropout)
            if auxiliary:
                self.auxiliary_head = decoders.FCNHead(width, decoders.AUXILIARY_CHANNELS, num_classes, dropout)
        else:
            self.decode_head = pup(num_stages=max(patch_size.bit_length() - 1, 1))
            if auxiliary:
                self.auxiliary_head = nn.ModuleList(pup(num_stages=1) for _ in self.layers[:-1])
        for part in (self.pyramid, self.decode_head, self.auxiliary_head):
            if part is not None:
                decoders.init_decoder(part)

    def forward(self, images: Tensor, auxiliary: bool = False) -> Tensor | list[Tensor]:
        """(B, 3, H, W), float in [0, 1] or uint8 -> logits (B, C, H, W), float32 at least.

        H and W are any multiples of the patch size. auxiliary: gives a list, those logits and then those of every
        auxiliary head, all of the same shape.
        """
        layers = self.layers if auxiliary or self.pyramid is not None else self.layers[-1:]
        features = self.encoder.intermediates(images, layers)
        if self.pyramid is not None:
            features = self.pyramid(features)
        outputs = [self.decode_head(features[-1] if self.pyramid is None else features)]
        if auxiliary and isinstance(self.auxiliary_head, nn.ModuleList):
            outputs += [head(x) for head, x in zip(self.auxiliary_head, features[:-1], strict=True)]
        elif auxiliary and self.auxiliary_head is not None:
            outputs.append(self.auxiliary_head(features[2]))
        size = images.shape[-2:]
        logits = [decoders.resize_map(x.to(torch.promote_types(x.dtype, torch.float32)), size) for x in outputs]
        return logits if auxiliary else logits[0]


def _require_fit(decoder: str, layers: Sequence[int], depth: int, transposed: bool) -> None:
    flag = f"--layers {' '.join(map(str, layers))}"
    ascending = [*layers] == sorted(layers) and 0 < len(layers) <= MAX_DEPTH
    fitting = ascending and 0 <= layers[0] <= layers[-1] < depth
    require(fitting, f"{flag} of {counted(depth, 'block')}; give ascending numbers from 0 to {depth - 1}")
    if decoder == "upernet":
        require(len(layers) == 4, f"{flag} names {counted(len(layers), 'block')}, but UPerNet reads four; give four")
        require(not transposed, "--transposed is for --decoder pup; drop it")
