"""Which library wrote a file or folder, told by its configuration and by the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from beit.checkpoints.foreign import dalle, huggingface, timm, unilm
from beit.checkpoints.foreign import survey as foreign
from beit.checkpoints.foreign.dalle import TokenizerSurvey
from beit.checkpoints.foreign.infer import Stated
from beit.checkpoints.foreign.key_map import listed, shown
from beit.checkpoints.foreign.survey import Foreign, Survey
from beit.checkpoints.reading.shards import INDEX, open_shards, read_json
from beit.checkpoints.reading.torch_file import TensorFile, open_tensor_file
from beit.config.errors import UserError

WEIGHT_FILES = tuple(
    f"{name}{ending}" for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", INDEX)
)


def is_foreign(path: Path) -> bool:
    """Whether `path` is a file, or a folder that another library may have written."""
    return path.is_file() or any((path / name).is_file() for name in (*WEIGHT_FILES, *dalle.FILES))


def open_foreign(path: Path) -> Foreign | tuple[Path, Path] | TensorFile:
    """An encoder's checkpoint; the two files of OpenAI's tokenizer; or a plain tokenizer's file."""
    if path.is_dir() and any((path / name).is_file() for name in dalle.FILES):
        return path / dalle.FILES[0], path / dalle.FILES[1]
    weights = path if path.is_file() else _weights_in(path)
    file = open_shards(weights) if weights.name.endswith(INDEX) else open_tensor_file(weights)
    beside = weights.parent if weights.name in WEIGHT_FILES else None
    config = read_json(beside / "config.json") if beside else None
    if config and "model_type" in config and not huggingface.is_config(config):
        raise UserError(f"{path} is a {shown(str(config['model_type']), 40)} of Hugging Face, not a beit")
    if config and "architecture" in config and not timm.is_config(config):
        raise UserError(f"{path} is a {shown(str(config['architecture']), 40)} of timm, not a beit")
    try:
        if config and timm.is_config(config):
            return timm.open_folder(file, config)
        if huggingface.reads(file):
            preprocessor = read_json(beside / "preprocessor_config.json") if beside else None
            return huggingface.open_folder(file, config, preprocessor)
    except (AttributeError, LookupError, TypeError) as error:
        raise UserError(f"{path}: its config.json is not one of BEiT's ({error})") from None
    if dalle.reads(file):
        # Whichever half was named, the other lies beside it.
        half = {*dalle.FILES} & {file.path.name}
        return (
            (file.path.parent / dalle.FILES[0], file.path.parent / dalle.FILES[1])
            if half
            else _one_half(path)
        )
    if dalle.reads_plain(file):
        return file
    if unilm.reads(file):
        return unilm.open_file(file)
    raise UserError(
        f"{path} is of no known format: {_contents(file)}; give a BEiT or a tokenizer under the names of the "
        f"released code, timm, Hugging Face or DALL-E"
    )


class Loaded(NamedTuple):
    """A foreign model, and what came with it."""

    model: nn.Module
    format: str
    notes: Sequence[str]
    """A line for whatever was adapted."""
    classes: Sequence[str] | None = None
    provenance: Mapping[str, Any] = {}
    extra: Mapping[str, Any] = {}
    """Further keys of model.json."""


def load_foreign(path: Path, stated: Stated) -> Loaded:
    opened, found = survey_foreign(path, stated)
    if isinstance(found, TokenizerSurvey):
        model, notes = dalle.assemble(found, stated.strict)
        return Loaded(model, found.format, notes)
    assert opened is not None
    model, notes = foreign.assemble(opened, found, stated.strict)
    return Loaded(model, opened.format, notes, opened.classes, opened.provenance, found.extra)


def survey_foreign(path: Path, stated: Stated) -> tuple[Foreign | None, Survey | TokenizerSurvey]:
    """What :func:`load_foreign` would find, without reading the weights."""
    opened = open_foreign(path)
    if isinstance(opened, Foreign):
        return opened, foreign.survey(opened, stated)
    if isinstance(opened, TensorFile):
        return None, dalle.survey_plain(opened, stated)
    return None, dalle.survey(opened, stated)


def _weights_in(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds neither {' nor '.join(WEIGHT_FILES)}")


def _one_half(path: Path) -> Any:
    raise UserError(f"{path} is one half of OpenAI's tokenizer; name the files {' and '.join(dalle.FILES)}")


def _contents(file: TensorFile) -> str:
    contents = file.contents
    if not isinstance(contents, dict):
        return f"it holds a {getattr(contents, 'name', type(contents).__name__)}"
    inner = [
        f"{key} ({listed(map(str, value), 2)})" if isinstance(value, dict) and value else str(key)
        for key, value in contents.items()
    ]
    return f"it holds {listed(inner)}" if inner else "it holds nothing"
