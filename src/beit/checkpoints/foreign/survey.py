"""From a foreign state dict under our names to a model: its architecture is read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.checkpoints.foreign import upernet
from beit.checkpoints.foreign.infer import Shape, Stated, infer
from beit.checkpoints.foreign.key_map import KeyMap, in_float32, listed
from beit.checkpoints.kinds import KINDS
from beit.checkpoints.reading.safe_pickle import StoredTensor
from beit.checkpoints.reading.torch_file import TensorFile
from beit.checkpoints.reading.untrusted import without_weights
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter

ModelKind = Literal["pretrained", "classifier", "segmenter", "encoder"]
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
    """What a configuration beside the weights tells, see :func:`beit.checkpoints.foreign.infer.infer`."""
    kind: ModelKind | None = None
    """What a configuration says it is."""
    pool: Literal["mean", "cls"] | None = None
    """Pooling of a classifier, where a configuration tells."""
    layers: Sequence[int] | None = None
    """Blocks that a segmenter's decoder reads, where a configuration tells."""
    auxiliary: bool | None = None
    """Whether a segmenter has its auxiliary head, where a configuration tells."""
    classes: Sequence[str] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of model.json that the configuration tells: interpolation, crop_pct, multilabel, palette."""
    notes: Sequence[str] = ()
    """What is odd about it, or is not read."""


class Survey(NamedTuple):
    """What a checkpoint holds, before its weights are read."""

    kind: ModelKind
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
    """What is left out on purpose, or guessed."""
    extra: Mapping[str, Any]
    """Further keys of model.json."""


def survey(foreign: Foreign, stated: Stated) -> Survey:
    """What `foreign` is. Raises :class:`UserError` where its parts contradict one another or what is stated."""
    keys, unknown = foreign.table.ours(foreign.tensors)
    shapes = {name: _shape(foreign, name, parts) for name, parts in keys.items()}
    path = foreign.file.path
    if {"encoder.cls_token", "encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"} - set(
        shapes
    ):
        raise UserError(
            f"{path} holds no BEiT encoder (no cls_token, patch_embed and blocks) but {listed(foreign.tensors)}"
        )
    with without_weights(path):
        config = infer(shapes, foreign.facts, stated)
        kind, model, notes = _skeleton(foreign, shapes, config, stated)
    _require_kind(foreign, kind)
    if kind == "encoder":  # it is the model itself
        keys = {name.removeprefix("encoder."): parts for name, parts in keys.items()}
        shapes = {name.removeprefix("encoder."): shape for name, shape in shapes.items()}
    classes = foreign.classes
    if (
        isinstance(model, ImageClassifier | SemanticSegmenter)
        and classes is not None
        and len(classes) != model.num_classes
    ):
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
    notes += [*foreign.notes]
    notes += [f"{listed(idle)}: left out, {_A[kind]} has none"] if idle else []
    missing = sorted(wanted.keys() - shapes.keys())
    held = {key: keys[key] for key in wanted if key in keys}
    extra = dict(foreign.extra)
    if isinstance(model, SemanticSegmenter):
        extra, guessed = upernet.extra(model, extra, stated)
        notes += guessed
    return Survey(kind, config, model, held, unknown, missing, notes, extra)


def assemble(foreign: Foreign, found: Survey, strict: bool) -> tuple[nn.Module, list[str]]:
    """The model with its weights in float32, in evaluation mode; and a line for whatever was adapted."""
    path, notes = foreign.file.path, list(found.notes)
    if strict:
        refuse_strays(path, found.unknown, found.missing)
    parts = {part: foreign.tensors[part] for names in found.keys.values() for part in names}
    loaded = foreign.file.load(parts)
    # Taken out, so that what is joined or widened does not stay in memory beside the result.
    weights = {name: _joined([loaded.pop(part) for part in names]) for name, names in found.keys.items()}
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


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return in_float32(torch.cat([*pieces]) if len(pieces) > 1 else pieces[0])


def refuse_strays(path: object, unknown: Sequence[str], missing: Sequence[str]) -> None:
    """Raises :class:`UserError` naming unknown and missing keys, where there are any."""
    faults = [
        f"{word} {listed(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names
    ]
    if faults:
        raise UserError(
            f"{path}: {'; '.join(faults)} (strict=False, or PATH@strict=no, goes on without them)"
        )


_A = {
    "pretrained": "a masked image model",
    "classifier": "a classifier",
    "segmenter": "a segmenter",
    "encoder": "a bare encoder",
}


_HEAD = {
    "pretrained": "token_head.weight",
    "classifier": "head.weight",
    "segmenter": "decode_head.conv_seg.weight",
}
"""What tells a kind from the others."""


def _require_kind(foreign: Foreign, kind: str) -> None:
    if foreign.kind not in (None, kind):
        (head,) = foreign.table.theirs(_HEAD[foreign.kind]) or (_HEAD[foreign.kind],)
        raise UserError(
            f"{foreign.file.path} lacks {head}: it holds {_A[kind]}, and its configuration says {_A[foreign.kind]}; "
            f"copy or download both again"
        )


def _is_idle(name: str, kind: str) -> bool:
    """Weights of another stage that a model of this kind knowingly does without."""
    idle: tuple[str, ...] = {
        "classifier": ("mask_token",),
        "segmenter": ("mask_token", "norm.", "fc_norm."),
        "encoder": ("mask_token", "norm.", "fc_norm."),
    }.get(kind, ())
    return name.startswith(idle) if idle else False


def _shape(foreign: Foreign, name: str, parts: Sequence[str]) -> Shape:
    """The shape of the tensors `parts` of our `name`, one below the other."""
    count = name.endswith("num_batches_tracked")
    tensors = [foreign.tensors[part] for part in parts]
    for key, tensor in zip(parts, tensors, strict=True):
        dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor.storage.dtype
        if not (dtype == torch.int64 if count else dtype.is_floating_point):
            wanted = "a count is" if count else "numbers with a point are"
            raise UserError(f"{foreign.file.path}: {key} holds {dtype} where {wanted} wanted")
    first, *others = (tuple(tensor.shape) for tensor in tensors)
    if any(shape[1:] != first[1:] or not shape for shape in others):
        raise UserError(f"{foreign.file.path}: {listed(parts)} do not have the same width")
    return (sum(shape[0] for shape in (first, *others)), *first[1:]) if others else first


def _skeleton(
    foreign: Foreign, shapes: Mapping[str, Shape], config: EncoderConfig, stated: Stated
) -> tuple[Any, nn.Module, list[str]]:
    """The kind of model that the weights are for, the model, and what was guessed."""
    encoder = BeitEncoder(config)
    if _HEAD["segmenter"] in shapes:
        model, notes = upernet.skeleton(encoder, shapes, foreign.layers, foreign.auxiliary, stated)
        return "segmenter", model, notes
    if needless := {"layers", "reduce_zero_label"} & {*stated.given()}:
        raise UserError(f"it is no segmenter; drop {listed(needless)}")
    if _HEAD["pretrained"] in shapes:
        return "pretrained", MaskedImageModel(encoder, shapes["token_head.weight"][0]), []
    if _HEAD["classifier"] in shapes:
        pool = foreign.pool or ("mean" if "fc_norm.weight" in shapes else "cls")
        return "classifier", ImageClassifier(encoder, shapes["head.weight"][0], pool), []
    return "encoder", encoder, []


def _blank(config: EncoderConfig, kind: str, like: nn.Module) -> nn.Module:
    """A model as `like`, with first values."""
    if kind == "encoder":
        return BeitEncoder(config)
    options = {name: getattr(like, name) for name in KINDS[kind].options}
    return KINDS[kind].build(config, **options)
