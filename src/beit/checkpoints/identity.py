"""What a model's weights are, and where they come from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn


def weights_sha256(model: nn.Module) -> str:
    """The identity of a model's weights: a hash of names, shapes and float32 values, whatever its device."""
    return sha256_of(float32_weights(model))


def float32_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        key: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None).contiguous()
        for key, tensor in model.state_dict().items()
    }


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}\n".encode())
        digest.update(tensors[key].numpy().data)
    return digest.hexdigest()


def this_process() -> dict[str, Any]:
    try:
        version = importlib.metadata.version("beit")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "beit": version,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }
