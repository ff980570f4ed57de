"""Small encoders with weights that leave no term of the network at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from beit.config.architecture import EncoderConfig


@pytest.fixture
def tiny() -> Callable[..., EncoderConfig]:
    def config(**changes: Any) -> EncoderConfig:
        small: dict[str, Any] = {
            "image_size": (32, 32),
            "patch_size": 8,
            "width": 32,
            "depth": 3,
            "num_heads": 4,
        }
        return EncoderConfig(**{**small, "layer_scale_init": 0.1, **changes})

    return config


@pytest.fixture
def shaken() -> Callable[[nn.Module], nn.Module]:
    def shake(model: nn.Module) -> nn.Module:
        """Random values for every parameter, so that no bias, table or scale is trivial."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.3 * noise + (parameter.dim() == 1) * 0.5)
        return model.eval()

    return shake
