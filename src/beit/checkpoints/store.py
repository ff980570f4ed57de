"""The door: a run, a folder of ours, a file of another library, or a name becomes a model.

Formats of other libraries are imported when a path is not ours: a run that uses its own models never reads them.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from beit.checkpoints.adapt import resize_encoder
from beit.checkpoints.kinds import encoder_of as encoder_of
from beit.checkpoints.kinds import kind_of as kind_of
from beit.checkpoints.own import DESCRIPTION, is_own, load_own, read_description
from beit.checkpoints.own import save_model as save_model
from beit.checkpoints.own import weights_sha256 as weights_sha256
from beit.checkpoints.reference import Pixel, Stated, locate, part_of
from beit.config.architecture import Sides, sides
from beit.config.errors import UserError, require
from beit.models.encoder import BeitEncoder
from beit.models.position import Grid
from beit.tokenizers.base import VisualTokenizer

if TYPE_CHECKING:
    from beit.checkpoints.foreign.survey import Survey

logger = logging.getLogger(__name__)
REMEDY = "give a run, its model/ folder, a checkpoint, or the name of a released model (`beit presets`)"


def load_model(
    path: str | Path,
    *,
    num_heads: int | None = None,
    grid: int | Grid | None = None,
    pixel_mean: Pixel | None = None,
    pixel_std: Pixel | None = None,
) -> nn.Module:
    """The model at `path`: evaluation mode, float32, CPU. It has `description`, what :func:`describe` says of it, and
    `classes`, their names, None where it has none.

    path: a RUN directory or a model/ folder; a file or folder of another library, told by its contents: the released
        code, timm, Hugging Face, DALL-E, DALLE-pytorch; hf://owner/name on the Hugging Face Hub; or the name of a
        released model (`beit presets`).
    num_heads, grid, pixel_mean, pixel_std: see :class:`beit.checkpoints.reference.Stated`. All that it has can stand
        behind the path: "weights.pth@num_heads=6", see :mod:`beit.checkpoints.reference`.
    """
    model, description, notes = open_model(*locate(path, Stated(num_heads, sides(grid), pixel_mean, pixel_std)))
    names = description.get("classes")
    vars(model).update(description=description, classes=names and tuple(map(str, names)))
    for note in notes:
        logger.warning("%s: %s", path, note)
    return model


def load_encoder(path: str | Path, image_size: int | Sides | None = None) -> BeitEncoder:
    """The encoder of any model at `path`, see :func:`load_model`; position information resized when `image_size` is
    given."""
    encoder = encoder_of(load_model(part_of(str(path), "init")))
    if encoder is None:
        raise UserError(f"{path} is a tokenizer and has no encoder; give a pre-trained model or a classifier")
    return encoder if image_size is None else resize_encoder(encoder, image_size)


def load_tokenizer(path: str | Path) -> VisualTokenizer:
    """The visual tokenizer at `path`, see :func:`load_model`: evaluation mode, float32, CPU."""
    model = load_model(part_of(str(path), "tokenizer"))
    if not isinstance(model, VisualTokenizer):
        raise UserError(f"{path} is a {kind_of(model)} model and no tokenizer; train one with beit tokenizer")
    return model


def describe(path: str | Path) -> dict[str, Any]:
    """What the model at `path` is, in any format that :func:`beit.load_model` reads; its weights are not read.

    Keys as in model.json: kind, architecture, image_size, pixel_mean, pixel_std, classes, tokenizer, provenance, and
    vocab_size, num_classes, pool, layers and the like where a kind has them. Added: format; and for other libraries'
    files parameters, and unknown, missing, notes: what :func:`beit.load_model` would refuse, or leave out and say.
    Raises :class:`UserError` for what is no model.
    """
    place, stated = locate(path)
    contents = _survey(place, stated)
    return {"format": "beit", **read_description(place)} if contents is None else contents.description()


def open_model(path: Path, stated: Stated) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """The model, what :func:`describe` says of it, and a line for whatever was adapted."""
    contents = _survey(path, stated)
    if contents is None:
        model, description = load_own(path)
        return model, {"format": "beit", **description}, []
    model, notes = contents.assemble(stated.strict)
    return model, contents.description(), notes


def is_model(path: Path) -> bool:
    """Whether there is a model of ours at `path`, a file, or a folder that another library may have written."""
    from beit.checkpoints.foreign.formats import is_foreign

    return is_own(path) or is_foreign(path)


def _survey(path: Path, stated: Stated) -> "Survey | None":
    """What another library's file is; None for a model of our own, of which nothing can be stated."""
    if is_own(path):
        names = stated.names()
        require(not names, f"{path} tells its architecture itself; drop {', '.join(names)}")
        return None
    if is_model(path):
        from beit.checkpoints.foreign.formats import survey

        return survey(path, stated)
    if (path / "status.json").exists():
        raise UserError(f"{path} is a run without a finished model; continue it with the command that began it")
    what = f"holds no {DESCRIPTION} and is of no known format" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}; {REMEDY}")
