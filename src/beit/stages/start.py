"""What training a task starts from: a pre-trained model, one trained on such a task, or values drawn at random."""

from __future__ import annotations

import torch
from torch import nn

from beit.checkpoints.adapt import changes, expand_shared_bias, replace_rates, resize_encoder
from beit.checkpoints.store import describe, kind_of, load_model
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError, given_by
from beit.config.finetune import FinetuneConfig
from beit.config.segment import SegmentConfig
from beit.config.start import StartConfig
from beit.config.values import flag_of
from beit.models.encoder import BeitEncoder, init_weights
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter, released_layers

PUP_CHANNELS = 256
"""Width of SETR's decoder."""


def starting_classifier(
    config: FinetuneConfig, classes: tuple[str, ...]
) -> tuple[ImageClassifier, list[str]]:
    """The classifier before its first step, and a line for everything that was taken over, changed or drawn."""
    encoder, start, notes = starting_encoder(config)
    pool = config.pool or (start.pool if isinstance(start, ImageClassifier) else "mean")
    model = ImageClassifier(encoder, len(classes), pool, config.init_scale, config.init_scheme)
    if start is None:
        return model, [*notes, f"head for {len(classes):,} classes"]
    return model, [*notes, _take_over_head(model, start, config, classes)]


def starting_segmenter(
    config: SegmentConfig, classes: tuple[str, ...]
) -> tuple[SemanticSegmenter, list[str]]:
    """The segmenter before its first step, and a line for everything that was taken over, changed or drawn."""
    encoder, start, notes = starting_encoder(config)
    upernet = config.decoder == "upernet"
    layers = config.layers
    if layers is None:
        layers = released_layers(config.decoder, encoder.config.depth)
        if not upernet and not config.auxiliary_weight:
            layers = layers[-1:]  # the others are for auxiliary heads
    channels = config.channels or (encoder.config.width if upernet else PUP_CHANNELS)
    dropout = config.head_dropout
    blocks, last = " ".join(map(str, layers)), encoder.config.depth - 1
    if layers[-1] != last:  # blocks above those that the decoder reads would never learn
        raise UserError(f"--layers {blocks} must end with the last block of the encoder, {last}")
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
    encoder.gradient_checkpointing = config.gradient_checkpointing
    about = f"{channels} channels on blocks {blocks.replace(' ', ', ')}, {len(classes):,} classes"
    return model, [
        *notes,
        _take_over_decoder(model, start, config, classes, f"{config.decoder} decoder of {about}"),
    ]


def starting_encoder(config: StartConfig) -> tuple[BeitEncoder, nn.Module | None, list[str]]:
    """The encoder before its first step, the model of `config.init` that it comes from (None: drawn at random), and
    what was taken over and changed."""
    if config.init is None:
        encoder = BeitEncoder(config.architecture())
        init_weights(encoder, config.init_scheme, cut=None)
        return encoder, None, [f"from scratch: {_in_words(encoder.config)}"]
    with given_by("--init"), changes() as loading:
        start = load_model(config.init)
    source = getattr(start, "encoder", None)
    if not isinstance(source, BeitEncoder):
        raise UserError(
            f"--init {config.init} is a {kind_of(start)} and has no encoder; give a pre-trained model"
        )
    _require_agreement(config, source.config)
    with changes() as adapting:
        encoder = source if config.stated_size is None else resize_encoder(source, config.stated_size)
        if encoder.config.bias == "shared" and config.stated().get("bias") != "shared":
            encoder = expand_shared_bias(encoder)
        encoder = replace_rates(encoder, drop_path_rate=config.drop_path_rate, dropout=config.dropout)
    first = f"from {config.init} ({kind_of(start)}): {_in_words(source.config)}"
    return encoder, start, [first, *loading, *adapting, *_freeze(config, encoder)]


def _freeze(config: StartConfig, encoder: BeitEncoder) -> list[str]:
    """Freeze what the configuration says of `encoder`, and say so."""
    if config.freeze is None:
        return []
    depth = encoder.config.depth
    blocks = depth if config.freeze == "all" else config.freeze
    if blocks > depth:
        raise UserError(
            f"--freeze {blocks} of the {depth} blocks of {config.init}; choose 0 to {depth}, or all"
        )
    encoder.freeze(blocks)
    return [f"patches, positions and {blocks} of {depth} blocks are frozen"]


# ------------------------------------------------------------------------------------------------------------
# Heads


@torch.no_grad()
def _take_over_head(
    model: ImageClassifier, start: nn.Module, config: FinetuneConfig, classes: tuple[str, ...]
) -> str:
    """Keep what a classifier knows of the same classes, and a norm that reads the same features."""
    if isinstance(start, MaskedImageModel):
        if model.norm is None:
            return f"new norm and head for {len(classes):,} classes, on the mean of the patches"
        model.norm.load_state_dict(start.norm.state_dict())
        return f"norm kept, new head for {len(classes):,} classes, on the class token"
    if not isinstance(start, ImageClassifier):
        return f"new head for {len(classes):,} classes"
    assert config.init is not None
    if start.pool != model.pool:
        return f"new norm and head for {len(classes):,} classes: --pool {model.pool} instead of {start.pool}"
    for norm, source in ((model.fc_norm, start.fc_norm), (model.norm, start.norm)):
        if norm is not None and source is not None:
            norm.load_state_dict(source.state_dict())
    old_classes = _classes_of(config.init)
    if old_classes is not None and sorted(old_classes) == sorted(classes):
        rows = [old_classes.index(name) for name in classes]
        model.head.weight.copy_(start.head.weight[rows])
        model.head.bias.copy_(start.head.bias[rows])
        return f"head kept: the same {len(classes):,} classes"
    old = "other" if old_classes else "unnamed"
    return f"head for {start.num_classes:,} {old} classes replaced by a new one for {len(classes):,}"


def _take_over_decoder(
    model: SemanticSegmenter,
    start: nn.Module | None,
    config: SegmentConfig,
    classes: tuple[str, ...],
    decoder: str,
) -> str:
    """Keep the decoder of a segmenter that has the same one for the same classes. `decoder` is its name in words."""
    if not isinstance(start, SemanticSegmenter):
        return f"new {decoder}"
    assert config.init is not None
    different = [
        name
        for name in ("decoder", "layers", "channels", "transposed", "auxiliary")
        if getattr(start, name) != getattr(model, name)
    ]
    if different:
        return f"new {decoder}, for that of --init differs in {', '.join(different)}"
    if _classes_of(config.init) != classes:
        return f"new {decoder}, for that of --init has other classes"
    own = {name: value for name, value in start.state_dict().items() if not name.startswith("encoder.")}
    model.load_state_dict(model.state_dict() | own)
    return f"kept {decoder}"


def _classes_of(init: str) -> tuple[str, ...] | None:
    """The class names of a model, where it has them."""
    names = describe(init).get("classes")
    return None if names is None else tuple(map(str, names))


# ------------------------------------------------------------------------------------------------------------
# What is refused


def _require_agreement(config: StartConfig, encoder: EncoderConfig) -> None:
    """UserError where a knob of the architecture contradicts the encoder of `init`."""
    if isinstance(config, SegmentConfig):
        config.require_whole_patches(encoder.patch_size)
    for field, value in config.stated().items():
        present = getattr(encoder, field)
        is_expanded = field == "bias" and (present, value) == ("shared", "block")
        if value != present and not is_expanded:
            name = "normalization" if field.startswith("pixel_") else field
            name = "position" if field == "bias" and config.bias is None else name
            flag = flag_of(name)
            raise UserError(
                f"{flag} {getattr(config, name)} contradicts --init {config.init}, whose encoder has {field} "
                f"{present}; drop {flag}, or drop --init to train from scratch"
            )


def encoder_facts(config: EncoderConfig) -> dict[str, str]:
    """What a run that continues needs of the model it started from: architecture and pixels. Weights are in its
    checkpoints."""
    pixels = f"pixels around {config.pixel_mean} by {config.pixel_std}"
    return {
        "encoder": f"{_in_words(config)}, {config.num_heads} heads, {config.positions} positions, {pixels}"
    }


def rates(config: StartConfig, encoder: BeitEncoder) -> str:
    """How fast the layers learn, for the announcement."""
    if config.init is None:
        return "every layer learns at the full rate (--layer-decay is for --init)"
    depth, frozen = encoder.config.depth, encoder.frozen_blocks
    if frozen == depth:
        return "the head alone learns, at the full rate"
    lowest, above = ("patches", depth + 1) if config.freeze is None else (f"block {frozen}", depth - frozen)
    slowest = config.layer_decay**above
    return f"layers learn at {slowest:.2g} of the rate ({lowest}) to 1 (head), {config.layer_decay:g} a layer"


def _in_words(config: EncoderConfig) -> str:
    height, width = config.image_size
    return (
        f"{config.depth} blocks of width {config.width}, {height}x{width} px in {config.patch_size}x"
        f"{config.patch_size} patches"
    )
