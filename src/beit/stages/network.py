"""The network of a model that pre-training or a tokenizer goes on from: knobs of theirs that are not chosen."""

from dataclasses import fields
from typing import Any

from beit.checkpoints.store import describe
from beit.config.architecture import PIXEL_STATISTICS, DiscreteVAEKnobs, sides
from beit.config.errors import UserError
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig
from beit.config.tokenizer import TokenizerConfig
from beit.config.values import flag_of
from beit.presets import Facts, Values

KNOBS = ("patch_size", "width", "depth", "num_heads", "mlp_ratio", "layer_scale_init", "position", "bias")
"""What makes an encoder, of the fields of an EncoderConfig that are knobs of `beit pretrain` as well."""
TOKENIZER_KNOBS = [knob.name for knob in fields(DiscreteVAEKnobs)]


def facts_of_start(config: TrainingConfig, init: str) -> Facts:
    """What `auto` is told of `init`. UserError where that is no model."""
    about = describe(init)
    known = about["architecture"]
    size, patch = sides(known.get("image_size")), known.get("patch_size")
    return Facts(width=known.get("width"), size=size, patch=patch, network=network_of(config, about))


def network_of(config: TrainingConfig, start: Values) -> Values:
    """The knobs that `config` takes from `start`, the description of its `init`; none where that is of another kind,
    or becomes a part of another network, as the encoder of a task."""
    network, is_tokenizer = start["architecture"], start["kind"] == "tokenizer"
    sees = ("encoder_sees", "decoder_depth", "decoder_width")
    if isinstance(config, PretrainConfig) and "num_heads" in network:
        pixels = tuple(tuple(network[name]) for name in ("pixel_mean", "pixel_std"))
        return {
            **{name: network[name] for name in KNOBS},
            "image_size": tuple(network["image_size"]),
            "normalization": next((name for name, x in PIXEL_STATISTICS.items() if x == pixels), None),
            **{name: start[name] for name in sees if start.get(name) is not None},
        }
    if isinstance(config, TokenizerConfig) and is_tokenizer and "code_width" in network:
        kind = {"kind": start.get("tokenizer_kind", "dvae"), "image_size": network["image_size"][0]}
        return {name: network[name] for name in TOKENIZER_KNOBS if name in network} | kind
    return {}


def require_equal(config: Any, field: str, value: Any, present: Any) -> None:
    """UserError where the network of `init` has another `value` of a `field` than the one that is stated."""
    if value == present:
        return
    name = "normalization" if field.startswith("pixel_") else field
    name = "position" if field == "bias" and config.bias is None else name
    flag = flag_of(name)
    both = f"{flag} {getattr(config, name)} contradicts --init {config.init}, whose network has {field} {present}"
    raise UserError(f"{both}; drop {flag}, or drop --init to train from scratch")
