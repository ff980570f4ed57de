"""From a foreign state dict under our names to a model: its architecture is read off the shapes of its weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.checkpoints.foreign import upernet
from beit.checkpoints.foreign.key_map import KeyMap, in_float32
from beit.checkpoints.foreign.shapes import BLOCK_BIAS, SHARED_BIAS, Shape, converted, infer, refuse_strange
from beit.checkpoints.kinds import KINDS, options_of
from beit.checkpoints.own import differences, without_weights
from beit.checkpoints.reading.safe_pickle import StoredTensor
from beit.checkpoints.reading.torch_file import TensorFile
from beit.checkpoints.reference import Stated
from beit.config.architecture import DALLE_PIXELS, EncoderConfig, TokenArchitecture
from beit.config.errors import UserError, require
from beit.config.values import counted
from beit.models.encoder import BeitEncoder
from beit.untrusted import Facts, listed

ModelKind = Literal["pretrained", "classifier", "segmenter", "encoder"]
Stored = Tensor | StoredTensor
_NONE: Facts = {}


class Survey(NamedTuple):
    """What a checkpoint holds, before its weights are read."""

    format: str
    kind: Literal[ModelKind, "tokenizer"]
    config: EncoderConfig | TokenArchitecture
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
        pixels: Any = self.config
        tokens = {"vocab_size": model.vocab_size, "tokenizer_kind": model.kind} if self.kind == "tokenizer" else {}
        return {
            "format": self.format,
            "kind": self.kind,
            **tokens,
            **options_of(model),
            **self.extra,
            "architecture": dataclasses.asdict(self.config),
            "image_size": pixels.image_size,
            "pixel_mean": getattr(pixels, "pixel_mean", DALLE_PIXELS[0]),
            "pixel_std": getattr(pixels, "pixel_std", DALLE_PIXELS[1]),
            "classes": None if self.classes is None else list(self.classes),
            "provenance": dict(self.provenance),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **{name: list(getattr(self, name)) for name in ("notes", "unknown", "missing")},
        }

    def is_alike(self, other: "Survey") -> bool:
        """Whether both are read as the same model."""
        own, others = ((x.config, options_of(x.model), x.extra) for x in (self, other))
        return own == others

    def assemble(self, strict: bool) -> tuple[nn.Module, list[str]]:
        """The model with its weights in float32, in evaluation mode; and a line for whatever was adapted."""
        path, model, notes = self.sources[0][0].path, self.model, list(self.notes)
        strays = (("unknown", self.unknown), ("missing", self.missing))
        faults = [f"{word} {listed(names)}" for word, names in strays if names]
        remedy = "copy or download it again" if self.missing else "PATH@strict=no goes on without them"
        require(not (self.missing or (strict and faults)), f"{path}: {'; '.join(faults)}; {remedy}")
        weights: dict[str, Tensor] = {}
        for file, stored in self.sources:
            loaded = file.load({f"{at} {name}": x for name, pieces in stored.items() for at, x in enumerate(pieces)})
            # Taken out, so that what is joined or widened does not stay in memory beside the result.
            weights |= {
                name: _joined([loaded.pop(f"{place} {name}") for place in range(len(pieces))])
                for name, pieces in stored.items()
            }
        if self.unknown:
            notes.append(f"{listed(self.unknown)}: unknown, left out")
        model.load_state_dict(converted(weights), assign=True)
        return model.eval(), notes


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return in_float32(torch.cat([*pieces]) if len(pieces) > 1 else pieces[0])


# ------------------------------------------------------------------------------------------------------------
# Encoders and what stands on them


class Foreign(NamedTuple):
    """An open foreign checkpoint of an encoder, and what its format tells about it."""

    format: str
    file: TensorFile
    tensors: Mapping[str, Stored]
    """Under the names of the file."""
    table: KeyMap
    facts: Facts
    """What a configuration says of the encoder, see :func:`beit.checkpoints.foreign.shapes.infer`; and the `kind` of
    model on it, a classifier's `pool`, the `layers` that a segmenter's decoder reads, whether it has an `auxiliary`
    head, and all position `biases` that it names. None: it does not say."""
    classes: Sequence[str] | None
    provenance: Facts
    extra: Facts
    """Further keys of model.json that the configuration tells: interpolation, crop_pct, multilabel, palette."""
    notes: Sequence[str] = ()
    """What is odd about it, or is not read."""


class Kind(NamedTuple):
    """A kind of model: its name in words, the weight that tells it from the others, and the weights of another stage
    that it knowingly does without."""

    words: str
    head: str
    idle: tuple[str, ...]


_KINDS: Mapping[ModelKind, Kind] = {
    "segmenter": Kind("a segmenter", "decode_head.conv_seg.weight", ("mask_token", "norm.", "fc_norm.")),
    "pretrained": Kind("a masked image model", "token_head.weight", ()),
    "classifier": Kind("a classifier", "head.weight", ("mask_token",)),
    "encoder": Kind("a bare encoder", "encoder.cls_token", ("mask_token", "norm.", "fc_norm.")),
}
"""A model is of the first kind whose head it has."""
_BIASES = {"block": BLOCK_BIAS, "shared": SHARED_BIAS}
_ENCODER = {"encoder.cls_token", "encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"}


def survey_encoder(foreign: Foreign, stated: Stated) -> Survey:
    """What `foreign` is. Raises :class:`UserError` where its parts contradict one another or what is stated."""
    path, tensors = foreign.file.path, foreign.tensors
    keys, unknown = foreign.table.ours(tensors)
    shapes = shapes_of(path, tensors, keys)
    biases = [name for name, table in _BIASES.items() if table in keys]
    named = foreign.facts.get("biases", biases)
    has, says = (" and ".join(names) or "no" for names in (biases, named))
    require(has == says, f"{path} has {has} position bias, and its configuration says {says}")
    if _ENCODER - set(shapes):
        raise UserError(f"{path} holds no BEiT encoder (no cls_token, patch_embed and blocks) but {listed(tensors)}")
    kind = next(kind for kind, (_, head, _) in _KINDS.items() if head in shapes)
    facts, extra, notes = dict(foreign.facts), dict(foreign.extra), [*foreign.notes]
    expected, pool, layers, auxiliary, _ = (
        facts.pop(name, None) for name in ("kind", "pool", "layers", "auxiliary", "biases")
    )
    notes += ["the shared position bias is added to that of each block"] if len(biases) > 1 else []
    with without_weights(path):
        config = infer(shapes, facts, stated)
        if kind == "segmenter":
            auxiliary = "auxiliary_head.conv_seg.weight" in shapes if auxiliary is None else auxiliary
            options, guesses = upernet.options(config.depth, shapes, layers, auxiliary, stated)
            extra, doubts = upernet.extra(config, options["num_classes"], extra, stated)
            notes += guesses + doubts
        else:
            options = _options(kind, shapes, pool, stated)
        model = BeitEncoder(config) if kind == "encoder" else KINDS[kind].build(config, options)
    _require_agreement(foreign, kind, expected, options.get("num_classes"))
    if kind == "encoder":  # it is the model itself
        keys = {name.removeprefix("encoder."): parts for name, parts in keys.items()}
        shapes = {name.removeprefix("encoder."): shape for name, shape in shapes.items()}
    missing, spare = compare(path, shapes, model)
    words, _, idle_names = _KINDS[kind]
    idle = {name for name in spare if name.startswith(idle_names)}
    unknown += [key for name in spare if name not in idle for key in keys.get(name, (name,))]
    notes += [f"{listed(idle)}: left out, {words} has none"] if idle else []
    weights = {name: [tensors[key] for key in parts] for name, parts in keys.items() if name not in spare}
    read = Survey(foreign.format, kind, config, model, [(foreign.file, weights)], unknown, missing, notes)
    return read._replace(classes=foreign.classes, provenance=foreign.provenance, extra=extra)


def _options(kind: ModelKind, shapes: Mapping[str, Shape], pool: str | None, stated: Stated) -> dict[str, Any]:
    """What the model on the encoder is built with, where it is no segmenter."""
    if needless := {"layers", "reduce_zero_label"} & {*stated.names()}:
        raise UserError(f"it is no segmenter; drop {listed(needless)}")
    outputs = shapes[_KINDS[kind].head][0]
    if kind == "pretrained":
        return {"vocab_size": outputs}
    pool = pool or ("mean" if "fc_norm.weight" in shapes else "cls")
    return {} if kind == "encoder" else {"num_classes": outputs, "pool": pool}


def _require_agreement(foreign: Foreign, kind: ModelKind, expected: ModelKind | None, outputs: int | None) -> None:
    """UserError where a configuration is of another model than its weights."""
    path, classes = foreign.file.path, foreign.classes
    if expected not in (None, kind):
        words, head, _ = _KINDS[expected]
        (head,) = foreign.table.theirs(head) or (head,)
        lacks = f"{path} lacks {head}: it holds {_KINDS[kind].words}, and its configuration says {words}"
        raise UserError(f"{lacks}; copy or download both again")
    if classes is not None and outputs not in (None, len(classes)):
        named = counted(len(classes), "class")
        raise UserError(f"{path}: its configuration names {named}, and its head has {outputs}")


def compare(path: Path, shapes: Mapping[str, Shape], model: nn.Module) -> tuple[list[str], list[str]]:
    """Weights of `model` that are not among `shapes`, and those that it does not have. UserError for wrong shapes."""
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    missing, spare, wrong = differences(expected, shapes)
    require(not wrong, f"{path}: weights of unexpected shapes: {listed(wrong)}")
    return missing, spare


def shapes_of(path: Path, tensors: Mapping[str, Stored], keys: Mapping[str, Sequence[str]]) -> dict[str, Shape]:
    """The shape of each of our names, whose tensors `keys` lie one below the other, once :func:`converted`. UserError
    where they do not fit, and unless weights have numbers with a point, and counts are whole."""
    refuse_strange(path, tensors)
    shapes: dict[str, Tensor] = {}
    for name, parts in keys.items():
        count = name.endswith("num_batches_tracked")
        for key in parts:
            tensor = tensors[key]
            dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor.storage.dtype
            if not (dtype == torch.int64 if count else dtype.is_floating_point):
                kind = "a count is" if count else "numbers with a point are"
                raise UserError(f"{path}: {key} holds {dtype} where {kind} wanted")
        try:
            shapes[name] = _joined([torch.empty(tensors[key].shape, device="meta") for key in parts])
        except RuntimeError:
            raise UserError(f"{path}: {listed(parts)} do not have the same width") from None
    return {name: tuple(tensor.shape) for name, tensor in converted(shapes).items()}
