"""From any format to any other that can hold the model."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from beit.atomic import appearing
from beit.checkpoints.foreign import dalle, formats, huggingface, timm, unilm
from beit.checkpoints.foreign.survey import Survey
from beit.checkpoints.kinds import KINDS, config_of, entry_of, kind_of, options_of
from beit.checkpoints.own import save_model
from beit.checkpoints.preparation import in_full
from beit.checkpoints.reference import Stated, locate
from beit.checkpoints.store import open_model
from beit.config.errors import UserError, require
from beit.config.values import counted
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.tokenizers.base import VisualTokenizer
from beit.untrusted import Facts, listed

Target = Literal["beit", "unilm", "timm", "huggingface", "dalle"]
_HOLDERS: Mapping[str, tuple[Target, ...]] = {
    "tokenizer": ("dalle", "beit"),
    "pretrained": ("unilm", "huggingface", "beit"),
    "classifier": ("unilm", "timm", "huggingface", "beit"),
    "segmenter": ("unilm", "huggingface", "beit"),
    "probe": ("beit",),
}
_CONTENTS: Mapping[Target, str] = {
    "beit": f"our own format holds a {', '.join(KINDS)}",
    "unilm": "a unilm file is a masked image model, a classifier or a segmenter with UPerNet",
    "timm": "timm's BEiT is a classifier, with no mask_token, no lm_head and no decode_head",
    "huggingface": "Hugging Face's BEiT is a masked image model, a classifier or a segmenter with UPerNet",
    "dalle": "the format of DALL-E is a discrete VAE's",
}
_WRITERS = {"unilm": unilm.write, "timm": timm.write, "huggingface": huggingface.write, "dalle": dalle.write}
_ELSEWHERE = {
    *("format", "kind", "tokenizer_kind", "architecture", "image_size", "pixel_mean", "pixel_std"),
    *("vocab_size", "classes", "tokenizer", "weights_sha256", "provenance", "notes", "parameters"),
    *("unknown", "missing"),
}
"""Keys of a description that a model or its file has in another way, or that are of one file alone."""


def convert(source: str | Path, destination: str | Path, to: Target) -> list[str]:
    """Writes the model at `source` to `destination`, a file for unilm and a folder otherwise.

    Gives a line for each thing that was adapted on the way or that the target cannot tell. Raises
    :class:`UserError` where the target cannot hold the model, and where there is something at `destination`.

    source: as in :func:`beit.load_model`; PATH@NAME=VALUE says what its file cannot tell.
    """
    target = _destination(destination, to)
    model, about, notes = open_model(*locate(source))
    if to not in (formats := holders(model)):
        what = _of_our_own(model) or f"a {type(model).__name__}"
        remedy = f"choose --to {' or '.join(formats)}" if formats else "no format can"
        raise UserError(f"{_CONTENTS[to]}: it cannot hold {what}; {remedy}")
    if about["format"] != "beit":
        origin = {"converted_from": str(source), "format": about["format"]}
        about["provenance"] = origin | about["provenance"]
    extra = {key: value for key, value in about.items() if key not in {*_ELSEWHERE, *options_of(model)}}
    with appearing(target) as draft:
        if to == "beit":
            named = {"tokenizer_hash": about.get("tokenizer"), "classes": about.get("classes")}
            save_model(model, draft, provenance=about.get("provenance") or {}, **named, extra=extra)
        else:
            notes += _WRITERS[to](model, draft, about.get("classes"), extra)
            notes += _lost(model, about, extra, draft, to)
    return notes


def _destination(destination: str | Path, to: str) -> Path:
    """UserError where nothing can be written there in this format."""
    require(to in _CONTENTS, f"--to {to} is no format; choose one of {', '.join(_CONTENTS)}")
    target = Path(destination).resolve()
    taken = target.exists() and (target.is_file() or to == "unilm" or any(target.iterdir()))
    require(not taken, f"{destination} exists already; choose another destination")
    return target


def holders(model: nn.Module) -> tuple[Target, ...]:
    """The formats that hold such a model."""
    return ("beit",) if _of_our_own(model) else _HOLDERS.get(kind_of(model), ())


def _of_our_own(model: nn.Module) -> str | None:
    """What of a model no format but ours has a place for, in words."""
    if isinstance(model, SemanticSegmenter) and model.decoder != "upernet":
        return "SETR-PUP's decode_head.up_convs" + (" and auxiliary_head" if model.auxiliary else "")
    if isinstance(model, MaskedImageModel) and model.decoder is not None:
        return "decoder.* of one that sees visible patches alone"
    if isinstance(model, VisualTokenizer) and model.kind not in ("", "dvae"):
        return f"a {type(model).__name__}"
    channels = 3 if entry_of(model) is None else config_of(model).channels
    return f"{counted(channels, 'channel')}, for it is of RGB images" if channels != 3 else None


def _lost(model: nn.Module, about: Facts, extra: Facts, path: Path, to: Target) -> list[str]:
    """Lines for what the file at `path` does not tell: what has to be stated, and what is not known any more or taken
    for something else when it is read."""
    stated, contents = _needed(model, extra, path)
    notes = []
    if stated.names():
        notes.append(f"the file cannot tell {', '.join(stated.names())}: load it as PATH{stated.text()}")
    eps = getattr(getattr(model.encoder, "config", None), "layer_norm_eps", None)
    if eps != getattr(contents.config, "layer_norm_eps", None):
        notes.append(f"{to} computes with a LayerNorm eps of 1e-6, not {eps:g}: outputs differ a little")
    before = {**in_full(model, extra), "classes": about.get("classes"), "tokenizer": about.get("tokenizer")}
    after = {**in_full(model, contents.extra), "classes": contents.classes, "tokenizer": None}
    lost = {name for name, value in before.items() if value != after.get(name)}
    return notes + ([f"{to} does not tell {listed(lost, 20)}"] if lost else [])


def _needed(model: nn.Module, extra: Facts, path: Path) -> tuple[Stated, Survey]:
    """The least that has to be stated of the file at `path` so that it is read as this model, and what it then is."""
    stated = Stated()
    if isinstance(model, MaskedImageModel | ImageClassifier | SemanticSegmenter):
        config = model.encoder.config
        stated = Stated(config.num_heads, config.grid, config.pixel_mean, config.pixel_std)
    if isinstance(model, SemanticSegmenter):
        reduces = bool(extra.get("reduce_zero_label"))
        stated = replace(stated, layers=model.layers, reduce_zero_label=reduces)
    contents = formats.survey(path, stated)
    for name in stated.names():
        nothing: dict[str, Any] = {name: None}
        fewer = replace(stated, **nothing)
        with suppress(UserError):
            if formats.survey(path, fewer).is_alike(contents):
                stated = fewer
    return stated, contents
