"""timm's `beit_*` classifiers: a folder with config.json and model.safetensors (or pytorch_model.bin).

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads what is written here. The names are the released
ones; timm has neither a mask token nor a head for visual tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from beit.checkpoints.foreign import Foreign
from beit.checkpoints.key_map import KeyMap
from beit.checkpoints.kinds import holders
from beit.checkpoints.protocol import Preparation, preparation, told_preparation
from beit.checkpoints.torch_file import TensorFile
from beit.checkpoints.unilm import ENCODER, INDICES, fixed_eps
from beit.checkpoints.weight_file import write_weights
from beit.config import UserError
from beit.models.heads import ImageClassifier
from beit.models.segmentation import SemanticSegmenter

NAME = "timm"
KEYS = KeyMap(
    [
        *((f"encoder.{name}", name) for name in ENCODER),
        *((name, name) for name in ("norm.*", "fc_norm.*", "head.*")),
    ],
    ignored=INDICES,
)


def is_config(config: Mapping[str, Any]) -> bool:
    return str(config.get("architecture", "")).startswith("beit")


def open_folder(file: TensorFile, config: Mapping[str, Any]) -> Foreign:
    # Older folders hold the inner dict alone.
    inner = config.get("pretrained_cfg", config)
    arguments = config.get("model_args", {})
    size = arguments.get("img_size") or inner.get("input_size", (3, None))[1:]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    facts = {
        "image_size": None if height is None else (height, width),
        "num_heads": arguments.get("num_heads"),
        "drop_path_rate": arguments.get("drop_path_rate"),
        "layer_scale_init": arguments.get("init_values"),
        "pixel_mean": inner.get("mean"),
        "pixel_std": inner.get("std"),
    }
    names = config.get("label_names", inner.get("label_names"))
    return Foreign(
        format=NAME,
        file=file,
        tensors=file.tensors(file.contents),
        table=KEYS,
        facts={name: value for name, value in facts.items() if value is not None},
        pool={"token": "cls", "avg": "mean"}.get(config.get("global_pool", "")),  # type: ignore[arg-type]
        classes=names if isinstance(names, list) else None,
        provenance={"architecture": config["architecture"]},
        extra=told_preparation(*(inner.get(name) for name in Preparation._fields)),
    )


def write(
    model: nn.Module, folder: Path, classes: Sequence[str] | None, extra: Mapping[str, Any]
) -> list[str]:
    """Writes the two files; gives a line for each thing that they cannot tell."""
    if isinstance(model, SemanticSegmenter):
        raise UserError(
            f"timm's BEiT has no decoders: it cannot hold a segmenter's decode_head; {holders(model)}"
        )
    if not isinstance(model, ImageClassifier):
        raise UserError(
            f"timm has no mask_token and no lm_head (vocabulary head), nor tokenizers: it cannot hold a "
            f"{type(model).__name__}; {holders(model)}"
        )
    config = model.encoder.config
    description = {
        "architecture": f"beit_{'large' if config.depth == 24 else 'base'}_patch16_224",
        "num_classes": model.num_classes,
        "num_features": config.width,
        "global_pool": "avg" if model.pool == "mean" else "token",
        **({"label_names": list(classes)} if classes else {}),
        "model_args": {
            "img_size": list(config.image_size),
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
            "global_pool": "avg" if model.pool == "mean" else "token",
            "use_abs_pos_emb": config.position == "absolute",
            "use_rel_pos_bias": config.position == "block_bias",
            "use_shared_rel_pos_bias": config.position == "shared_bias",
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
    weights = KEYS.write(model.state_dict(), NAME)
    write_weights(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return fixed_eps(config, NAME)
