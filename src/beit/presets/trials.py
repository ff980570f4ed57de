"""By how much seeds of a recipe differed, where several were tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPREADS: Mapping[tuple[Any, ...], float] = {
    ("finetune", "tiny", 625, None): 0.008,
    ("finetune", "small-data", 188, None): 0.098,
    ("segment", "camvid", 1101, "upernet"): 0.002,
    ("segment", "camvid", 1101, "pup"): 0.032,
    ("segment", "camvid", 459, "upernet"): 0.004,
    ("segment", "camvid", 459, "pup"): 0.023,
}
"""By verb, preset, steps and decoder: the largest difference of the scores of two seeds, pre-trained or from scratch,
as a share (docs/results.md)."""


def seed_spread(verb: str, config: Mapping[str, Any]) -> float | None:
    """That of the recipe in a config.yaml; None where no trial had its steps."""
    return SPREADS.get((verb, *(config.get(name) for name in ("preset", "steps", "decoder"))))
