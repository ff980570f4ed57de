"""From any format to any other that can hold the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from beit.atomic import appearing
from beit.checkpoints.foreign import dalle, formats, huggingface, timm, unilm
from beit.checkpoints.foreign.survey import Survey
from beit.checkpoints.kinds import KINDS, config_of, entry_of, kind_of, options_of
from beit.checkpoints.own import save_model
from beit.checkpoints.preparation import in_full
from beit.checkpoints.reference import Pixel, Stated, locate
from beit.checkpoints.store import open_model
from beit.config.architecture import sides
from beit.config.errors import UserError
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.position import Grid
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
    "unilm": "a unilm file is a masked image model, a classifier or a segmenter",
    "timm": "timm's BEiT is a classifier, with no mask_token and no lm_head",
    "huggingface": "Hugging Face's BEiT is a masked image model, a classifier or a segmenter",
    "dalle": "the format of DALL-E is a discrete VAE's",
}
_ELSEWHERE = {
    *("format", "kind", "tokenizer_kind", "architecture", "image_size", "pixel_mean", "pixel_std"),
    *("vocab_size", "classes", "tokenizer", "weights_sha256", "provenance", "notes", "parameters"),
    *("unknown", "missing"),
}
"""Keys of a description that a model or its file has in another way, or that are of one file alone."""


def convert(
    source: str | Path,
    destination: str | Path,
    to: Target,
    *,
    num_heads: int | None = None,
    grid: int | Grid | None = None,
    pixel_mean: Pixel | None = None,
    pixel_std: Pixel | None = None,
    layers: tuple[int, ...] | None = None,
    strict: bool = True,
    push: str | None = None,
) -> list[str]:
    """Writes the model at `source` to `destination`, a file for unilm and a folder otherwise.

    Gives a line for each thing that was adapted on the way or that the target cannot tell. Raises
    :class:`UserError` where the target cannot hold the model, and where there is something at `destination`.

    source, num_heads, grid, pixel_mean, pixel_std, layers, strict: as in :func:`beit.load_model`.
    push: owner/name of the Hugging Face Hub that the written folder is uploaded to.
    """
    target = _destination(destination, to, push)
    stated = Stated(num_heads, sides(grid), pixel_mean, pixel_std, layers, strict=strict)
    model, about, notes = open_model(locate(source, stated))
    _require_holder(model, to)
    if about["format"] != "beit":
        origin = {"converted_from": str(source), "format": about["format"]}
        about["provenance"] = origin | about["provenance"]
    extra = {key: value for key, value in about.items() if key not in {*_ELSEWHERE, *options_of(model)}}
    with appearing(target) as draft:
        notes += _write(model, about, extra, draft, to)
        notes += [] if to == "beit" else _lost(model, about, extra, draft, to)
    if push is None:
        return notes
    from beit.checkpoints.remote import hub

    return [*notes, f"uploaded to {hub.push(target, push)}"]


def _destination(destination: str | Path, to: str, push: str | None) -> Path:
    """UserError where nothing can be written there in this format."""
    if to not in get_args(Target):
        raise UserError(f"--to {to} is no format; choose one of {', '.join(get_args(Target))}")
    target = Path(destination).resolve()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{destination} exists already; choose another destination")
    if target.is_dir() and to == "unilm":
        raise UserError(f"{destination} is a folder, and unilm is a file; choose another destination")
    if push is not None and to == "unilm":
        raise UserError("--push uploads a folder, and unilm is a file; choose --to huggingface, timm or beit")
    return target


def holders(model: nn.Module) -> tuple[Target, ...]:
    """The formats that hold such a model."""
    if entry_of(model) is not None and config_of(model).channels != 3:
        return ("beit",)
    if isinstance(model, SemanticSegmenter) and model.decoder != "upernet":
        return ("beit",)
    if isinstance(model, MaskedImageModel) and model.decoder is not None:
        return ("beit",)
    if isinstance(model, VisualTokenizer) and model.kind not in ("", "dvae"):
        return ("beit",)
    return _HOLDERS.get(kind_of(model), ())


def _require_holder(model: nn.Module, to: Target) -> None:
    """UserError where the target cannot hold a model of this kind, which names those that can."""
    formats = holders(model)
    if to in formats:
        return
    remedy = f"choose --to {' or '.join(formats)}" if formats else "no format can"
    if isinstance(model, SemanticSegmenter) and to in ("unilm", "huggingface"):
        library = "the released code" if to == "unilm" else "Hugging Face's BEiT"
        head = "decode_head.up_convs" + (" and auxiliary_head" if model.auxiliary else "")
        raise UserError(f"{library} has UPerNet alone: it cannot hold SETR-PUP's {head}; {remedy}")
    if isinstance(model, MaskedImageModel) and model.decoder is not None and to in _HOLDERS["pretrained"]:
        raise UserError(
            f"{to} has masked image models that see all patches: it cannot hold this one's decoder.* "
            f"(encoder_sees visible); {remedy}"
        )
    if entry_of(model) is not None and (count := config_of(model).channels) != 3:
        raise UserError(f"{to} has models of RGB images alone: it cannot hold {count} channels; {remedy}")
    segmenter_in_timm = isinstance(model, SemanticSegmenter) and to == "timm"
    reason = "timm's BEiT has no decoders, hence no decode_head" if segmenter_in_timm else _CONTENTS[to]
    raise UserError(f"{reason}: it cannot hold a {type(model).__name__}; {remedy}")


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


def _write(model: nn.Module, about: Facts, extra: Facts, path: Path, to: Target) -> list[str]:
    classes, tokenizer = about.get("classes"), about.get("tokenizer")
    if to == "unilm":
        return unilm.write(model, path, classes, extra)
    path.mkdir()
    if to == "timm":
        return timm.write(model, path, classes, extra)
    if to == "huggingface":
        return huggingface.write(model, path, classes, extra)
    if to == "dalle":
        return dalle.write(model, path)
    provenance = about.get("provenance") or {}
    save_model(model, path, provenance=provenance, tokenizer_hash=tokenizer, classes=classes, extra=extra)
    return []
