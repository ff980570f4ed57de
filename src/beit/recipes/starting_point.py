"""The classifier that fine-tuning starts from: a pre-trained model, a classifier, or first values drawn at random."""

from __future__ import annotations

import torch

from beit.checkpoints.adapt import changes, replace_rates, resize_encoder, share_bias_out
from beit.checkpoints.describe import describe
from beit.checkpoints.store import kind_of, load_model
from beit.config import EncoderConfig, FinetuneConfig, UserError
from beit.models.encoder import BeitEncoder, init_weights
from beit.models.heads import ImageClassifier, MaskedImageModel


def starting_classifier(
    config: FinetuneConfig, classes: tuple[str, ...]
) -> tuple[ImageClassifier, list[str]]:
    """The classifier before its first step, and a line for everything that was taken over, changed or drawn."""
    if config.init is None:
        encoder = BeitEncoder(config.architecture())
        init_weights(encoder, cut=None)
        model = ImageClassifier(encoder, len(classes), config.pool, config.init_scale)
        return model, [f"from scratch: {_described(encoder.config)}", f"head for {len(classes):,} classes"]
    with changes() as adapted:
        start = load_model(config.init)
    source = getattr(start, "encoder", None)
    if not isinstance(source, BeitEncoder):
        raise UserError(
            f"--init {config.init} is a {kind_of(start)} and has no encoder; give a pre-trained model"
        )
    _require_agreement(config, source.config)
    with changes() as told:
        encoder = _adapted(config, source)
    model = ImageClassifier(encoder, len(classes), config.pool, config.init_scale)
    first = f"from {config.init} ({kind_of(start)}): {_described(source.config)}"
    return model, [first, *adapted, *told, *_take_over_head(model, start, config, classes)]


def _adapted(config: FinetuneConfig, encoder: BeitEncoder) -> BeitEncoder:
    """The loaded encoder as fine-tuning wants it."""
    if config.image_size is not None:
        encoder = resize_encoder(encoder, (config.image_size, config.image_size))
    if encoder.config.position == "shared_bias" and config.position != "shared_bias":
        encoder = share_bias_out(encoder)
    return replace_rates(encoder, drop_path_rate=config.drop_path_rate, dropout=config.dropout)


@torch.no_grad()
def _take_over_head(
    model: ImageClassifier, start: torch.nn.Module, config: FinetuneConfig, classes: tuple[str, ...]
) -> list[str]:
    """Keep what a classifier knows of the same classes, and a norm that reads the same features."""
    if isinstance(start, MaskedImageModel):
        if model.norm is None:
            return [f"new norm and head for {len(classes):,} classes, on the mean of the patches"]
        model.norm.load_state_dict(start.norm.state_dict())
        return [f"norm kept, new head for {len(classes):,} classes, on the class token"]
    if not isinstance(start, ImageClassifier):
        return [f"new head for {len(classes):,} classes"]
    assert config.init is not None
    if start.pool != model.pool:
        return [
            f"new norm and head for {len(classes):,} classes: --pool {model.pool} instead of {start.pool}"
        ]
    for mine, its in ((model.fc_norm, start.fc_norm), (model.norm, start.norm)):
        if mine is not None and its is not None:
            mine.load_state_dict(its.state_dict())
    names = describe(config.init).get("classes")
    known = None if names is None else tuple(names)
    if known == classes:
        model.head.load_state_dict(start.head.state_dict())
        return [f"head kept: the same {len(classes):,} classes"]
    old = "other" if known else "unnamed"
    return [f"head for {start.num_classes:,} {old} classes replaced by a new one for {len(classes):,}"]


def _require_agreement(config: FinetuneConfig, found: EncoderConfig) -> None:
    """UserError where a knob of the architecture contradicts the encoder of `init`."""
    for name, fields in config.stated().items():
        for field, value in fields.items():
            present = getattr(found, field)
            expanded = field == "position" and (present, value) == ("shared_bias", "block_bias")
            if value != present and not expanded:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} {getattr(config, name)} contradicts --init {config.init}, whose encoder has {field} "
                    f"{present}; drop {flag}, or drop --init to train from scratch"
                )


def _described(config: EncoderConfig) -> str:
    height, width = config.image_size
    return (
        f"{config.depth} blocks of width {config.width}, {height}x{width} px in {config.patch_size}x"
        f"{config.patch_size} patches"
    )
