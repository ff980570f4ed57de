"""timm's `beit_*` classifiers: a folder with config.json and model.safetensors (or pytorch_model.bin).

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads what is written here. The names are the released
ones; timm has neither a mask token nor a head for visual tokens.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from beit.checkpoints.foreign.key_map import write_folder
from beit.checkpoints.foreign.shapes import flags_of, positions_of, renamed, with_table
from beit.checkpoints.foreign.survey import Foreign
from beit.checkpoints.foreign.unilm import KEYS, PLAIN_KEYS
from beit.checkpoints.preparation import Preparation, preparation, stated_preparation
from beit.checkpoints.reading.torch_file import TensorFile
from beit.config.architecture import sides
from beit.config.values import as_type
from beit.models.heads import ImageClassifier
from beit.untrusted import Facts

NAME = "timm"
_ARCHITECTURE = re.compile(r"beit(?:v2)?_(base|large)_patch")
"""BEiT v2's classifiers are networks of the same kind; `beit3` is another."""
_PLAIN = re.compile(r"(?:vit|deit|deit3)_(tiny|small|base|medium|large|huge|giant)_(?:distilled_)?patch")
_HEADS = {"huge": 16, "giant": 16}
"""Of the sizes whose heads do not have 64 dimensions."""
_FIELDS = {"embed_dim": "width", **{name: name for name in ("patch_size", "depth", "num_heads", "mlp_ratio")}}
_POOLS = {"avg": "mean", "token": "cls"}
_POSITIONS = {"absolute": "use_abs_pos_emb", "block": "use_rel_pos_bias", "shared": "use_shared_rel_pos_bias"}


def is_config(config: Facts) -> bool:
    name = str(config.get("architecture", ""))
    return bool(_ARCHITECTURE.match(name) or _PLAIN.match(name))


def open_folder(file: TensorFile, config: Facts) -> Foreign:
    # Older folders hold the inner dict alone.
    inner = config.get("pretrained_cfg", config)
    plain = _PLAIN.match(config["architecture"])
    arguments = {"num_heads": plain and _HEADS.get(plain[1]), **config.get("model_args", {})}
    size = arguments.get("img_size") or inner.get("input_size", ())[1:] or None
    facts = {
        **{ours: arguments.get(theirs) for theirs, ours in _FIELDS.items()},
        "image_size": sides(size),
        # All BEiTs of timm have it, whatever of their arguments is stated.
        **({} if plain else positions_of({"use_rel_pos_bias": True, **arguments}, _POSITIONS)),
        "drop_path_rate": arguments.get("drop_path_rate"),
        "pixel_mean": inner.get("mean"),
        "pixel_std": inner.get("std"),
        "kind": "classifier" if config.get("num_classes") else None,
        "pool": _POOLS.get(config.get("global_pool", "")),
    }
    # None is no LayerScale there.
    scale = {"layer_scale_init": arguments["init_values"]} if "init_values" in arguments and not plain else {}
    told = {name: value for name, value in facts.items() if value is not None} | scale
    names = config.get("label_names", inner.get("label_names"))
    classes = list(as_type(names, Sequence[str])) if isinstance(names, list) else None
    tensors = file.tensors(renamed(file.contents)[0] if plain else file.contents)
    provenance = {"architecture": config["architecture"]}
    extra = stated_preparation(*(inner.get(name) for name in Preparation._fields))
    return Foreign(NAME, file, tensors, PLAIN_KEYS if plain else KEYS, told, classes, provenance, extra)


def write(model: nn.Module, folder: Path, classes: Sequence[str] | None, extra: Facts) -> list[str]:
    """Writes the two files; gives a line for each thing that they cannot tell."""
    assert isinstance(model, ImageClassifier)
    config, pool = model.encoder.config, "avg" if model.pool == "mean" else "token"
    description = {
        "architecture": f"beit_{'large' if config.depth == 24 else 'base'}_patch16_224",
        "num_classes": model.num_classes,
        "num_features": config.width,
        "global_pool": pool,
        **({"label_names": list(classes)} if classes else {}),
        "model_args": {
            "img_size": list(config.image_size),
            **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
            "global_pool": pool,
            **flags_of(config, _POSITIONS),
            "init_values": config.layer_scale_init,
        },
        "pretrained_cfg": {
            "num_classes": model.num_classes,
            "input_size": [3, *config.image_size],
            "fixed_input_size": True,
            **preparation(extra, config.image_size)._asdict(),
            "mean": list(config.pixel_mean),
            "std": list(config.pixel_std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    weights, notes = with_table(model)
    write_folder(folder, KEYS.write(weights, NAME), {"config": description})
    return notes
