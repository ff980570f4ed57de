"""What a recipe in a table is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]
"""Fields of a verb's configuration."""


@dataclass(frozen=True)
class Preset:
    """A recipe: `values` over the defaults of a verb's configuration, and the evidence for it."""

    values: Values
    summary: str
    source: str
    cost: str
    expected: str


# Encoders. Base and large: paper table 12. Small and tiny: the DeiT family's widths at BEiT's depth.
ENCODERS: Mapping[str, Values] = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "layer_scale_init": 1e-5, "clip_grad": 1.0},
}

# The paper's own backbone (main tables): plain ViT with learned positions, ImageNet statistics.
PLAIN: Values = {"position": "absolute", "layer_scale_init": None, "normalization": "imagenet"}
