"""The encoder that training starts with: of another model, adapted, or with values drawn at random."""

from torch import nn

from beit.checkpoints.adapt import change_channels, changes, expand_shared_bias, replace_rates, resize_encoder
from beit.checkpoints.store import encoder_of, kind_of, load_model
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError, given_by, require
from beit.config.run import TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.start import StartConfig
from beit.config.values import counted
from beit.models.encoder import BeitEncoder, init_weights
from beit.stages.network import require_equal
from beit.stages.session import PLAIN_PIXELS


def starting_encoder(config: StartConfig) -> tuple[BeitEncoder, nn.Module | None, list[str]]:
    """The encoder before its first step, the model of `config.init` that it comes from (None: drawn at random), and
    what was taken over and changed."""
    if config.init is None:
        encoder = BeitEncoder(config.architecture())
        init_weights(encoder, config.init_scheme, cut=None)
        return encoder, None, [f"from scratch: {_in_words(encoder.config)}"]
    start, source, notes = load_start(config, config.init)
    _require_agreement(config, source.config)
    with changes() as adapting:
        encoder = source if config.stated_size is None else resize_encoder(source, config.stated_size)
        if encoder.config.bias == "shared" and config.stated().get("bias") != "shared":
            encoder = expand_shared_bias(encoder)
        encoder = replace_rates(encoder, drop_path_rate=config.drop_path_rate, dropout=config.dropout)
    return encoder, start, [*notes, *adapting, *_freeze(config, encoder)]


def load_start(config: TrainingConfig, init: str) -> tuple[nn.Module, BeitEncoder, list[str]]:
    """The model of `--init`, its encoder, for images of as many channels as there are, and what it is."""
    with given_by("--init"), changes() as loading:
        start = load_model(init)
        if (source := encoder_of(start)) is None:
            raise UserError(f"{init} is a {kind_of(start)} and has no encoder; give a pre-trained model")
        source = change_channels(source, (config.pixels or PLAIN_PIXELS)["channels"])
    return start, source, [f"from {init} ({kind_of(start)}): {_in_words(source.config)}", *loading]


def _freeze(config: StartConfig, encoder: BeitEncoder) -> list[str]:
    """Freeze what the configuration says of `encoder`, and say so."""
    if config.freeze is None:
        return []
    depth = encoder.config.depth
    blocks = depth if config.freeze == "all" else config.freeze
    require(blocks <= depth, f"--freeze {blocks} of the {depth} blocks of {config.init}; choose 0 to {depth}, or all")
    encoder.freeze(blocks)
    return [f"patches, positions and {blocks} of {depth} blocks are frozen"]


def _require_agreement(config: StartConfig, encoder: EncoderConfig) -> None:
    """UserError where a knob of the architecture contradicts the encoder of `init`."""
    if isinstance(config, SegmentConfig):
        config.require_whole_patches(encoder.patch_size)
    for field, value in config.stated().items():
        present = getattr(encoder, field)
        if field != "bias" or (present, value) != ("shared", "block"):  # which is expanded
            require_equal(config, field, value, present)


def encoder_facts(config: EncoderConfig) -> dict[str, str]:
    """What a run that continues needs of the model it started from: architecture and pixels. Weights are in its
    checkpoints."""
    pixels = f"pixels around {config.pixel_mean} by {config.pixel_std}"
    heads = counted(config.num_heads, "head")
    return {"encoder": f"{_in_words(config)}, {heads}, {config.positions} positions, {pixels}"}


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
        f"{counted(config.depth, 'block')} of width {config.width}, {height}x{width} px in {config.patch_size}x"
        f"{config.patch_size} patches"
    )
