"""UPerNet in the files of other libraries: names of its weights, and what a file leaves to be known.

The released code (mmsegmentation) and Hugging Face have the same decoder, fixed but for its classes and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beit.checkpoints.architecture import Stated
from beit.config import EncoderConfig, UserError
from beit.models.encoder import BeitEncoder
from beit.models.segmentation import SemanticSegmenter, released_layers

_CONV_NORMS = [
    *("decode_head.psp_modules.{}.{}", "decode_head.bottleneck", "decode_head.fpn_bottleneck"),
    *("decode_head.lateral_convs.{}", "decode_head.fpn_convs.{}", "auxiliary_head.convs.{}"),
]
_HEADS = ("decode_head", "auxiliary_head")
_ADE20K_CLASSES = 150


def rows(pyramid: str, classes: str) -> list[tuple[str, str]]:
    """(Our name, theirs) of a decoder's weights. pyramid: what stands before `fpn1`; classes: their `conv_seg`."""
    return [
        *((f"pyramid.{level}.{{}}.*", f"{pyramid}{level}.{{}}.*") for level in ("fpn1", "fpn2")),
        *((f"{name}.{part}.*", f"{name}.{part}.*") for name in _CONV_NORMS for part in ("conv", "bn")),
        *((f"{head}.conv_seg.*", f"{head}.{classes}.*") for head in _HEADS),
    ]


def skeleton(
    encoder: BeitEncoder,
    shapes: Mapping[str, tuple[int, ...]],
    told: Sequence[int] | None,
    auxiliary: bool | None,
    stated: Stated,
) -> tuple[SemanticSegmenter, list[str]]:
    """The segmenter that weights of these shapes are for, and a line where the layers it reads are a guess.

    told, auxiliary: its layers and whether it has the auxiliary head, where a configuration beside the weights tells.
    """
    depth = encoder.config.depth
    layers = stated.layers or told
    notes = []
    if layers is None:
        layers = released_layers("upernet", depth)
        notes = [
            f"layers {list(layers)}, which the released code reads of {depth} blocks; the file tells none"
        ]
    elif told is not None and stated.layers not in (None, tuple(told)):
        notes = [f"layers {list(layers)}, as stated, and not {list(told)}, as its configuration has it"]
    classes = shapes["decode_head.conv_seg.weight"]
    if len(classes) != 4 or 0 in classes:
        raise UserError(f"decode_head.conv_seg.weight {classes} is no convolution to classes")
    model = SemanticSegmenter(
        encoder,
        classes[0],
        decoder="upernet",
        layers=layers,
        channels=classes[1],
        auxiliary="auxiliary_head.conv_seg.weight" in shapes if auxiliary is None else auxiliary,
    )
    return model, notes


def extra(config: EncoderConfig, num_classes: int) -> dict[str, Any]:
    """Further keys of model.json for a foreign segmenter: how the released code shows images of any size.

    The shorter side as long as the network's, windows two thirds of their side apart (512: 341; 640: 426).
    ADE20K is told by its 150 classes: its maps count from 1, with 0 for no class.
    """
    height, width = config.image_size
    return {
        "resize": min(height, width),
        "crop": [height, width],
        "stride": [height * 2 // 3, width * 2 // 3],
        "reduce_zero_label": num_classes == _ADE20K_CLASSES,
        "ignore_value": 255,
    }


def require_upernet(model: SemanticSegmenter, library: str) -> None:
    """UserError naming what would be lost where `library` cannot hold the decoder of `model`."""
    if model.decoder != "upernet":
        head = "decode_head.up_convs" + (" and auxiliary_head" if model.auxiliary else "")
        raise UserError(f"{library} has UPerNet alone: it cannot hold SETR-PUP's {head}; choose --to beit")
