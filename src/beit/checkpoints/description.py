"""model.json: what a model of ours says of itself. It may come from anywhere, so nothing in it is taken on trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from torch import nn

from beit.checkpoints.foreign.infer import Stated
from beit.checkpoints.foreign.key_map import shown
from beit.checkpoints.kinds import KINDS, Kind
from beit.checkpoints.reading.shards import read_json
from beit.checkpoints.reading.untrusted import typed, without_weights
from beit.config.errors import UserError, require

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_PIXEL = tuple[float, float, float]
_PAIR = tuple[int, int]
_TYPES: Mapping[str, Any] = {
    "image_size": _PAIR,
    "pixel_mean": _PIXEL,
    "pixel_std": _PIXEL,
    "classes": Sequence[str] | None,
    "tokenizer": str | None,
    "weights_sha256": str,
    "provenance": dict,
    "interpolation": str | None,
    "crop_pct": float | None,
    "crop_mode": str | None,
    "multilabel": bool | None,
    "resize": int | None,
    "crop": _PAIR | None,
    "stride": _PAIR | None,
    "reduce_zero_label": bool | None,
    "ignore_value": int | None,
    "palette": Sequence[tuple[int, int, int]] | None,
}
"""Of the keys beside the architecture and what a kind is built with."""


class Described(NamedTuple):
    """A model of ours before its weights are read."""

    folder: Path
    description: dict[str, Any]
    """model.json, every key that is known of its type."""
    model: nn.Module
    """Without weights, on the meta device."""


def is_own(path: Path) -> bool:
    """Whether `path` is a RUN directory with a model, or a model/ folder."""
    return (_own_folder(path) / DESCRIPTION).is_file()


def refuse_needless(path: Path, stated: Stated) -> None:
    """UserError where something is stated of a model of our own."""
    if needless := stated.given():
        raise UserError(f"{path} tells its architecture itself; drop {', '.join(needless)}")


def read_description(path: str | Path) -> dict[str, Any]:
    """model.json of a RUN directory or a model/ folder: classes, tokenizer identity, provenance and the rest."""
    return open_own(path).description


def open_own(path: str | Path) -> Described:
    """The model in a RUN directory or a model/ folder. Raises :class:`UserError` for a description of none."""
    folder = _own_folder(Path(path))
    file = folder / DESCRIPTION
    description = read_json(file)
    if description is None:
        raise UserError(f"{file} does not exist; give a run directory or its model/ folder")
    name = description.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        said = shown(repr(name))
        raise UserError(f"{file}: kind is {said}, not one of {', '.join(KINDS)}; this release cannot read it")
    with without_weights(file):
        typed({key: value for key, value in description.items() if key in _TYPES}, _TYPES)
        model = _build(KINDS[name], description)
    classes, outputs = description.get("classes"), getattr(model, "num_classes", None)
    if classes is not None and outputs is not None and len(classes) != outputs:
        raise UserError(f"{file} names {len(classes)} classes, and its head has {outputs}; mend classes")
    return Described(folder, description, model)


def _own_folder(path: Path) -> Path:
    """The model/ folder that `path` means: itself, the one inside a run directory, or that of its weights."""
    if path.name == WEIGHTS and (path.parent / DESCRIPTION).is_file():
        return path.parent
    return path / "model" if (path / "model").is_dir() else path


def _build(kind: Kind, description: Mapping[str, Any]) -> nn.Module:
    architecture = description.get("architecture")
    missing = {*kind.options, "weights_sha256"} - set(description)
    if missing or not isinstance(architecture, dict):
        raise UserError(f"{min(missing, default='architecture')} is missing; save the model again")
    if unknown := set(architecture) - {field.name for field in dataclasses.fields(kind.config_type)}:
        raise UserError(f"architecture.{min(unknown)} is unknown; a newer release wrote it, update beit")
    for key in ("image_size", "pixel_mean", "pixel_std"):
        if key in architecture and description.get(key, architecture[key]) != architecture[key]:
            raise UserError(f"{key} differs from architecture.{key}; make them equal")
    config = kind.config_type(**typed(architecture, get_type_hints(kind.config_type)))
    told = {option: description[option] for option in kind.options}
    options = typed(told, get_type_hints(kind.model.__init__))
    for name in ("num_classes", "vocab_size", "channels"):
        require(
            options.get(name) is None or options[name] > 0,
            f"{name} must be positive, not {options.get(name)}",
        )
    return kind.build(config, **options)
