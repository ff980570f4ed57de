"""UPerNet in the files of other libraries: names of its weights, and what a file leaves to be known.

The released code (mmsegmentation) and Hugging Face have the same decoder, fixed but for its classes and width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from beit.checkpoints.foreign.shapes import Shape
from beit.checkpoints.reference import Stated, agreed
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.models.segmentation import released_layers
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


def options(
    depth: int, shapes: Mapping[str, Shape], configured: Sequence[int] | None, auxiliary: bool, stated: Stated
) -> tuple[dict[str, Any], list[str]]:
    """What a segmenter with weights of these shapes is built with, and a line where the layers it reads are a guess.

    configured: the layers that a configuration tells, if it does.
    """
    layers, notes = stated.layers or configured, []
    if layers is None:
        layers = released_layers("upernet", depth)
        notes = [f"layers {list(layers)}, which the released code reads of {depth} blocks; the file tells none"]
    classes = shapes["decode_head.conv_seg.weight"]
    if len(classes) != 4 or 0 in classes:
        raise UserError(f"decode_head.conv_seg.weight {classes} is no convolution to classes")
    sizes = {"num_classes": classes[0], "channels": classes[1]}
    return {"decoder": "upernet", "layers": layers, "auxiliary": auxiliary, **sizes}, notes


def extra(config: EncoderConfig, num_classes: int, facts: Facts, stated: Stated) -> tuple[dict[str, Any], list[str]]:
    """Further keys of model.json for a foreign segmenter: those that its file tells, and for the others how the
    released code shows images of any size; and a line where maps that count from 1 are a guess.

    The shorter side as long as the network's, windows two thirds of their side apart (512: 341; 640: 426).
    """
    height, width = config.image_size
    from_one = num_classes == _ADE20K_CLASSES  # so far as the classes tell
    reduces = agreed("reduce_zero_label", stated.reduce_zero_label, facts.get("reduce_zero_label"))
    keys = {
        "resize": min(height, width),
        "crop": [height, width],
        "stride": [height * 2 // 3, width * 2 // 3],
        "ignore_value": 255,
        **facts,
        "reduce_zero_label": from_one if reduces is None else reduces,
    }
    note = (
        f"reduce_zero_label=yes is a guess, by the {num_classes} classes of ADE20K, where 0 is no class; "
        f"PATH@reduce_zero_label=no says otherwise"
    )
    return keys, [note] if reduces is None and from_one else []
