"""Which parameters learn how fast: weight decay, layer-wise learning-rate decay, schedules over steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

NO_DECAY = ("pos_embed", "cls_token")
"""Parameters without weight decay besides vectors and biases (released code). The mask token and tables of
relative position bias are decayed there, and so here."""


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    layer_groups: Sequence[Sequence[nn.Parameter]] | None = None,
    no_decay: Collection[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as optimiser groups, each parameter in exactly one.

    Args:
        weight_decay: for every parameter but vectors, biases and those whose own name is in `no_decay`.
        layer_decay: group i of the n in `layer_groups` learns at `layer_decay ** (n - 1 - i)` of the rate.
        layer_groups: the model's own parameters from input to output, the head in the last group.

    Returns:
        Groups with `params`, `weight_decay`, `lr_scale` (for :func:`set_learning_rate`) and `name`.

    Raises:
        ValueError: `layer_groups` leave a trainable parameter out, or name one twice.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if layer_groups is None:
        if layer_decay != 1:
            raise ValueError("layer_decay needs the layer_groups of the model")
        layer_groups = [list(named.values())]
    layer_of: dict[int, int] = {}
    for layer, parameters in enumerate(layer_groups):
        for parameter in parameters:
            if id(parameter) in layer_of:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is in two layer groups")
            layer_of[id(parameter)] = layer
    forgotten = [name for name, parameter in named.items() if id(parameter) not in layer_of]
    if forgotten:
        raise ValueError(f"in no layer group: {', '.join(forgotten)}")

    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        layer = layer_of[id(parameter)]
        own_name = name.rpartition(".")[2]
        decayed = parameter.ndim > 1 and own_name != "bias" and own_name not in no_decay
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": layer_decay ** (len(layer_groups) - 1 - layer),
                "name": f"layer {layer}, {'decayed' if decayed else 'not decayed'}",
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def adamw(
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over the groups of :func:`parameter_groups`, in one kernel where torch has it."""
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=kinds <= {"cpu", "cuda"})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def cosine_schedule(
    step: int,
    *,
    peak: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    warmup_start: float = 0.0,
) -> float:
    """The rate of `step` (from 0): linear warm-up with both ends included, then half a cosine towards `final`.

    As in the released code, the first step of a warm-up has rate `warmup_start`, and `final` is what the step
    after the last would have.
    """
    if step < warmup_steps:
        return warmup_start + (peak - warmup_start) * step / max(1, warmup_steps - 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def polynomial_schedule(
    step: int,
    *,
    peak: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    power: float = 1.0,
    warmup_ratio: float = 1e-6,
) -> float:
    """The rate of `step` (from 0) in segmentation: (1 - step / total) ** power, under a linear warm-up factor.

    The factor rises from `warmup_ratio` to 1 and multiplies the decaying rate (mmsegmentation's rule).
    """
    remaining = 1 - min(step, total_steps) / total_steps
    rate: float = final + (peak - final) * remaining**power
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return rate
