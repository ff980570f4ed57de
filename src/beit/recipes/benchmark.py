"""`beit benchmark`: how fast this machine is at each stage of the work, beside its own rate of matrix products."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from beit.atomic import write_text
from beit.config.architecture import DiscreteVAEConfig
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.use import BenchmarkConfig
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
from beit.stages.batches import open_machine
from beit.stages.tasks.masked_modelling import (
    masked_image_model,
    masked_image_modelling,
    masking_of,
    num_predicted,
    tokens_by,
)
from beit.tokenizers.dvae import DiscreteVAE
from beit.training.console import duration
from beit.training.device import (
    Compute,
    Precision,
    autocast,
    choose_device,
    choose_precision,
    describe_machine,
    describe_versions,
    eval_mode,
)
from beit.training.optim import adamw, parameter_groups

PHOTOGRAPH = (375, 500)
"""Height and width of the images that are decoded: the usual size in ImageNet."""
VIEWS, SEEN, FINETUNING = "file to views, one process", "pre-training step, {} patches seen", "fine-tuning step"
"""Names of stages."""
CLASSES, SEGMENT_CLASSES = 1000, 150
IMAGENET = 1_281_167
"""Training images of ImageNet-1k, which the published recipes are for."""
VISIBLE: Values = {"encoder_sees": "visible", "masking": "random", "num_masked": "75%"}


class Stage(NamedTuple):
    """A piece of work on some images."""

    name: str
    images: int
    run: Callable[[], object]
    state: float = 0.0
    """Bytes of weights, gradients and moments."""


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure and print every stage, and what the recipes would take at that rate; the figures by name."""
    compute = Compute(choose_device(config.device))
    _, precision, workers, _ = open_machine(config, compute)
    limit = rate_of(compute, precision)
    machine = describe_machine(compute)
    print(f"machine    {machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, {precision}")
    print(f"limit      {limit / 1e9:,.0f} billion multiply-adds a second in products of matrices")
    print(f"encoder    {config.encoder} at {config.image_size} px, batches of {config.batch_size}\n")
    print(f"{'stage':40} {'images/s':>9} {'of limit':>9} {'data wait':>10} {'GiB':>6}   a million images")
    stages: dict[str, dict[str, float]] = {}
    for stage in chain([_views(config)], _stages(config, compute)):
        figures = stages[stage.name] = _measure(stage, compute, limit, config.seconds)
        rate = figures["images_per_second"]
        figures["data_wait"] = max(0.0, 1 - max(1, workers) * stages[VIEWS]["images_per_second"] / rate)
        columns = (f"{100 * figures[name]:.0f} %" for name in ("share", "data_wait"))
        memory = f"{figures['gib']:.1f}" if figures["gib"] else ""
        print(
            "{:40} {:9,.1f} {:>9} {:>10} {:>6}   {}".format(stage.name, rate, *columns, memory, duration(1e6 / rate))
        )
    recipes = _recipes(config.encoder, stages)
    for command, seconds in recipes.items():
        print(f"{command}: {duration(seconds)} here")
    results = {
        **{"machine": machine, "versions": describe_versions(), "config": dataclasses.asdict(config)},
        **{"precision": precision, "multiply_adds_per_second": limit, "stages": stages, "recipes": recipes},
    }
    if config.json is not None:
        write_text(Path(config.json), json.dumps(results, indent=2) + "\n")
    return results


def _measure(stage: Stage, compute: Compute, limit: float, seconds: float) -> dict[str, float]:
    """Images a second of a stage, the best of some calls; the share of the limit that its multiply-adds are; GiB."""
    counter = FlopCounterMode(display=False)
    with counter:
        kept = bytes_kept(stage.run)
    done, best, began = 0, float("inf"), time.perf_counter()
    while done < 1 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        stage.run()
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        best, done = min(best, time.perf_counter() - start), done + 1
    multiply_adds = counter.get_total_flops() / 2
    return {
        "images_per_second": stage.images / best,
        "share": multiply_adds / best / limit,
        "gib": (stage.state + kept) / 2**30 if stage.state else 0.0,
        "multiply_adds_per_image": multiply_adds / stage.images,
        "calls": done,
    }


def _views(config: BenchmarkConfig) -> Stage:
    """What one loader process does: a JPEG with the spectrum of photographs, decoded, cropped and rendered twice."""
    pretraining = _pretraining(config)
    grid = pretraining.architecture().grid
    size, token_size = pretraining.architecture().image_size, (8 * grid[0], 8 * grid[1])
    views = PretrainViews(size, token_size, masking_of(pretraining), min_scale=0.08, flip=0.5, color_jitter=0.4)
    rng = np.random.default_rng(0)
    spectrum = np.hypot(np.fft.fftfreq(PHOTOGRAPH[0])[:, None], np.fft.fftfreq(PHOTOGRAPH[1])) + 1e-3
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, *PHOTOGRAPH)), axes=(1, 2)) / spectrum, axes=(1, 2)).real
    pixels = (128 + 55 * noise / noise.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for number in range(16):
            views(decode_image(file.getvalue(), "photograph"), np.random.default_rng(number))
        torch.set_num_threads(threads)

    return Stage(VIEWS, 16, run)


def _stages(config: BenchmarkConfig, compute: Compute) -> Iterator[Stage]:
    """All that a network does, one after the other, so that no two are in memory."""
    pretraining, device, batch_size = _pretraining(config), compute.device, config.batch_size
    architecture, precision = pretraining.architecture(), choose_precision(config.precision, device)
    rows, columns = architecture.grid
    tokenizer = (
        DiscreteVAE(DiscreteVAEConfig(image_size=(8 * rows, 8 * columns))).to(device).eval().requires_grad_(False)
    )
    shapes = (3, *architecture.image_size), (3, 8 * rows, 8 * columns)
    images, token_images = (
        torch.randint(256, (batch_size, *shape), dtype=torch.uint8, device=device) for shape in shapes
    )
    work = Work(device, precision)
    yield work.inference("tokenizing, as DALL-E does", tokenizer.encode, token_images)
    for sees, values in (("all", {}), ("visible", VISIBLE)):
        training = _pretraining(config, **values)
        masking, count = masking_of(training), num_predicted(training)
        masks = [torch.from_numpy(masking(np.random.default_rng(number))) for number in range(batch_size)]
        batch = PretrainBatch(images, token_images, torch.stack(masks).to(device))
        network = masked_image_model(training, BeitEncoder(architecture), tokenizer.vocab_size)
        loss = lambda net, b=batch, c=count: masked_image_modelling(net, tokens_by(tokenizer), b, b.mask, c)[1]  # noqa: E731
        yield work.training(SEEN.format(sees), network, loss, batch_size)
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    classifier = ImageClassifier(BeitEncoder(architecture), CLASSES)
    yield work.training(FINETUNING, classifier, lambda net: F.cross_entropy(net(images), labels), batch_size)
    layers = released_layers("upernet", architecture.depth)
    segmenter = SemanticSegmenter(
        BeitEncoder(architecture), SEGMENT_CLASSES, decoder="upernet", layers=layers, channels=architecture.width
    )
    few = max(2, batch_size // 4)
    maps = torch.randint(SEGMENT_CLASSES, (few, *architecture.image_size), device=device)

    def segmentation_loss(net: nn.Module) -> Tensor:
        main, auxiliary = net(images[:few], auxiliary=True)
        return pixel_loss(main, maps) + 0.4 * pixel_loss(auxiliary, maps)

    yield work.training("segmentation step, UPerNet", segmenter, segmentation_loss, few)
    yield work.inference("features of images", classifier.encoder.eval().requires_grad_(False), images)
    yield work.inference("labels of images", classifier.eval().requires_grad_(False), images)
    yield work.inference("label maps of images", segmenter.eval().requires_grad_(False), images)


class Work(NamedTuple):
    """Where and how precisely a network runs."""

    device: torch.device
    precision: Precision

    def inference(self, name: str, model: Callable[[Tensor], object], images: Tensor) -> Stage:
        """What `model` makes of images, without learning from them."""

        def run() -> None:
            with eval_mode(self.device, self.precision):
                model(images)

        return Stage(name, len(images), run)

    def training(self, name: str, model: nn.Module, loss: Callable[[nn.Module], Tensor], images: int) -> Stage:
        """A whole step: forward, backward, clipping, optimiser."""
        model.to(self.device).train()
        optimizer = adamw(parameter_groups(model, weight_decay=0.05), lr=1e-5)

        def run() -> None:
            with autocast(self.device, self.precision):
                value = loss(model)
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Stage(name, images, run, state_bytes(model, averaged=False))


def _pretraining(config: BenchmarkConfig, **values: Any) -> PretrainConfig:
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return configure(PretrainConfig, config.encoder, data="-", out="-", tokenizer="dall-e", **sizes, **values)


def _recipes(encoder: str, stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds of the recipes of this encoder's name at the rates measured, on the images that they are meant for."""
    pretrain = configure(PretrainConfig, encoder, data="-", out="-", tokenizer="dall-e")
    commands = {
        f"beit pretrain --preset {encoder}": (SEEN.format("all"), pretrain.epochs),
        f"beit pretrain --preset {encoder} --encoder-sees visible": (SEEN.format("visible"), pretrain.epochs),
        "beit finetune after it": (FINETUNING, FinetuneConfig.epochs),
    }
    return {
        f"{command}, {epochs:g} epochs of {IMAGENET:,} images": epochs * IMAGENET / stages[stage]["images_per_second"]
        for command, (stage, epochs) in commands.items()
        if epochs is not None
    }
