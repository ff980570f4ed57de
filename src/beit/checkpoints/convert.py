"""From any format to any other that can hold the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from beit.checkpoints import dalle, hub, huggingface, timm, unilm
from beit.checkpoints.architecture import Pixel, Stated
from beit.checkpoints.atomic import appearing
from beit.checkpoints.kinds import KINDS, kind_of
from beit.checkpoints.recognise import is_foreign, load_foreign
from beit.checkpoints.store import extra_of, is_own, load_model, read_description, save_model
from beit.config import UserError
from beit.models.position import Grid

Target = Literal["beit", "unilm", "timm", "huggingface", "dalle"]


class Source(NamedTuple):
    """A model, and what is known about it beside its weights."""

    model: nn.Module
    classes: Sequence[str] | None
    tokenizer: str | None
    provenance: Mapping[str, Any]
    description: Mapping[str, Any]
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
    layers: tuple[int, int, int, int] | None = None,
    strict: bool = True,
    push: str | None = None,
) -> list[str]:
    """Writes the model at `source` to `destination`, a file for unilm and a folder otherwise.

    Gives a line for each thing that was adapted on the way or that the target cannot tell. Raises
    :class:`UserError` where the target cannot hold the model, and where there is something at `destination`.

    num_heads, grid, pixel_mean, pixel_std, layers, strict: see :class:`beit.checkpoints.architecture.Stated`.
    push: owner/name of the Hugging Face Hub that the written folder is uploaded to.
    """
    if to not in get_args(Target):
        raise UserError(f"--to {to} is no format; choose one of {', '.join(get_args(Target))}")
    target = Path(destination)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another destination")
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
    opened = _open(hub.local(source), stated)
    with appearing(target) as temporary:
        notes = [*opened.notes, *_write(opened, temporary, to)]
        if target.is_dir():
            target.rmdir()
    return notes if push is None else [*notes, f"uploaded to {hub.push(target, push)}"]


def _write(source: Source, path: Path, to: Target) -> list[str]:
    model = source.model
    if to == "unilm":
        return unilm.write(model, path, source.classes, source.description)
    path.mkdir()
    if to == "timm":
        return timm.write(model, path, source.classes)
    if to == "huggingface":
        return huggingface.write(model, path, source.classes, source.description)
    if to == "dalle":
        return dalle.write(model, path)
    if kind_of(model) not in KINDS:
        raise UserError(f"our own format holds a {', '.join(KINDS)}; it cannot hold a {type(model).__name__}")
    save_model(
        model,
        path,
        provenance=source.provenance,
        tokenizer_hash=source.tokenizer,
        classes=source.classes,
        extra=source.description,
    )
    return []


def _open(path: Path, stated: Stated) -> Source:
    if is_own(path):
        model = load_model(path, **dataclasses.asdict(stated))
        about = read_description(path)
        provenance = about.get("provenance") or {}
        return Source(model, about.get("classes"), about.get("tokenizer"), provenance, extra_of(about), [])
    if not is_foreign(path):
        raise UserError(f"{path} holds no model; give a run, a model/ folder, or a checkpoint file or folder")
    found = load_foreign(path, stated)
    provenance = {"converted_from": str(path), "format": found.format, **found.provenance}
    return Source(found.model, found.classes, None, provenance, found.description, found.notes)
