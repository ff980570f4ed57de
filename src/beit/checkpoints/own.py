"""Our own format: a folder with model.safetensors (float32) and model.json (what it is, readable).

Loading is strict: every weight must be there, have its shape and its checksum, and nothing may be left over. Files
may come from anywhere, so nothing in model.json is taken on trust.
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beit.atomic import replace_file, write_text
from beit.checkpoints.kinds import KINDS, config_of, entry_of, kind_of, options_of, tokenizer_of_kind
from beit.config.errors import UserError, require
from beit.config.files import plain
from beit.config.values import counted, typed
from beit.tokenizers.base import VisualTokenizer
from beit.training.device import describe_versions
from beit.untrusted import Facts, checksum_of, listed, printable, read_json

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_PAIR = tuple[int, int]
_TYPES: Facts = {
    **dict.fromkeys(("pixel_mean", "pixel_std"), tuple[float, ...]),
    **dict.fromkeys(("tokenizer_kind", "weights_sha256"), str),
    **dict.fromkeys(("tokenizer", "interpolation", "crop_mode"), str | None),
    **dict.fromkeys(("multilabel", "reduce_zero_label"), bool | None),
    **dict.fromkeys(("resize", "ignore_value", "bits"), int | None),
    **dict.fromkeys(("crop", "stride"), _PAIR | None),
    **{"image_size": _PAIR, "value_range": tuple[float, ...] | None, "crop_pct": float | None, "provenance": dict},
    **{"classes": Sequence[str] | None, "palette": Sequence[tuple[int, int, int]] | None},
}
"""Of the keys beside the architecture and what a kind is built with."""


# ------------------------------------------------------------------------------------------------------------
# Writing


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    provenance: Facts,
    tokenizer_hash: str | None = None,
    classes: Sequence[str] | None = None,
    extra: Facts | None = None,
) -> None:
    """Writes `model` as folder/model.safetensors and folder/model.json, each complete or not at all.

    provenance: where the model comes from, for people; versions of packages, date and command are added.
    tokenizer_hash: :func:`weights_sha256` of the tokenizer whose tokens a pre-trained model predicts.
    classes: names of a classifier's or segmenter's outputs, in order.
    extra: further keys of model.json, such as the interpolation and crop_pct that images are prepared with.
    """
    kind, folder, entry = kind_of(model), Path(folder), entry_of(model)
    if entry is None:
        raise TypeError(f"{kind} is not a model that can be saved; a {', '.join(KINDS)} is")
    weights = _float32_weights(model)
    architecture = _construction(model)["architecture"]
    mean, std = (values[:1] * config_of(model).channels for values in entry.pixels)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    description = {
        "kind": kind,
        **_construction(model),
        "image_size": architecture["image_size"],
        "pixel_mean": architecture.get("pixel_mean", mean),
        "pixel_std": architecture.get("pixel_std", std),
        "classes": None if classes is None else list(classes),
        "tokenizer": tokenizer_hash,
        **(extra or {}),
        "weights_sha256": _sha256_of(weights),
        "provenance": {**describe_versions(), "date": date, "command": sys.argv, **provenance},
    }
    description["checksum"] = checksum_of(description)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS, lambda draft: write_weights(weights, draft))
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def _construction(model: nn.Module) -> dict[str, Any]:
    """The keys of model.json that a model is built from."""
    name = {"tokenizer_kind": model.kind} if isinstance(model, VisualTokenizer) else {}
    return {**name, **options_of(model), "architecture": dataclasses.asdict(config_of(model))}


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Writes `path`, to be read by whoever may read other new files: safetensors' own are for their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(weights), path, metadata={"format": "pt"})
    except SafetensorError as error:  # which hides the OSError of a full disk
        raise OSError(f"{path.name} could not be written: {error}") from error
    path.chmod(mode)


def weights_sha256(model: nn.Module) -> str:
    """The identity of a model's weights: a hash of names, shapes and float32 values, whatever its device."""
    return _sha256_of(_float32_weights(model))


def _float32_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        key: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None).contiguous()
        for key, tensor in model.state_dict().items()
    }


def _sha256_of(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(f"{key} {weights[key].dtype} {tuple(weights[key].shape)}\n".encode())
        digest.update(weights[key].numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------
# Reading


def is_own(path: Path) -> bool:
    """Whether `path` is a RUN directory with a model, or a model/ folder."""
    return (_own_folder(path) / DESCRIPTION).is_file()


def read_description(path: str | Path) -> dict[str, Any]:
    """model.json of a RUN directory or a model/ folder: classes, tokenizer identity, provenance and the rest; every
    key that is known is of its type. Raises :class:`UserError` for a description of no model."""
    return _open(Path(path))[1]


def load_own(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A model that :func:`save_model` wrote, in evaluation mode, float32, CPU; and its model.json.

    A run may put another in its place meanwhile, so that what fails is tried once more.
    """
    try:
        return _load(path)
    except UserError:
        return _load(path)


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    file, description, model = _open(path)
    try:
        # Copied, because load_file maps the file into memory, and a run may rewrite it.
        weights = {key: tensor.clone() for key, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy or save the model again") from None
    described = [
        {key: f"{x.dtype} {tuple(x.shape)}" for key, x in half.items()} for half in (model.state_dict(), weights)
    ]
    missing, unknown, wrong = differences(*described)
    faults = [f"{key} is missing" for key in missing] + [f"{key} is unknown" for key in unknown] + wrong
    mend = "give the two files that were saved together"
    require(not faults, f"{file} does not fit its {DESCRIPTION}: {listed(faults)}; {mend}")
    is_same = _sha256_of(weights) == description.get("weights_sha256")
    other = f"{file} is not what {DESCRIPTION} describes (its checksum differs); copy or save the model again"
    require(is_same, other)
    model.load_state_dict(weights, assign=True)
    if (description.get("bits") or 8) > 8:
        reader: Any = model if isinstance(model, VisualTokenizer) else model.encoder
        reader.value_range = tuple(description.get("value_range") or (0, 0xFFFF))
    return model.eval(), description


def _own_folder(path: Path) -> Path:
    """The model/ folder that `path` means: itself, the one inside a run directory, or that of its weights."""
    if path.name == WEIGHTS and (path.parent / DESCRIPTION).is_file():
        return path.parent
    return path / "model" if (path / "model").is_dir() else path


def _open(path: Path) -> tuple[Path, dict[str, Any], nn.Module]:
    """The file of weights, model.json, and the model without weights, on the meta device."""
    folder = _own_folder(path)
    file = folder / DESCRIPTION
    description = read_json(file)
    if description is None:
        raise UserError(f"{file} does not exist; give a run directory or its model/ folder")
    kind, names = description.get("kind"), ", ".join(KINDS)
    known = isinstance(kind, str) and kind in KINDS
    require(known, f"{file}: kind is {printable(repr(kind))}, not one of {names}; this release cannot read it")
    with without_weights(file):
        typed({key: value for key, value in description.items() if key in _TYPES}, _TYPES)
        model = _model_of(description)
    classes, outputs = description.get("classes"), getattr(model, "num_classes", None)
    named = len(classes) if classes is not None else outputs
    names = counted(named or 0, "class")
    require(outputs in (None, named), f"{file} names {names}, and its head has {outputs}; mend classes")
    checksum = description.pop("checksum", None)  # older releases wrote none
    if checksum not in (None, checksum_of(description)):
        raise UserError(f"{file} was damaged or changed since it was saved; drop its `checksum` if that was you")
    # As this release writes it: a file of an earlier one may leave knobs out that came later.
    construction = {**plain(_construction(model)), "parameters": sum(x.numel() for x in model.parameters())}
    return folder / WEIGHTS, {**description, **construction}, model


def _model_of(description: Facts) -> nn.Module:
    entry = KINDS[description["kind"]]
    if entry is KINDS["tokenizer"]:
        entry = tokenizer_of_kind(description.get("tokenizer_kind", "dvae"))
    names, config_type = entry.options, entry.config
    architecture = description.get("architecture")
    missing = {*names, "weights_sha256"} - set(description)
    if missing or not isinstance(architecture, dict):
        raise UserError(f"{min(missing, default='architecture')} is missing; save the model again")
    if unknown := set(architecture) - {field.name for field in dataclasses.fields(config_type)}:
        raise UserError(f"architecture.{min(unknown)} is unknown; a newer release wrote it, update beit")
    for key in {"image_size", "pixel_mean", "pixel_std"} & {*architecture}:
        alike = description.get(key, architecture[key]) == architecture[key]
        require(alike, f"{key} differs from architecture.{key}; make them equal")
    config = config_type(**typed(architecture, get_type_hints(config_type)))
    options = {name: description[name] for name in (*names, *entry.later) if name in description}
    options = typed(options, get_type_hints(entry.model.__init__))
    for name in {"num_classes", "vocab_size", "channels"} & {*options}:
        require(options[name] > 0, f"{name} must be positive, not {options[name]}")
    return entry.build(config, options)


@contextmanager
def without_weights(path: Path) -> Iterator[None]:
    """Models built inside take no memory. Whatever is wrong with what `path` asks for is a :class:`UserError` that
    names it, and a field where a configuration would name a flag."""
    try:
        with torch.device("meta"):
            yield
    except UserError as error:
        if str(path) in str(error):
            raise
        reason = re.sub(r"--([a-z][a-z-]+)", lambda flag: flag[1].replace("-", "_"), str(error))
        raise UserError(f"{path}: {printable(reason, 300)}") from None
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        reason = printable(str(error).partition("\n")[0])
        raise UserError(f"{path} asks for a model that cannot be ({reason})") from None


def differences(expected: Mapping[str, Any], present: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, names that are not expected, and a line for each value that is another."""
    wrong = [f"{name} is {present[name]}, not {x}" for name, x in expected.items() if present.get(name, x) != x]
    return sorted(expected.keys() - present.keys()), [name for name in present if name not in expected], wrong
