"""Which parameters learn how fast: weight decay, layer-wise learning-rate decay, schedules over steps."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

NO_DECAY = ("pos_embed", "cls_token", "register_tokens")
"""Parameters without weight decay besides vectors and biases (released code). The mask token and tables of
relative position bias are decayed there, and so here."""
COOL_DOWN = 0.1
"""Share of the steps in which a constant rate falls."""
WARMUP_RATIO = 1e-6
"""The share of the rate that a warm-up in segmentation begins with (mmsegmentation)."""


class Rates(NamedTuple):
    """What a schedule of the learning rate lies between, and in how many steps."""

    peak: float
    final: float
    warmup_steps: int
    total_steps: int


Schedule = Callable[[int, Rates], float]
"""The learning rate of a step, from 0."""


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    layer_groups: Sequence[Sequence[nn.Parameter]] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as optimiser groups, each parameter in exactly one.

    Args:
        weight_decay: for every parameter but vectors, biases and those whose own name is in `NO_DECAY`.
        layer_decay: group i of the n in `layer_groups` learns at `layer_decay ** (n - 1 - i)` of the rate.
        layer_groups: the model's own parameters from input to output, the head in the last group.

    Returns:
        Groups with `params`, `weight_decay`, `lr_scale` (for :func:`set_learning_rate`) and `name`.

    Raises:
        ValueError: `layer_groups` leave a trainable parameter out, or name one twice.
    """
    if layer_groups is None and layer_decay != 1:
        raise ValueError("layer_decay needs the layer_groups of the model")
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = [list(named.values())] if layer_groups is None else layer_groups
    layer_of = {id(parameter): layer for layer, group in enumerate(layers) for parameter in group}
    if len(layer_of) < sum(map(len, layers)):
        raise ValueError("a parameter is in two layer groups")
    if missing := [name for name, parameter in named.items() if id(parameter) not in layer_of]:
        raise ValueError(f"in no layer group: {', '.join(missing)}")

    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        layer = layer_of[id(parameter)]
        own_name = name.rpartition(".")[2]
        is_decayed = parameter.ndim > 1 and own_name != "bias" and own_name not in NO_DECAY
        group = {
            "params": [],
            "weight_decay": weight_decay if is_decayed else 0.0,
            "lr_scale": layer_decay ** (len(layers) - 1 - layer),
            "name": f"layer {layer}, {'decayed' if is_decayed else 'not decayed'}",
        }
        groups.setdefault((layer, is_decayed), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def adamw(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW over the groups of :func:`parameter_groups`, in one kernel where torch has it. There may be none."""
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups or [{"params": []}], lr=lr, betas=betas, fused=kinds <= {"cpu", "cuda"})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def cosine_schedule(step: int, rates: Rates) -> float:
    """The rate of `step` (from 0): linear warm-up with both ends included, then half a cosine towards `final`.

    As in the released code, the first step of a warm-up has rate 0, and `final` is what the step after the last
    would have.
    """
    peak, final, warmup, total = rates
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def constant_schedule(step: int, rates: Rates) -> float:
    """The rate of `step` (from 0): the cosine's warm-up, `peak`, and a straight line towards `final` at the end."""
    start = cool_down_start(rates.total_steps)
    if step <= start:
        return min(rates.peak, cosine_schedule(min(step, rates.warmup_steps), rates))
    return rates.peak + (rates.final - rates.peak) * (step - start) / (rates.total_steps - start)


def cool_down_start(total_steps: int) -> int:
    """The step of a constant schedule whose rate is the last to be constant."""
    return total_steps - round(COOL_DOWN * total_steps)


def polynomial_schedule(step: int, rates: Rates, power: float = 1.0) -> float:
    """The rate of `step` (from 0) in segmentation: (1 - step / total) ** power, under a linear warm-up factor.

    The factor rises from :data:`WARMUP_RATIO` to 1 and multiplies the decaying rate (mmsegmentation's rule).
    """
    peak, final, warmup, total = rates
    remaining = 1 - min(step, total) / total
    rate: float = final + (peak - final) * remaining**power
    if step < warmup:
        rate *= 1 - (1 - step / warmup) * (1 - WARMUP_RATIO)
    return rate
