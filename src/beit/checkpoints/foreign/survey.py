"""From a foreign state dict under our names to a model: its architecture is read off the shapes of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.checkpoints.foreign import upernet
from beit.checkpoints.foreign.key_map import KeyMap, in_float32
from beit.checkpoints.foreign.shapes import Shape, infer
from beit.checkpoints.own import build, options_of, without_weights
from beit.checkpoints.reading.safe_pickle import StoredTensor
from beit.checkpoints.reading.torch_file import TensorFile
from beit.checkpoints.reference import Stated
from beit.config.architecture import DALLE_PIXELS, DiscreteVAEConfig, EncoderConfig
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.untrusted import Facts, listed

ModelKind = Literal["pretrained", "classifier", "segmenter", "encoder"]
Stored = Tensor | StoredTensor
_NONE: Facts = {}
MAX_DRAWN = 2**29
"""Numbers that are drawn anew for a file that lacks them; BEiT-large has 2**28 in all."""


class Survey(NamedTuple):
    """What a checkpoint holds, before its weights are read."""

    format: str
    kind: Literal[ModelKind, "tokenizer"]
    config: EncoderConfig | DiscreteVAEConfig | Mapping[str, int]
    """The architecture; of a plain tokenizer as model.json would have it."""
    model: nn.Module
    """Without weights, on the meta device."""
    sources: Sequence[tuple[TensorFile, Mapping[str, Sequence[Stored]]]]
    """Each file with the weights of the model in it, as the tensors that make them up."""
    unknown: Sequence[str]
    """Keys of the files that belong to nothing."""
    missing: Sequence[str]
    """Weights of the model that the files do not have."""
    notes: Sequence[str] = ()
    """What is left out on purpose, or guessed."""
    classes: Sequence[str] | None = None
    provenance: Facts = _NONE
    extra: Facts = _NONE
    """Further keys of model.json."""

    def description(self) -> dict[str, Any]:
        """See :func:`beit.checkpoints.describe`."""
        model: Any = self.model
        config = self.config if isinstance(self.config, Mapping) else dataclasses.asdict(self.config)
        pixels = self.config if isinstance(self.config, EncoderConfig) else model
        vocabulary = {"vocab_size": model.vocab_size} if self.kind == "tokenizer" else {}
        return {
            "format": self.format,
            "kind": self.kind,
            **vocabulary,
            **options_of(model),
            **self.extra,
            "architecture": config,
            "image_size": pixels.image_size,
            "pixel_mean": getattr(pixels, "pixel_mean", DALLE_PIXELS[0]),
            "pixel_std": getattr(pixels, "pixel_std", DALLE_PIXELS[1]),
            "classes": None if self.classes is None else list(self.classes),
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "unknown": list(self.unknown),
            "missing": list(self.missing),
        }

    def is_alike(self, other: Survey) -> bool:
        """Whether both are read as the same model."""
        own, others = ((x.config, options_of(x.model), x.extra) for x in (self, other))
        return own == others

    def assemble(self, strict: bool) -> tuple[nn.Module, list[str]]:
        """The model with its weights in float32, in evaluation mode; and a line for whatever was adapted."""
        path, model, notes = self.sources[0][0].path, self.model, list(self.notes)
        if strict or (self.missing and self.kind == "tokenizer"):
            self._refuse_strays(path)
        weights: dict[str, Tensor] = {}
        for file, stored in self.sources:
            loaded = file.load(
                {f"{place} {name}": x for name, pieces in stored.items() for place, x in enumerate(pieces)}
            )
            # Taken out, so that what is joined or widened does not stay in memory beside the result.
            weights |= {
                name: _joined([loaded.pop(f"{place} {name}") for place in range(len(pieces))])
                for name, pieces in stored.items()
            }
        if self.missing:
            model = self._blank(path)
            notes.append(f"{listed(self.missing)}: not in the file, drawn anew")
        if self.unknown:
            notes.append(f"{listed(self.unknown)}: unknown, left out")
        model.load_state_dict(weights, strict=not self.missing, assign=True)
        return model.eval(), notes

    def _refuse_strays(self, path: Path) -> None:
        strays = (("unknown", self.unknown), ("missing", self.missing))
        if faults := [f"{word} {listed(names)}" for word, names in strays if names]:
            raise UserError(
                f"{path}: {'; '.join(faults)} (strict=False, or PATH@strict=no, goes on without them)"
            )

    def _blank(self, path: Path) -> nn.Module:
        """A model with first values for what is missing."""
        weights = self.model.state_dict()
        if sum(weights[name].numel() for name in self.missing) > MAX_DRAWN:
            raise UserError(f"{path} lacks more than {MAX_DRAWN:,} numbers ({listed(self.missing)})")
        assert isinstance(self.config, EncoderConfig)
        if self.kind == "encoder":
            return BeitEncoder(self.config)
        return build(self.kind, self.config, options_of(self.model))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return in_float32(torch.cat([*pieces]) if len(pieces) > 1 else pieces[0])


# ------------------------------------------------------------------------------------------------------------
# Encoders and what stands on them


class ModelFacts(NamedTuple):
    """What a configuration beside the weights says of the model on the encoder; None: it does not."""

    kind: ModelKind | None = None
    pool: Literal["mean", "cls"] | None = None
    layers: Sequence[int] | None = None
    """Blocks that a segmenter's decoder reads."""
    auxiliary: bool | None = None
    """Whether a segmenter has its auxiliary head."""


@dataclass(kw_only=True)
class Foreign:
    """An open foreign checkpoint of an encoder, and what its format tells about it."""

    format: str
    file: TensorFile
    tensors: Mapping[str, Stored]
    """Under the names of the file."""
    table: KeyMap
    facts: Facts = field(default_factory=dict)
    """What a configuration says of the encoder, see :func:`beit.checkpoints.foreign.shapes.infer`."""
    model: ModelFacts = field(default_factory=ModelFacts)
    classes: Sequence[str] | None = None
    provenance: Facts = field(default_factory=dict)
    extra: Facts = field(default_factory=dict)
    """Further keys of model.json that the configuration tells: interpolation, crop_pct, multilabel, palette."""
    notes: Sequence[str] = ()
    """What is odd about it, or is not read."""


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
_IDLE: Mapping[str, tuple[str, ...]] = {
    "pretrained": (),
    "classifier": ("mask_token",),
    "segmenter": ("mask_token", "norm.", "fc_norm."),
    "encoder": ("mask_token", "norm.", "fc_norm."),
}
"""Weights of another stage that a model of a kind knowingly does without."""
_ENCODER = {"encoder.cls_token", "encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"}


def survey_encoder(foreign: Foreign, stated: Stated) -> Survey:
    """What `foreign` is. Raises :class:`UserError` where its parts contradict one another or what is stated."""
    keys, unknown = foreign.table.ours(foreign.tensors)
    shapes = {name: _shape(foreign, name, parts) for name, parts in keys.items()}
    path = foreign.file.path
    if _ENCODER - set(shapes):
        raise UserError(
            f"{path} holds no BEiT encoder (no cls_token, patch_embed and blocks) but {listed(foreign.tensors)}"
        )
    with without_weights(path):
        config = infer(shapes, foreign.facts, stated)
        kind, model, notes = _skeleton(foreign, shapes, config, stated)
    _require_agreement(foreign, kind, model)
    if kind == "encoder":  # it is the model itself
        keys = {name.removeprefix("encoder."): parts for name, parts in keys.items()}
        shapes = {name.removeprefix("encoder."): shape for name, shape in shapes.items()}
    missing, spare = compare(path, shapes, model)
    idle = {name for name in spare if name.startswith(_IDLE[kind])}
    unknown += [key for name in spare if name not in idle for key in keys[name]]
    notes += [*foreign.notes]
    notes += [f"{listed(idle)}: left out, {_A[kind]} has none"] if idle else []
    extra = dict(foreign.extra)
    if isinstance(model, SemanticSegmenter):
        extra, guesses = upernet.extra(model, extra, stated)
        notes += guesses
    weights = {name: [foreign.tensors[key] for key in keys[name]] for name in keys if name not in spare}
    return Survey(
        format=foreign.format,
        kind=kind,
        config=config,
        model=model,
        sources=[(foreign.file, weights)],
        unknown=unknown,
        missing=missing,
        notes=notes,
        classes=foreign.classes,
        provenance=foreign.provenance,
        extra=extra,
    )


def compare(path: Path, shapes: Mapping[str, Shape], model: nn.Module) -> tuple[list[str], list[str]]:
    """Weights of `model` that are not among `shapes`, and those that it does not have. UserError for wrong shapes."""
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if wrong := [
        f"{key} {shapes[key]} (not {shape})"
        for key, shape in expected.items()
        if shapes.get(key, shape) != shape
    ]:
        raise UserError(f"{path}: weights of unexpected shapes: {listed(wrong)}")
    return sorted(expected.keys() - shapes.keys()), [name for name in shapes if name not in expected]


def require_dtype(path: Path, key: str, tensor: Stored, *, count: bool = False) -> None:
    """UserError unless a weight has numbers with a point, or a count is whole."""
    dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor.storage.dtype
    if not (dtype == torch.int64 if count else dtype.is_floating_point):
        kind = "a count is" if count else "numbers with a point are"
        raise UserError(f"{path}: {key} holds {dtype} where {kind} wanted")


def _shape(foreign: Foreign, name: str, parts: Sequence[str]) -> Shape:
    """The shape of the tensors `parts` of our `name`, one below the other."""
    path, tensors = foreign.file.path, [foreign.tensors[part] for part in parts]
    for key, tensor in zip(parts, tensors, strict=True):
        require_dtype(path, key, tensor, count=name.endswith("num_batches_tracked"))
    first, *others = (tuple(tensor.shape) for tensor in tensors)
    if any(shape[1:] != first[1:] or not shape for shape in others):
        raise UserError(f"{path}: {listed(parts)} do not have the same width")
    return (sum(shape[0] for shape in (first, *others)), *first[1:]) if others else first


def _require_agreement(foreign: Foreign, kind: ModelKind, model: nn.Module) -> None:
    """UserError where a configuration is of another model than its weights."""
    path, expected, classes = foreign.file.path, foreign.model.kind, foreign.classes
    if expected not in (None, kind):
        (head,) = foreign.table.theirs(_HEAD[expected]) or (_HEAD[expected],)
        raise UserError(
            f"{path} lacks {head}: it holds {_A[kind]}, and its configuration says {_A[expected]}; "
            f"copy or download both again"
        )
    outputs = model.num_classes if isinstance(model, ImageClassifier | SemanticSegmenter) else None
    if classes is not None and outputs not in (None, len(classes)):
        raise UserError(f"{path}: its configuration names {len(classes)} classes, and its head has {outputs}")


def _skeleton(
    foreign: Foreign, shapes: Mapping[str, Shape], config: EncoderConfig, stated: Stated
) -> tuple[ModelKind, nn.Module, list[str]]:
    """The kind of model that the weights are for, the model, and what was guessed."""
    encoder, facts = BeitEncoder(config), foreign.model
    if _HEAD["segmenter"] in shapes:
        model, notes = upernet.skeleton(encoder, shapes, facts.layers, facts.auxiliary, stated)
        return "segmenter", model, notes
    if needless := {"layers", "reduce_zero_label"} & {*stated.names()}:
        raise UserError(f"it is no segmenter; drop {listed(needless)}")
    if _HEAD["pretrained"] in shapes:
        return "pretrained", MaskedImageModel(encoder, shapes["token_head.weight"][0]), []
    if _HEAD["classifier"] in shapes:
        pool = facts.pool or ("mean" if "fc_norm.weight" in shapes else "cls")
        return "classifier", ImageClassifier(encoder, shapes["head.weight"][0], pool), []
    return "encoder", encoder, []
