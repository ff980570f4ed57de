"""Hugging Face's BEiT: a folder with config.json, preprocessor_config.json and model.safetensors (or .bin).

Written under the names of transformers 4.x, which the hub has and which 5.x reads and writes as well; read under
these and under the names that 5.x uses in memory. What is peculiar to segmentation: huggingface_segmentation.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from beit.checkpoints.foreign import huggingface_images as images
from beit.checkpoints.foreign import huggingface_segmentation as segmentation
from beit.checkpoints.foreign import upernet
from beit.checkpoints.foreign.key_map import KeyMap, write_folder
from beit.checkpoints.foreign.shapes import flags_of, pixels_of, positions_of, renamed, with_table
from beit.checkpoints.foreign.survey import Foreign, ModelKind
from beit.checkpoints.kinds import kind_of
from beit.checkpoints.preparation import preparation
from beit.checkpoints.reading.torch_file import TensorFile
from beit.config.architecture import EncoderConfig, sides
from beit.config.errors import require
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.untrusted import Facts

NAME = "huggingface"
Model = MaskedImageModel | ImageClassifier | SemanticSegmenter
_BIAS = "relative_position_bias"
_SEVERAL = "multi_label_classification"
_BLOCK = "beit.encoder.layer.{}"
_ATTENTION = f"{_BLOCK}.attention.attention"
_ROWS: list[tuple[str, str | tuple[str, ...]]] = [
    ("encoder.cls_token", "beit.embeddings.cls_token"),
    ("mask_token", "beit.embeddings.mask_token"),
    ("encoder.pos_embed", "beit.embeddings.position_embeddings"),
    ("encoder.patch_embed.proj.*", "beit.embeddings.patch_embeddings.projection.*"),
    (f"encoder.rel_pos_bias.{_BIAS}_table", f"beit.encoder.{_BIAS}.{_BIAS}_table"),
    ("encoder.blocks.{}.norm1.*", f"{_BLOCK}.layernorm_before.*"),
    ("encoder.blocks.{}.norm2.*", f"{_BLOCK}.layernorm_after.*"),
    ("encoder.blocks.{}.gamma_1", f"{_BLOCK}.lambda_1"),
    ("encoder.blocks.{}.gamma_2", f"{_BLOCK}.lambda_2"),
    ("encoder.blocks.{}.attn.qkv.weight", tuple(f"{_ATTENTION}.{part}.weight" for part in ("query", "key", "value"))),
    ("encoder.blocks.{}.attn.q_bias", f"{_ATTENTION}.query.bias"),
    ("encoder.blocks.{}.attn.v_bias", f"{_ATTENTION}.value.bias"),
    (f"encoder.blocks.{{}}.attn.{_BIAS}_table", f"{_ATTENTION}.{_BIAS}.{_BIAS}_table"),
    ("encoder.blocks.{}.attn.proj.*", f"{_BLOCK}.attention.output.dense.*"),
    ("encoder.blocks.{}.mlp.fc1.*", f"{_BLOCK}.intermediate.dense.*"),
    ("encoder.blocks.{}.mlp.fc2.*", f"{_BLOCK}.output.dense.*"),
    ("fc_norm.*", "beit.pooler.layernorm.*"),
    ("token_head.*", "lm_head.*"),
    ("head.*", "classifier.*"),
    *upernet.rows(pyramid="", classes="classifier"),
]
_INDICES = [f"{module}.{_BIAS}.relative_position_index" for module in ("beit.encoder", _ATTENTION)]
_CLASSIFIER_KEYS = KeyMap([*_ROWS, ("norm.*", "beit.layernorm.*")], ignored=_INDICES)
_MASKED_KEYS = KeyMap([*_ROWS, ("norm.*", "layernorm.*")], ignored=_INDICES)
"""The norm before the head lies elsewhere in each of the two models."""
_PLAIN_KEYS = KeyMap(
    [
        *_ROWS,
        ("encoder.norm.*", "beit.layernorm.*"),
        ("encoder.register_tokens", "beit.embeddings.register_tokens"),
        ("encoder.embedded_tokens", "beit.embeddings.distillation_token"),
    ],
    ignored=[f"{_ATTENTION}.key.bias", "beit.pooler.dense.weight", "beit.pooler.dense.bias"],
)
"""Other vision transformers, whose bias of keys cancels: read alone."""
_PLAIN = ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers")
"""Their `model_type`."""
# The names that 5.x uses in memory -> those of 4.x, in this order.
_IN_4X = [
    (rf"^({'|'.join(_PLAIN)})\.", "beit."),
    (r"(\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.layer_scale([12])\.lambda1$", r".lambda_\1"),
    (r"^beit\.shared_position_bias\.", f"beit.encoder.{_BIAS}."),
    (r"^beit\.layers\.(\d+)\.", r"beit.encoder.layer.\1."),
    (rf"(\.\d+)\.{_BIAS}\.", rf"\1.attention.attention.{_BIAS}."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^fpn\.fpn1\.conv_transpose1\.", "fpn1.0."),
    (r"^fpn\.fpn1\.normalization\.", "fpn1.1."),
    (r"^fpn\.fpn1\.conv_transpose2\.", "fpn1.3."),
    (r"^fpn\.fpn2\.", "fpn2.0."),
    (r"^decode_head\.psp_modules\.blocks\.(\d+)\.conv\.", r"decode_head.psp_modules.\1.1."),
    (r"^decode_head\.psp_bottleneck\.", "decode_head.bottleneck."),
    (r"^((?:decode|auxiliary)_head\..*)\.convolution\.", r"\1.conv."),
    (r"^((?:decode|auxiliary)_head\..*)\.normalization\.", r"\1.bn."),
]


def is_config(config: Facts) -> bool:
    return config.get("model_type") in ("beit", *_PLAIN)


def reads(file: TensorFile) -> bool:
    """Whether a file, perhaps without a configuration, has these names."""
    contents = file.contents
    return isinstance(contents, dict) and any(str(key).endswith("embeddings.cls_token") for key in contents)


def open_folder(file: TensorFile, config: Facts, processor: Facts) -> Foreign:
    """A model and what lies beside it. Without a configuration, an empty one, nothing but the weights speaks."""
    weights, undecoded = renamed(file.contents)
    tensors = file.tensors(weights)
    prefix = "beit." if "embeddings.cls_token" in tensors else ""  # a bare BeitModel
    tensors = {_in_4x(prefix + key): tensor for key, tensor in tensors.items()}
    plain = f"{_ATTENTION.format(0)}.key.bias" in tensors or config.get("model_type") in _PLAIN
    masked = "lm_head.weight" in tensors
    facts = _plain_facts(file, config) if plain else _facts(file, config)
    classes, notes = _class_names(config.get("id2label"), file)
    extra: dict[str, Any] = {}
    if "decode_head.classifier.weight" in tensors:
        if segmentation.unused_blocks(config):
            unused = _BLOCK.format(config["num_hidden_layers"] - 1)
            tensors = {key: x for key, x in tensors.items() if not key.startswith(f"{unused}.")}
        facts["layers"] = segmentation.layers_of(config, file.path)
        reduces = processor.get("do_reduce_labels", processor.get("reduce_labels"))
        extra = {} if reduces is None else {"reduce_zero_label": bool(reduces)}
        notes += segmentation.doubts(config)
    elif config and "classifier.weight" in tensors:
        extra, doubts = images.preparation_of(processor, facts["image_size"])
        extra |= {"multilabel": True} if config.get("problem_type") == _SEVERAL else {}
        notes += doubts
    pixels = images.pixels_of(processor)
    if plain and not pixels:
        pixels, doubts = pixels_of(imagenet=config.get("model_type", "vit") != "vit")
        notes += doubts
    notes += undecoded
    table = _PLAIN_KEYS if plain else _MASKED_KEYS if masked else _CLASSIFIER_KEYS
    provenance = {key: config[key] for key in ("_name_or_path",) if key in config}
    return Foreign(NAME, file, tensors, table, {**facts, **pixels}, classes, provenance, extra, notes)


def _in_4x(key: str) -> str:
    for pattern, name in _IN_4X:
        key = re.sub(pattern, name, key)
    return key


_KINDS: Mapping[str, ModelKind] = {
    "BeitForMaskedImageModeling": "pretrained",
    "BeitForImageClassification": "classifier",
    "BeitForSemanticSegmentation": "segmenter",
}
# Their name, ours, their default: what a configuration tells, and which of it is written as it is here.
_SIZES = [("hidden_size", "width", 768), ("intermediate_size", "hidden", 3072)]
_FIELDS = [
    ("patch_size", "patch_size", 16),
    ("num_attention_heads", "num_heads", 12),
    ("layer_norm_eps", "layer_norm_eps", 1e-12),
    ("layer_scale_init_value", "layer_scale_init", 0.1),
    ("drop_path_rate", "drop_path_rate", 0.1),
    ("hidden_dropout_prob", "dropout", 0.0),
]


def _facts(file: TensorFile, config: Facts) -> dict[str, Any]:
    """What :class:`Foreign` has as facts; what a configuration leaves out has the library's default."""
    if not config:
        return {}
    act = config.get("hidden_act", "gelu")
    require(act == "gelu", f"{file.path.parent / 'config.json'}: hidden_act is {act!r}, and BEiT has gelu")
    facts = {ours: config.get(theirs, default) for theirs, ours, default in (*_SIZES, *_FIELDS)}
    return facts | {
        "image_size": sides(config.get("image_size", 224)),
        "depth": config.get("num_hidden_layers", 12) - segmentation.unused_blocks(config),
        **positions_of(config, _POSITIONS),
        "layer_scale_init": facts["layer_scale_init"] or None,  # zero means no LayerScale there
        "kind": next((_KINDS[name] for name in config.get("architectures") or [] if name in _KINDS), None),
        "pool": "mean" if config.get("use_mean_pooling", True) else "cls",
        "auxiliary": bool(config.get("use_auxiliary_head", True)),
    }


def _plain_facts(file: TensorFile, config: Facts) -> dict[str, Any]:
    """The same of another vision transformer, whose positions, LayerScale and kind its weights tell."""
    if not config:
        return {}
    of_dino, width = "dinov2" in config["model_type"], config.get("hidden_size", 768)
    own = {"layer_norm_eps": 1e-6, "intermediate_size": width * config.get("mlp_ratio", 4)} if of_dino else {}
    facts = _facts(file, {**own, **config}) | {"pool": "cls_mean" if of_dino else "cls"}
    told = ("position", "bias", "biases", "layer_scale_init", "kind")
    return {name: value for name, value in facts.items() if name not in told}


_POSITIONS = {
    "absolute": "use_absolute_position_embeddings",
    "block": "use_relative_position_bias",
    "shared": "use_shared_relative_position_bias",
}
"""All are off by default."""


def _class_names(labels: Any, file: TensorFile) -> tuple[list[str] | None, list[str]]:
    """Names of the classes in order, or None where they were never given any; and a line where numbers are left out.

    The library's own conversion of 22k classifiers deletes two names and keeps the numbers of the others, beside a
    head that has as many outputs as there are names left.
    """
    if not isinstance(labels, dict):
        return None, []
    numbers = sorted(labels, key=int)
    names = [str(labels[number]) for number in numbers]
    if all(name == f"LABEL_{number}" for name, number in zip(names, numbers, strict=True)):
        return None, []
    gaps = bool(numbers) and int(numbers[-1]) != len(numbers) - 1
    note = f"id2label leaves numbers out: its {len(names)} names are those of outputs 0 to {len(names) - 1} in order"
    return names, [note] if gaps else []


def write(model: nn.Module, folder: Path, classes: Sequence[str] | None, extra: Facts) -> list[str]:
    """Writes the three files that `from_pretrained` of the model and of AutoImageProcessor want; gives a line for
    whatever is there that the model does not have."""
    assert isinstance(model, Model)
    config: EncoderConfig = model.encoder.config
    rows, columns = config.grid
    require(
        rows == columns or config.positions == "none",
        f"Hugging Face's BEiT cannot hold {config.positions} positions of a grid of {rows}x{columns} patches: "
        f"it takes every grid for a square (absolute positions) or swaps its axes (bias tables); resize to a square",
    )
    weights, notes = with_table(model)
    if isinstance(model, SemanticSegmenter):
        segmentation.require_held(model)
        weights, unused = segmentation.with_unused_block(model, weights)
        notes += unused
    keys = _MASKED_KEYS if isinstance(model, MaskedImageModel) else _CLASSIFIER_KEYS
    several = {"problem_type": _SEVERAL} if extra.get("multilabel") else {}
    is_classifier = isinstance(model, ImageClassifier)
    processor = images.content(config, preparation(extra, config.image_size) if is_classifier else images.WHOLE)
    if not is_classifier:
        processor |= {"do_reduce_labels": bool(extra.get("reduce_zero_label", False))}
    files = {"config": _config(model, classes) | several, "preprocessor_config": processor}
    write_folder(folder, keys.write(weights, NAME), files)
    return notes


def _config(model: Model, classes: Sequence[str] | None) -> dict[str, Any]:
    config: EncoderConfig = model.encoder.config
    height, width = config.image_size
    content = {
        "architectures": [next(name for name, kind in _KINDS.items() if kind == kind_of(model))],
        "model_type": "beit",
        "hidden_size": config.width,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "num_hidden_layers": config.depth,
        "image_size": height if height == width else [height, width],
        **flags_of(config, _POSITIONS),
        **{theirs: getattr(config, ours) for theirs, ours, _ in _FIELDS},
        # Zero means no LayerScale there.
        "layer_scale_init_value": 0.0 if config.layer_scale_init is None else config.layer_scale_init or 1e-6,
    }
    if isinstance(model, MaskedImageModel):
        # Without mean pooling its masked image model has a second final norm.
        return {**content, "use_mask_token": True, "use_mean_pooling": True, "vocab_size": model.vocab_size}
    names = list(classes or [f"LABEL_{index}" for index in range(model.num_classes)])
    content |= {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if isinstance(model, SemanticSegmenter):
        return content | segmentation.config_of(model)
    return content | {"use_mean_pooling": model.pool == "mean"}
