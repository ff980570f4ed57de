"""From any format to any other that can hold the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from beit.atomic import appearing
from beit.checkpoints.description import is_own, read_description
from beit.checkpoints.foreign import dalle, huggingface, timm, unilm
from beit.checkpoints.foreign.infer import Pixel, Stated
from beit.checkpoints.foreign.key_map import listed
from beit.checkpoints.foreign.recognise import is_foreign, load_foreign, survey_foreign
from beit.checkpoints.foreign.survey import Survey
from beit.checkpoints.kinds import KINDS, kind_of, not_held
from beit.checkpoints.preparation import in_full
from beit.checkpoints.reference import Located, locate
from beit.checkpoints.remote import hub
from beit.checkpoints.store import ASKED, load_own, save_model
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.position import Grid
from beit.models.segmentation import SemanticSegmenter

Target = Literal["beit", "unilm", "timm", "huggingface", "dalle"]


class Source(NamedTuple):
    """A model, and what is known about it beside its weights."""

    model: nn.Module
    classes: Sequence[str] | None
    tokenizer: str | None
    provenance: Mapping[str, Any]
    extra: Mapping[str, Any]
    """Further keys of model.json."""
    notes: Sequence[str]


def convert(
    source: str | Path,
    destination: str | Path,
    to: Target,
    *,
    num_heads: int | None = None,
    grid: Grid | None = None,
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
    if to not in get_args(Target):
        raise UserError(f"--to {to} is no format; choose one of {', '.join(get_args(Target))}")
    target = Path(destination).resolve()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{destination} exists already; choose another destination")
    if target.is_dir() and to == "unilm":
        raise UserError(f"{destination} is a folder, and unilm is a file; choose another destination")
    if push is not None and to == "unilm":
        raise UserError("--push uploads a folder, and unilm is a file; choose --to huggingface, timm or beit")
    stated = Stated(
        num_heads=num_heads,
        grid=grid,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        layers=layers,
        strict=strict,
    )
    opened = _open(locate(source, stated), source)
    with appearing(target) as temporary:
        notes = [*opened.notes, *_write(opened, temporary, to), *_lost(opened, temporary, to)]
    return notes if push is None else [*notes, f"uploaded to {hub.push(target, push)}"]


_OURS = {"kind", "architecture", "image_size", "pixel_mean", "pixel_std", "weights_sha256"}


def _lost(source: Source, path: Path, to: Target) -> list[str]:
    """A line for what is known about the model, and is not known any more or taken for something else when the file
    at `path` is read."""
    if to == "beit":
        return []
    foreign, found = survey_foreign(path, _statement(source))
    extra = found.extra if isinstance(found, Survey) else {}
    known = {**in_full(source.model, source.extra), "classes": source.classes, "tokenizer": source.tokenizer}
    told = {**in_full(source.model, extra), "classes": foreign and foreign.classes, "tokenizer": None}
    lost = {name for name, value in known.items() if value != told.get(name)}
    return [f"{to} does not tell {listed(lost, 20)}"] if lost else []


def _statement(source: Source) -> Stated:
    """What may have to be said of a file of this model, so that it is read."""
    encoder = getattr(source.model, "encoder", None)
    if not isinstance(encoder, BeitEncoder):
        return Stated()
    said = Stated(num_heads=encoder.config.num_heads, grid=encoder.grid)
    if not isinstance(source.model, SemanticSegmenter):
        return said
    reduces = bool(source.extra.get("reduce_zero_label"))
    return dataclasses.replace(said, layers=source.model.layers, reduce_zero_label=reduces)


def _write(source: Source, path: Path, to: Target) -> list[str]:
    model = source.model
    if to == "unilm":
        return unilm.write(model, path, source.classes, source.extra)
    path.mkdir()
    if to == "timm":
        return timm.write(model, path, source.classes, source.extra)
    if to == "huggingface":
        return huggingface.write(model, path, source.classes, source.extra)
    if to == "dalle":
        return dalle.write(model, path)
    if kind_of(model) not in KINDS:
        raise UserError(f"our own format holds a {', '.join(KINDS)}: {not_held(model, to)}")
    save_model(
        model,
        path,
        provenance=source.provenance,
        tokenizer_hash=source.tokenizer,
        classes=source.classes,
        extra=source.extra,
    )
    return []


def _open(located: Located, name: str | Path) -> Source:
    path, stated = located
    if is_own(path):
        model = load_own(path, stated)
        about = read_description(path)
        told = {*_OURS, *KINDS[about["kind"]].options, "classes", "tokenizer", "provenance"}
        extra = {name: value for name, value in about.items() if name not in told}
        provenance = about.get("provenance") or {}
        return Source(model, about.get("classes"), about.get("tokenizer"), provenance, extra, [])
    if not is_foreign(path):
        raise UserError(f"{path} holds no model; {ASKED}")
    found = load_foreign(path, stated)
    provenance = {"converted_from": str(name), "format": found.format, **found.provenance}
    return Source(found.model, found.classes, None, provenance, found.extra, found.notes)
