"""`beit benchmark`: how fast this machine is at each stage of the work, beside its own rate of matrix products."""

import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_pil_image

from beit.atomic import write_text
from beit.config.architecture import DiscreteVAEConfig
from beit.config.pretrain import PretrainConfig
from beit.config.use import BenchmarkConfig, Outcome
from beit.config.values import counted, flag_of
from beit.data.batches import PretrainBatch
from beit.data.decode import decode_image
from beit.data.views.pretraining import PretrainViews
from beit.metrics.segmentation import pixel_loss
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier
from beit.models.segmentation import SemanticSegmenter, released_layers
from beit.presets import Values, configure
from beit.stages.auto.choices import rate_of
from beit.stages.auto.memory import bytes_kept, state_bytes
from beit.stages.batches import Machine, open_machine
from beit.stages.tasks import masked_modelling as task
from beit.tokenizers.dvae import DiscreteVAE
from beit.training.console import duration
from beit.training.device import Compute, autocast, choose_device, describe_machine, eval_mode
from beit.training.optim import adamw, parameter_groups

VIEWS = 32
"""Files that are decoded and rendered, of the usual size in ImageNet."""
CLASSES, SEGMENT_CLASSES, IMAGENET = 1000, 150, 1_281_167
"""Of ImageNet-1k and ADE20K; training images of the former, which the recipes are for."""
STEP = "pre-training step, {} patches seen"
SEES: dict[str, Values] = {"all": {}, "visible": {"masking": "random", "num_masked": "75%"}}


class Stage(NamedTuple):
    """A piece of work on some images."""

    name: str
    images: int
    forward: Callable[[], Any]
    """What is computed; of a training step, the loss."""
    model: nn.Module | None = None
    """What learns."""


def benchmark(config: BenchmarkConfig) -> Outcome:
    """Measure and print every stage, and what the recipe of the encoder would take, and return the figures."""
    compute = Compute(choose_device(config.device))
    machine, about = open_machine(config, compute), describe_machine(compute)
    limit, views = rate_of(compute, machine.precision), _rate_of_views(config)
    device = f"{about.get('gpu') or about['cpu']}, {counted(about['threads'], 'thread')}"
    print(f"machine    {device}, {machine.precision}")
    print(f"limit      {limit / 1e9:,.0f} billion multiply-adds a second in products of matrices")
    print(f"files      {views:,.0f} JPEG of 500x375 px a second to views, in one process")
    print(f"encoder    {config.encoder} at {config.image_size} px, batches of {config.batch_size}\n")
    print(f"{'stage':40} {'images/s':>9} {'of limit':>9} {'data wait':>10} {'GiB':>6}   a million images")
    stages: dict[str, dict[str, float]] = {}
    for stage in _stages(config, compute.device):
        figures = stages[stage.name] = _measure(stage, machine, config.seconds)
        rate = figures["images_per_second"]
        figures["share"] = rate * figures["multiply_adds_per_image"] / limit
        figures["data_wait"] = max(0.0, 1 - max(1, machine.workers) * views / rate)
        shares = f"{figures['share']:9.0%} {figures['data_wait']:10.0%} {figures['gib']:6.1f}"
        print(f"{stage.name:40} {rate:9,.1f} {shares}   {duration(1e6 / rate)}", flush=True)
    epochs = _pretraining(config).epochs or 0.0
    for sees, values in SEES.items():
        figures = stages[STEP.format(sees)]
        seconds = epochs * IMAGENET / figures["images_per_second"] / (1 - figures["data_wait"])
        sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
        flags = {"preset": config.encoder, "encoder_sees": sees, **sizes, **values}.items()
        recipe = " ".join(["beit pretrain", *(f"{flag_of(name)} {value}" for name, value in flags)])
        print(f"{recipe}, {epochs:g} epochs of {IMAGENET:,} images: {duration(seconds)} here")
    results = {"machine": about, "multiply_adds_per_second": limit, "views_per_second": views, "stages": stages}
    if config.json is not None:
        write_text(Path(config.json), json.dumps(results, indent=2) + "\n")
    return Outcome(config, results)


def _measure(stage: Stage, machine: Machine, seconds: float) -> dict[str, float]:
    """Images a second of a stage, the best of some calls; multiply-adds of an image; GiB of weights, gradients,
    moments and what a training pass keeps."""
    device, model = machine.compute.device, stage.model
    groups = [] if model is None else parameter_groups(model.to(device).train(), weight_decay=0.05)
    optimizer = adamw(groups, lr=1e-5) if groups else None

    def run() -> None:
        with (eval_mode if optimizer is None else autocast)(device, machine.precision):
            output = stage.forward()
        if optimizer is not None and model is not None:
            torch.autograd.backward(output)
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with FlopCounterMode(display=False) as counter:
        kept = bytes_kept(run)
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return {
        "images_per_second": stage.images / best,
        "multiply_adds_per_image": counter.get_total_flops() / 2 / stage.images,
        "gib": 0.0 if model is None else (state_bytes(model, averaged=False) + kept) / 2**30,
    }


def _rate_of_views(config: BenchmarkConfig) -> float:
    """Files a second that one loader process decodes and renders for encoder and tokenizer."""
    pretraining = _pretraining(config)
    architecture, threads = pretraining.architecture(), torch.get_num_threads()
    rows, columns = architecture.grid
    views = PretrainViews(architecture.image_size, (8 * rows, 8 * columns), task.masking_of(pretraining))
    smooth = F.interpolate(torch.rand(1, 3, 12, 16), (375, 500), mode="bicubic")[0]
    pixels = 255 * (smooth + 0.04 * torch.randn(3, 375, 500)).clamp(0, 1)
    to_pil_image(pixels.byte()).save(file := io.BytesIO(), "JPEG", quality=90)
    torch.set_num_threads(1)
    start = time.perf_counter()
    for number in range(VIEWS):
        views(decode_image(file.getvalue(), "photograph"), np.random.default_rng(number))
    torch.set_num_threads(threads)
    return VIEWS / (time.perf_counter() - start)


def _stages(config: BenchmarkConfig, device: torch.device) -> Iterator[Stage]:
    """All that a network does, one after the other, so that no two are in memory."""
    architecture, size = _pretraining(config).architecture(), config.batch_size
    token_size = (8 * architecture.grid[0], 8 * architecture.grid[1])
    tokenizer = DiscreteVAE(DiscreteVAEConfig(image_size=token_size)).to(device).eval().requires_grad_(False)
    images, token_images = (
        torch.randint(256, (size, 3, *pixels), dtype=torch.uint8, device=device)
        for pixels in (architecture.image_size, token_size)
    )
    yield Stage("tokenizing, as DALL-E does", size, partial(tokenizer.encode, token_images))
    for sees, values in SEES.items():
        training = _pretraining(config, encoder_sees=sees, **values)
        masks = [torch.from_numpy(task.masking_of(training)(np.random.default_rng(number))) for number in range(size)]
        batch = PretrainBatch(images, token_images, torch.stack(masks).to(device))
        network = task.masked_image_model(training, BeitEncoder(architecture), tokenizer.vocab_size)
        method = partial(task.masked_image_modelling, network, task.tokens_by(tokenizer), batch, batch.mask)
        yield Stage(STEP.format(sees), size, lambda: method(task.num_predicted(training))[1], network)  # noqa: B023  # run at once
    labels = torch.randint(CLASSES, (size,), device=device)
    classifier = ImageClassifier(BeitEncoder(architecture), CLASSES)
    yield Stage("fine-tuning step", size, lambda: F.cross_entropy(classifier(images), labels), classifier)
    layers = released_layers("upernet", architecture.depth)
    segmenter = SemanticSegmenter(
        BeitEncoder(architecture), SEGMENT_CLASSES, decoder="upernet", layers=layers, channels=architecture.width
    )
    few = max(2, size // 4)
    maps = torch.randint(SEGMENT_CLASSES, (few, *architecture.image_size), device=device)

    def segmentation_loss() -> Tensor:
        main, auxiliary = segmenter(images[:few], auxiliary=True)
        return pixel_loss(main, maps) + 0.4 * pixel_loss(auxiliary, maps)

    yield Stage("segmentation step, UPerNet", few, segmentation_loss, segmenter)
    models = {"features": classifier.encoder, "labels": classifier, "label maps": segmenter}
    for name, model in models.items():
        yield Stage(f"{name} of images", size, partial(model.eval().requires_grad_(False), images))


def _pretraining(config: BenchmarkConfig, **values: Any) -> PretrainConfig:
    """The recipe of the encoder, at the size that is asked for."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return configure(PretrainConfig, config.encoder, data="-", out="-", tokenizer="dall-e", **sizes, **values)
