"""The classifier or segmenter that fine-tuning starts with, and what it keeps of another."""

import torch
from torch import nn

from beit.checkpoints.adapt import drop_norm, take_over
from beit.checkpoints.store import describe
from beit.config.errors import UserError
from beit.config.finetune import FinetuneConfig
from beit.config.segment import SegmentConfig
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter, released_layers
from beit.stages.start.encoder import starting_encoder

PUP_CHANNELS = 256
"""Width of SETR's decoder."""


def starting_classifier(config: FinetuneConfig, classes: tuple[str, ...]) -> tuple[ImageClassifier, list[str]]:
    """The classifier before its first step, and a line for everything that was taken over, changed or drawn."""
    encoder, start, notes = starting_encoder(config)
    pool = config.pool or (start.pool if isinstance(start, ImageClassifier) else "mean")
    model = ImageClassifier(encoder, len(classes), pool, config.init_scale, config.init_scheme)
    if start is None:
        return model, [*notes, f"head for {len(classes):,} classes"]
    return model, [*notes, _take_over_head(model, start, config, classes)]


def starting_segmenter(config: SegmentConfig, classes: tuple[str, ...]) -> tuple[SemanticSegmenter, list[str]]:
    """The segmenter before its first step, and a line for everything that was taken over, changed or drawn."""
    encoder, start, notes = starting_encoder(config)
    drop_norm(encoder)  # which the decoder does not read
    upernet = config.decoder == "upernet"
    layers = config.layers
    if layers is None:
        layers = released_layers(config.decoder, encoder.config.depth)
        if not upernet and not config.auxiliary_weight:
            layers = layers[-1:]  # the others are for auxiliary heads
    channels = config.channels or (encoder.config.width if upernet else PUP_CHANNELS)
    dropout = config.head_dropout
    model = SemanticSegmenter(
        encoder,
        len(classes),
        decoder=config.decoder,
        layers=layers,
        channels=channels,
        transposed=config.transposed,
        auxiliary=config.auxiliary_weight > 0,
        dropout=(0.1 if upernet else 0.0) if dropout is None else dropout,
    )
    blocks, last = [*map(str, layers)], encoder.config.depth - 1
    if layers[-1] != last:  # blocks above those that the decoder reads would never learn
        raise UserError(f"--layers {' '.join(blocks)} must end with the last block of the encoder, {last}")
    about = f"{channels} channels on blocks {', '.join(blocks)}, {len(classes):,} classes"
    return model, [*notes, _take_over_decoder(model, start, config, classes, f"{config.decoder} decoder of {about}")]


@torch.no_grad()
def _take_over_head(
    model: ImageClassifier, start: nn.Module, config: FinetuneConfig, classes: tuple[str, ...]
) -> str:
    """Keep what a classifier knows of the same classes, and a norm that reads the same features."""
    if isinstance(start, MaskedImageModel):
        if model.norm is None:
            return f"new norm and head for {len(classes):,} classes, on the mean of the patches"
        take_over(model, start, ("norm.",))
        return f"norm kept, new head for {len(classes):,} classes, on the class token"
    if not isinstance(start, ImageClassifier):
        return f"new head for {len(classes):,} classes"
    if start.pool != model.pool:
        return f"new norm and head for {len(classes):,} classes: --pool {model.pool} instead of {start.pool}"
    take_over(model, start, ("norm.", "fc_norm."))
    old_classes = _classes_of(config.init)
    if old_classes is not None and sorted(old_classes) == sorted(classes):
        rows = [old_classes.index(name) for name in classes]
        model.head.weight.copy_(start.head.weight[rows])
        model.head.bias.copy_(start.head.bias[rows])
        return f"head kept: the same {len(classes):,} classes"
    old = "other" if old_classes else "unnamed"
    return f"head for {start.num_classes:,} {old} classes replaced by a new one for {len(classes):,}"


def _take_over_decoder(
    model: SemanticSegmenter, start: nn.Module | None, config: SegmentConfig, classes: tuple[str, ...], decoder: str
) -> str:
    """Keep the decoder of a segmenter that has the same one for the same classes. `decoder` is its name in words."""
    if not isinstance(start, SemanticSegmenter):
        return f"new {decoder}"
    shape = ("decoder", "layers", "channels", "transposed", "auxiliary")
    if different := [name for name in shape if getattr(start, name) != getattr(model, name)]:
        return f"new {decoder}, for that of --init differs in {', '.join(different)}"
    if _classes_of(config.init) != classes:
        return f"new {decoder}, for that of --init has other classes"
    take_over(model, start, ("pyramid.", "decode_head.", "auxiliary_head."))
    return f"kept {decoder}"


def _classes_of(init: str | None) -> tuple[str, ...] | None:
    """The class names of a model, where it has them."""
    names = describe(str(init)).get("classes")
    return None if names is None else tuple(map(str, names))
