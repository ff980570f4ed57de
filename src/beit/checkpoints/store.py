"""Models at rest: a folder with model.safetensors (float32) and model.json (what it is, readable).

save_model -> model/ -> load_model, load_encoder, load_tokenizer. Loading is strict: every weight must be there,
have its shape and its checksum, and nothing may be left over.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from beit.atomic import replace_file
from beit.checkpoints.adapt import resize_encoder
from beit.checkpoints.description import DESCRIPTION, WEIGHTS, is_own, open_own, refuse_needless
from beit.checkpoints.foreign.infer import Pixel, Stated
from beit.checkpoints.foreign.recognise import is_foreign, load_foreign
from beit.checkpoints.identity import float32_weights, sha256_of, this_process
from beit.checkpoints.identity import weights_sha256 as weights_sha256
from beit.checkpoints.kinds import KINDS as KINDS
from beit.checkpoints.kinds import kind_of as kind_of
from beit.checkpoints.reference import locate
from beit.checkpoints.weight_file import write_weights
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.position import Grid
from beit.tokenizers.base import VisualTokenizer

logger = logging.getLogger(__name__)
ASKED = "give a run, its model/ folder, a checkpoint, or the name of a released model (`beit presets`)"


class Format(NamedTuple):
    """A way in which models lie on disk."""

    recognizes: Callable[[Path], bool]
    load: Callable[[Path, Stated], nn.Module]


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    tokenizer_hash: str | None = None,
    classes: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model` as folder/model.safetensors and folder/model.json, each complete or not at all.

    provenance: where the model comes from, for people; package and torch versions, date and command are added.
    tokenizer_hash: :func:`weights_sha256` of the tokenizer whose tokens a pre-trained model predicts.
    classes: names of a classifier's or segmenter's outputs, in order.
    extra: further keys of model.json, such as the interpolation and crop_pct that images are prepared with.
    """
    name = kind_of(model)
    if name not in KINDS:
        raise TypeError(f"{name} is not a model that can be saved; a {', '.join(KINDS)} is")
    kind = KINDS[name]
    tensors = float32_weights(model)
    architecture = dataclasses.asdict(kind.config(model))
    description = {
        "kind": name,
        **{option: getattr(model, option) for option in kind.options},
        "architecture": architecture,
        "image_size": architecture["image_size"],
        **_pixel_constants(architecture),
        "classes": None if classes is None else list(classes),
        "tokenizer": tokenizer_hash,
        **(extra or {}),
        "weights_sha256": sha256_of(tensors),
        "provenance": {**this_process(), **provenance},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / WEIGHTS, lambda path: write_weights(tensors, path))
    replace_file(folder / DESCRIPTION, lambda path: path.write_text(text, encoding="utf-8"))


def load_model(
    path: str | Path,
    *,
    num_heads: int | None = None,
    grid: Grid | None = None,
    pixel_mean: Pixel | None = None,
    pixel_std: Pixel | None = None,
    layers: tuple[int, ...] | None = None,
    strict: bool = True,
) -> nn.Module:
    """The model at `path`: evaluation mode, float32, CPU.

    path: a RUN directory or a model/ folder; a file or folder of another library, told by its contents: the released
        code, timm, Hugging Face, DALL-E, DALLE-pytorch; hf://owner/name on the Hugging Face Hub; or the name of a
        released model (`beit presets`).
    num_heads, grid, pixel_mean, pixel_std, layers, strict: see :class:`beit.checkpoints.foreign.infer.Stated`. They
        can also stand behind the path: "weights.pth@num_heads=6", see :mod:`beit.checkpoints.reference`.
    """
    path, stated = locate(
        path,
        Stated(
            num_heads=num_heads,
            grid=grid,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            layers=layers,
            strict=strict,
        ),
    )
    if not path.exists():
        raise UserError(f"{path} does not exist; {ASKED}")
    for form in FORMATS:
        if form.recognizes(path):
            return form.load(path, stated)
    if (path / "status.json").exists():
        raise UserError(
            f"{path} is a run without a finished model; continue it with the command that began it"
        )
    raise UserError(f"{path} holds no {DESCRIPTION} and is of no known format; {ASKED}")


def load_encoder(
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    *,
    num_heads: int | None = None,
    grid: Grid | None = None,
    pixel_mean: Pixel | None = None,
    pixel_std: Pixel | None = None,
    strict: bool = True,
) -> BeitEncoder:
    """The encoder of any model at `path`; position information resized when `image_size` is given."""
    model = load_model(
        path, num_heads=num_heads, grid=grid, pixel_mean=pixel_mean, pixel_std=pixel_std, strict=strict
    )
    encoder = model if isinstance(model, BeitEncoder) else getattr(model, "encoder", None)
    if not isinstance(encoder, BeitEncoder):
        raise UserError(f"{path} is a tokenizer and has no encoder; give a pre-trained model or a classifier")
    return encoder if image_size is None else resize_encoder(encoder, image_size)


def load_tokenizer(
    path: str | Path,
    *,
    grid: Grid | None = None,
    pixel_mean: Pixel | None = None,
    pixel_std: Pixel | None = None,
) -> VisualTokenizer:
    """The visual tokenizer at `path`: evaluation mode, float32, CPU."""
    model = load_model(path, grid=grid, pixel_mean=pixel_mean, pixel_std=pixel_std)
    if not isinstance(model, VisualTokenizer):
        raise UserError(f"{path} is a {kind_of(model)} model and no tokenizer; train one with beit tokenizer")
    return model


def load_own(path: Path, stated: Stated) -> nn.Module:
    """A model that :func:`save_model` wrote; what is stated of it is refused."""
    refuse_needless(path, stated)
    folder, description, model = open_own(path)
    file = folder / WEIGHTS
    try:
        # Copied, because load_file maps the file into memory, and a run may rewrite it.
        tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy or save the model again") from None
    _check_shapes(model.state_dict(), tensors, file)
    if sha256_of(tensors) != description.get("weights_sha256"):
        raise UserError(
            f"{file} is damaged or not the file that {DESCRIPTION} describes (its checksum differs); "
            f"copy or save the model again"
        )
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _load_foreign(path: Path, stated: Stated) -> nn.Module:
    loaded = load_foreign(path, stated)
    for note in loaded.notes:
        logger.warning("%s: %s", path, note)
    return loaded.model


FORMATS: tuple[Format, ...] = (Format(is_own, load_own), Format(is_foreign, _load_foreign))
"""Asked in this order."""


def _check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> None:
    faults = [f"{key} is missing" for key in wanted.keys() - found.keys()]
    faults += [f"{key} is unknown" for key in found.keys() - wanted.keys()]
    faults += [
        f"{key} is {found[key].dtype} {tuple(found[key].shape)}, not {tensor.dtype} {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and (found[key].shape, found[key].dtype) != (tensor.shape, tensor.dtype)
    ]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise UserError(
            f"{file} does not fit its {DESCRIPTION}: {', '.join(sorted(faults)[:4])}{more}; "
            f"give the two files that were saved together"
        )


def _pixel_constants(architecture: Mapping[str, Any]) -> dict[str, Any]:
    # DALL-E's pixel map 0.1 + 0.8 x, written as (x - mean) / std; its tokenizer has no other.
    dalle = {"pixel_mean": (-0.125,) * 3, "pixel_std": (1.25,) * 3}
    return {key: architecture.get(key, value) for key, value in dalle.items()}
