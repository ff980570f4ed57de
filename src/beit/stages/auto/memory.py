"""How much memory and work training takes, measured on a few images, and how its passes are made to fit."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from beit.config.errors import require
from beit.config.run import TrainingConfig
from beit.config.values import counted
from beit.data.views.mixing import distance
from beit.models.encoder import BeitEncoder
from beit.presets import Choice
from beit.stages.auto.rehearsal import companion_bytes, untouched
from beit.stages.session import Session
from beit.tokenizers.dvae import Layers
from beit.training.device import Compute, Precision, autocast, memory_of
from beit.training.method import Method, Noise, StepOutput
from beit.training.plan import Job

FEW = 2
"""Images of the smaller pass that is measured: batch norms need two."""
MOST_PASSES = 10**6
"""That a batch is ever split into, of which all are looked through."""
SPARE = 0.25
"""Share of the memory that is left to gradients on their way and to all that is not counted."""


def fit_memory(session: Session[Any], method: Method, batch: Any, precision: Precision) -> Session[Any]:
    """`session` with the memory that training takes; `--accumulate auto` becomes the fewest passes that fit, and
    `--checkpoint-activations auto` on where none fits otherwise. UserError where a run that has not begun takes more
    than there is.

    batch: a few training images on the device.
    """
    if method.learner.step is None:
        return session
    config, compute, model = session.config, session.compute, method.learner.model
    whole: float = compute.from_main(lambda: memory_of(compute.device))
    whole /= compute.world if compute.device.type == "cpu" else 1
    memory = (1 - SPARE) * whole
    share = config.batch_size // compute.world
    wish, needed, choices = config.checkpoint_activations, list[float](), session.choices
    splits = _splits(config, share) if config.accumulate == "auto" else [config.passes]
    fixed = state_bytes(model, averaged=config.ema_decay is not None) + companion_bytes(method)
    for choice in ("off", "on") if wish == "auto" else (wish,):
        config = replace(config, checkpoint_activations=choice).as_typed(config.typed)
        checkpoint_activations(model, config)
        an_image = bytes_for_an_image(method, batch, compute, precision)
        takes = {split: share / split * an_image + fixed for split in splits}
        split = next((split for split in splits if takes[split] <= memory), splits[-1])
        needed.append(takes[split])
        if needed[-1] <= memory:
            break
    images = counted(share // split, "image")
    if config.accumulate == "auto":
        config = replace(config, accumulate=split).as_typed(config.typed)
        reason = f"passes of {images} take {_gib(needed[-1])} of {_gib(memory)}"
        choices = (*choices, Choice({"accumulate": split}, reason))
    if needed[1:]:
        reason = f"passes of {images} take {_gib(needed[0])} else, of {_gib(memory)}"
        choices = (*choices, Choice({"checkpoint_activations": choice}, reason))
    if needed[-1] > whole and not session.has_begun:
        passes = (n for n in range(split + 1, min(share, MOST_PASSES) + 1) if share % n == 0 and n % split == 0)
        fits = next((n for n in passes if share / n * an_image + fixed <= memory), None)
        mend = f"--accumulate {fits} takes fewer images at a time" if fits else "choose a smaller network or image"
        refusal = f"this run takes about {_gib(needed[-1])} of memory, and there are {_gib(whole)}; {mend}"
        require(session.dry_run, refusal)
        session.console.say(f"here it will be refused: {refusal}")
    return session._replace(config=config, memory=needed[-1], choices=choices)


def _splits(config: TrainingConfig, share: int) -> list[int]:
    """The numbers of passes, rising, that a device's share of a batch can be made in: of whole pairs of images, which
    are mixed, and which batch norms need."""
    pairs = 2 * distance(getattr(config, "repeats", 1))
    return [n for n in range(1, min(share, MOST_PASSES) + 1) if share % n == 0 and share // n % pairs == 0] or [1]


def _gib(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"


def checkpoint_activations(model: nn.Module, config: TrainingConfig) -> None:
    """Let the blocks of `model` compute their activations again in the backward pass, or keep them."""
    for module in model.modules():
        if isinstance(module, BeitEncoder | Layers):
            module.checkpoint_activations = config.checkpoint_activations == "on"


def bytes_for_an_image(method: Method, batch: Any, compute: Compute, precision: Precision) -> float:
    """Bytes that a training pass keeps for its gradient, for each of its images: what some take more than a few. The
    method is left as it was."""
    with untouched(method), torch.random.fork_rng(devices=[]), autocast(compute.device, precision):
        few, some = (bytes_kept(_pass(method, batch, count, compute)) for count in (FEW, 2 * FEW))
    return (some - few) / FEW


def work_of_an_image(job: Job, batch: Any) -> float:
    """Multiply-adds of a training step for each of the images of `batch`, without what is computed a second time. The
    method is left as it was."""
    method, compute, config, model = job.method, job.compute, job.plan.config, job.method.learner.model
    checkpoint_activations(model, replace(config, checkpoint_activations="off"))
    with untouched(method), torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        with autocast(compute.device, job.precision):
            output = _pass(method, batch, FEW, compute)()
        torch.autograd.backward(output.loss)
    checkpoint_activations(model, config)
    return float(counter.get_total_flops() / 2 / FEW)


def _pass(method: Method, batch: Any, count: int, compute: Compute) -> Callable[[], StepOutput]:
    """A training pass over the images of `batch`, over and over, until there are `count`."""
    assert method.learner.step is not None, "what takes no steps has no passes"
    images = type(batch)(*(part[torch.arange(count, device=part.device) % len(part)] for part in batch))
    noise = Noise(0, 0, range(count), compute.device)
    return partial(method.learner.step, method.learner.model.train(), images, 0, noise)


def bytes_kept(forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps after a forward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _output = forward()  # alive until all is counted
    return sum(storages.values())


def state_bytes(model: nn.Module, averaged: bool) -> float:
    """Bytes of weights, their average, gradients and two moments, all float32."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return 4 * sum(size * (1 + averaged + 3 * learns) for size, learns in sizes)
