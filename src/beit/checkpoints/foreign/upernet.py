"""UPerNet in the files of other libraries: names of its weights, and what a file leaves to be known.

The released code (mmsegmentation) and Hugging Face have the same decoder, fixed but for its classes and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beit.checkpoints.reference import Stated, agreed
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.segmentation import SemanticSegmenter, released_layers
from beit.untrusted import Facts

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
    configured: Sequence[int] | None,
    auxiliary: bool | None,
    stated: Stated,
) -> tuple[SemanticSegmenter, list[str]]:
    """The segmenter that weights of these shapes are for, and a line where the layers it reads are a guess.

    configured, auxiliary: its layers and whether it has the auxiliary head, where a configuration tells.
    """
    depth = encoder.config.depth
    layers = stated.layers or configured
    notes = []
    if layers is None:
        layers = released_layers("upernet", depth)
        notes = [
            f"layers {list(layers)}, which the released code reads of {depth} blocks; the file tells none"
        ]
    elif configured is not None and stated.layers not in (None, tuple(configured)):
        notes = [f"layers {list(layers)}, as stated, and not {list(configured)}, as its configuration has it"]
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


def extra(model: SemanticSegmenter, facts: Facts, stated: Stated) -> tuple[dict[str, Any], list[str]]:
    """Further keys of model.json for a foreign segmenter: those that its file tells, and for the others how the
    released code shows images of any size; and a line where maps that count from 1 are a guess.

    The shorter side as long as the network's, windows two thirds of their side apart (512: 341; 640: 426).
    """
    height, width = model.encoder.config.image_size
    reduces = agreed("reduce_zero_label", stated.reduce_zero_label, facts.get("reduce_zero_label"))
    keys = {
        "resize": min(height, width),
        "crop": [height, width],
        "stride": [height * 2 // 3, width * 2 // 3],
        "ignore_value": 255,
        **facts,
        "reduce_zero_label": counts_from_one(model) if reduces is None else reduces,
    }
    note = (
        f"reduce_zero_label=yes is a guess, by the {model.num_classes} classes of ADE20K, where 0 is no class; "
        f"PATH@reduce_zero_label=no says otherwise"
    )
    return keys, [note] if reduces is None and counts_from_one(model) else []


def counts_from_one(model: SemanticSegmenter) -> bool:
    """Whether 0 is no class in its label maps, as far as its classes tell: they do of ADE20K."""
    return model.num_classes == _ADE20K_CLASSES
