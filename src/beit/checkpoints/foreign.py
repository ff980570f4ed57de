"""From a foreign state dict under our names to a model: its architecture is read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.checkpoints.architecture import Shape, Stated, infer
from beit.checkpoints.key_map import KeyMap, listed
from beit.checkpoints.safe_pickle import StoredTensor
from beit.checkpoints.torch_file import TensorFile
from beit.config import EncoderConfig, UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel


MAX_DRAWN = 2**29
"""Numbers that are drawn anew for a file that lacks them; BEiT-large has 2**28 in all."""


@dataclass(kw_only=True)
class Foreign:
    """An open foreign checkpoint of an encoder, and what its format tells about it."""

    format: str
    file: TensorFile
    tensors: Mapping[str, Tensor | StoredTensor]
    """Under the names of the file."""
    table: KeyMap
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`EncoderConfig` that a configuration beside the weights tells."""
    pool: Literal["mean", "cls"] | None = None
    """Pooling of a classifier, where a configuration tells."""
    classes: Sequence[str] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Survey(NamedTuple):
    """What a checkpoint holds, before its weights are read."""

    kind: Literal["pretrained", "classifier", "encoder"]
    config: EncoderConfig
    model: nn.Module
    """Without weights, on the meta device."""
    keys: Mapping[str, Sequence[str]]
    """Weights of the model -> the keys of the file that make them up."""
    unknown: Sequence[str]
    """Keys of the file that belong to nothing."""
    missing: Sequence[str]
    """Weights of the model that the file does not have."""
    notes: Sequence[str]
    """What is left out on purpose."""


def survey(foreign: Foreign, stated: Stated) -> Survey:
    """What `foreign` is. Raises :class:`UserError` where its parts contradict one another or what is stated."""
    keys, unknown = foreign.table.ours(foreign.tensors)
    shapes = {name: _shape(foreign, parts) for name, parts in keys.items()}
    path = foreign.file.path
    if {"encoder.cls_token", "encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"} - set(
        shapes
    ):
        raise UserError(
            f"{path} holds no BEiT encoder (no cls_token, patch_embed and blocks) but {listed(foreign.tensors)}"
        )
    try:
        config = infer(shapes, foreign.facts, stated)
        kind, model = _skeleton(foreign, shapes, config)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    if kind == "encoder":  # it is the model itself
        keys = {name.removeprefix("encoder."): parts for name, parts in keys.items()}
        shapes = {name.removeprefix("encoder."): shape for name, shape in shapes.items()}
    classes = foreign.classes
    if isinstance(model, ImageClassifier) and classes is not None and len(classes) != model.num_classes:
        raise UserError(
            f"{path}: its configuration names {len(classes)} classes, and its head has {model.num_classes}"
        )
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if wrong := [
        f"{key} {shapes[key]} (not {wanted[key]})"
        for key in shapes.keys() & wanted
        if shapes[key] != wanted[key]
    ]:
        raise UserError(f"{path}: weights of unexpected shapes: {listed(wrong)}")
    spare = {name for name in shapes if name not in wanted}
    idle = {name for name in spare if _is_idle(name, kind)}
    unknown += [key for name in spare - idle for key in keys[name]]
    notes = [f"{listed(idle)}: left out, {_A[kind]} has none"] if idle else []
    missing = sorted(wanted.keys() - shapes.keys())
    return Survey(kind, config, model, {k: keys[k] for k in wanted if k in keys}, unknown, missing, notes)


def assemble(foreign: Foreign, found: Survey, strict: bool) -> tuple[nn.Module, list[str]]:
    """The model with its weights in float32, in evaluation mode; and a line for whatever was adapted."""
    path, notes = foreign.file.path, list(found.notes)
    if strict:
        refuse_strays(path, found.unknown, found.missing)
    parts = {part: foreign.tensors[part] for names in found.keys.values() for part in names}
    loaded = foreign.file.load(parts)
    weights = {
        name: (torch.cat([loaded[part] for part in names]) if len(names) > 1 else loaded[names[0]]).float()
        for name, names in found.keys.items()
    }
    model = found.model
    if found.missing:
        wanted = model.state_dict()
        if sum(wanted[name].numel() for name in found.missing) > MAX_DRAWN:
            raise UserError(f"{path} lacks more than {MAX_DRAWN:,} numbers ({listed(found.missing)})")
        model = _blank(found.config, found.kind, model)
        notes.append(f"{listed(found.missing)}: not in the file, drawn anew")
    if found.unknown:
        notes.append(f"{listed(found.unknown)}: unknown, left out")
    model.load_state_dict(weights, strict=not found.missing, assign=True)
    return model.eval(), notes


def refuse_strays(path: object, unknown: Sequence[str], missing: Sequence[str]) -> None:
    """Raises :class:`UserError` naming unknown and missing keys, where there are any."""
    faults = [
        f"{word} {listed(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names
    ]
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)} (strict=False, --no-strict, goes on without them)")


_A = {"pretrained": "a masked image model", "classifier": "a classifier", "encoder": "a bare encoder"}


def _is_idle(name: str, kind: str) -> bool:
    """Weights of another stage that a model of this kind knowingly does without."""
    idle: tuple[str, ...] = {
        "classifier": ("mask_token",),
        "encoder": ("mask_token", "norm.", "fc_norm."),
    }.get(kind, ())
    return name.startswith(idle) if idle else False


def _shape(foreign: Foreign, parts: Sequence[str]) -> Shape:
    """The shape of the tensors `parts`, one below the other."""
    tensors = [foreign.tensors[part] for part in parts]
    for key, tensor in zip(parts, tensors, strict=True):
        dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor.storage.dtype
        if not dtype.is_floating_point:
            raise UserError(f"{foreign.file.path}: {key} holds {dtype} where numbers with a point are wanted")
    first, *others = (tuple(tensor.shape) for tensor in tensors)
    if any(shape[1:] != first[1:] or not shape for shape in others):
        raise UserError(f"{foreign.file.path}: {listed(parts)} do not have the same width")
    return (sum(shape[0] for shape in (first, *others)), *first[1:]) if others else first


def _skeleton(foreign: Foreign, shapes: Mapping[str, Shape], config: EncoderConfig) -> tuple[Any, nn.Module]:
    """The model that the weights are for, on the meta device, and its kind."""
    with torch.device("meta"):
        encoder = BeitEncoder(config)
        if "token_head.weight" in shapes:
            return "pretrained", MaskedImageModel(encoder, shapes["token_head.weight"][0])
        if "head.weight" in shapes:
            pool = foreign.pool or ("mean" if "fc_norm.weight" in shapes else "cls")
            return "classifier", ImageClassifier(encoder, shapes["head.weight"][0], pool)
    return "encoder", encoder


def _blank(config: EncoderConfig, kind: str, like: nn.Module) -> nn.Module:
    """A model as `like`, with first values."""
    encoder = BeitEncoder(config)
    if isinstance(like, MaskedImageModel):
        return MaskedImageModel(encoder, like.vocab_size)
    if isinstance(like, ImageClassifier):
        return ImageClassifier(encoder, like.num_classes, like.pool)
    return encoder
