"""What a model on disk is, told without reading its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from beit.checkpoints.description import is_own, read_description, refuse_needless
from beit.checkpoints.foreign.dalle import TokenizerSurvey
from beit.checkpoints.foreign.recognise import is_foreign, survey_foreign
from beit.checkpoints.foreign.survey import Foreign, Survey
from beit.checkpoints.kinds import KINDS
from beit.checkpoints.reference import Located, locate
from beit.checkpoints.store import ASKED
from beit.config.errors import UserError
from beit.tokenizers.plain_dvae import PlainDVAE


def describe(path: str | Path) -> dict[str, Any]:
    """What the model at `path` is, in any format that :func:`beit.load_model` reads.

    Keys as in model.json: kind, architecture, image_size, pixel_mean, pixel_std, classes, tokenizer, provenance, and
    vocab_size, num_classes, pool, layers and the like where a kind has them. Added: format; and for other libraries'
    files parameters, and unknown, missing, notes: what :func:`beit.load_model` would refuse, or leave out and say.
    Raises :class:`UserError` for what is no model.
    """
    return describe_located(locate(path))


def describe_located(located: Located) -> dict[str, Any]:
    """:func:`describe` of files whose place is known."""
    path, stated = located
    if is_own(path):
        refuse_needless(path, stated)
        return {"format": "beit", **read_description(path)}
    if not is_foreign(path):
        raise UserError(f"{path} holds no model; {ASKED}")
    opened, found = survey_foreign(path, stated)
    about = _tokenizer(found) if isinstance(found, TokenizerSurvey) else _encoder(opened, found)
    return {
        **about,
        "parameters": sum(parameter.numel() for parameter in found.model.parameters()),
        "unknown": list(found.unknown),
        "missing": list(found.missing),
    }


def _encoder(opened: Foreign | None, found: Survey) -> dict[str, Any]:
    assert opened is not None
    model, config = found.model, found.config
    options = KINDS[found.kind].options if found.kind in KINDS else ()
    return {
        "format": opened.format,
        "kind": found.kind,
        **{option: getattr(model, option) for option in options},
        **found.extra,
        "architecture": dataclasses.asdict(config),
        "image_size": config.image_size,
        "pixel_mean": config.pixel_mean,
        "pixel_std": config.pixel_std,
        "classes": None if opened.classes is None else list(opened.classes),
        "provenance": dict(opened.provenance),
        "notes": list(found.notes),
    }


def _tokenizer(found: TokenizerSurvey) -> dict[str, Any]:
    model, config = found.model, found.config
    plain = isinstance(model, PlainDVAE)
    return {
        "format": found.format,
        "kind": "tokenizer",
        "vocab_size": model.vocab_size,
        "architecture": config if plain else dataclasses.asdict(config),
        "image_size": model.image_size,
        # DALL-E's pixel map 0.1 + 0.8 x, written as (x - mean) / std.
        "pixel_mean": model.pixel_mean if isinstance(model, PlainDVAE) else (-0.125,) * 3,
        "pixel_std": model.pixel_std if isinstance(model, PlainDVAE) else (1.25,) * 3,
        "classes": None,
        "provenance": {},
        "notes": [],
    }
