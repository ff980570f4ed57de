"""`beit segment`: semantic segmentation (paper section 3.2), from a pre-trained model, a classifier, a segmenter, or
from scratch.

image     -> resized, cropped, flipped, recoloured -> encoder -> decoder -> a class for every pixel
label map -> resized, cropped, flipped ------------------------------------> cross-entropy, with auxiliary heads
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.segment import IGNORE, SegmentConfig
from beit.data.batches import SegmentationBatch
from beit.data.label_maps.pairs import PairSource, open_pairs
from beit.data.views.segmentation import SegmentationEvaluationView, SegmentationView
from beit.metrics.segmentation import by_class, confusion, pixel_loss, segmentation_figures
from beit.models.layers import draw_paths
from beit.models.windows import Inference
from beit.stages.auto.choices import settle
from beit.stages.scores.yardsticks import beside_segmenter
from beit.stages.session import Feed, Outcome, finished, open_images, open_session
from beit.stages.start.encoder import encoder_facts, rates
from beit.stages.start.heads import starting_segmenter
from beit.stages.tasks.labels import class_weights
from beit.stages.tasks.segmentation import evaluate_batch, predict_classes, require_memory_for_all
from beit.stages.train import train
from beit.training.console import bar
from beit.training.device import Compute
from beit.training.method import Evaluation, Learner, Method, Noise, Notes, Product, Step, StepOutput
from beit.training.optim import polynomial_schedule
from beit.visualize.drawings import draw_label_maps


def segment(config: SegmentConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Train a segmenter on the images and label maps of `config.data`; the run directory is `config.out`."""
    session = open_session("segment", config, dry_run=dry_run, overwrite=overwrite)
    if session is None:
        return finished(config)
    config = session.config
    classes: dict[str, Any] = {"reduce_zero_label": config.reduce_zero_label, "class_table": config.classes}
    images = open_images(config, partial(open_pairs, label_maps=config.label_maps, **classes))
    session, config = settle(session, images)
    source, held_back = cast(PairSource, images.train), cast(PairSource, images.held_back)
    model, about = starting_segmenter(config, source.classes)
    about += [*norms(config, session.compute), rates(config, model.encoder)]
    if session.compute.world > 1 and session.compute.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    encoder = model.encoder.config
    inference = Inference(config.resize, encoder.image_size, config.strides(encoder.image_size))
    with bar("reading label maps", None, shown=session.compute.main):
        for judged in filter(None, (held_back, cast(PairSource | None, images.test))):
            judged.count_pixels(len(judged))  # reads all, so that a mistake shows before it costs anything
            require_memory_for_all(model, inference, judged, session.compute.device)
    view, shown = training_view(config, encoder), SegmentationEvaluationView(inference.input_side)
    feed = Feed(images=images, view=view, evaluation_view=shown, labeled=True)
    weights = class_weights(config.class_weights, source.classes, source.count_pixels, session.compute.device)
    evaluation, details = evaluation_of(inference, source)
    learner = Learner(
        model=model,
        step=segmentation_step(config.auxiliary_weight, weights),
        summarise=segmentation_figures,
        schedule=partial(polynomial_schedule, power=config.power),
        layer_decay=config.decay_of_layers,
        layer_groups=model.layer_groups(),
    )
    judging = replace(evaluation, yardsticks=beside_segmenter(images))
    said, facts = description(config, source, inference), encoder_facts(encoder)
    product = Product(classes=source.classes, description=said, details=details, facts=facts)
    about.append(inference.words())
    notes = Notes(about=about, next_command=f"beit predict --model {config.out} --out MAPS IMAGE...")
    return train(session, Method(learner=learner, evaluation=judging, product=product, notes=notes), feed)


def evaluation_of(inference: Inference, source: PairSource) -> tuple[Evaluation, Callable[[], Mapping[str, Any]]]:
    """By mIoU, image by image; and the figures of every class at the last evaluation, for results.json."""
    last_confusion = torch.zeros(len(source.classes), len(source.classes))

    def summarise(totals: Mapping[str, Tensor]) -> dict[str, float]:
        last_confusion.copy_(totals["confusion"])
        return segmentation_figures(totals)

    evaluation = Evaluation(
        evaluate_batch=partial(evaluate_batch, inference),
        summarise=summarise,
        monitor="miou",
        monitor_mode="max",
        batch_size=1,
        draw=partial(draw_label_maps, partial(predict_classes, inference), source.classes, source.palette),
    )
    return evaluation, lambda: by_class(last_confusion, source.classes)


def segmentation_step(auxiliary_weight: float, weights: Tensor | None) -> Step:
    """Cross-entropy of the decoder, and of the auxiliary heads at their weight, with the `weights` of the classes."""

    def step(model: nn.Module, batch: SegmentationBatch, index: int, noise: Noise) -> StepOutput:
        draw_paths(model, noise.uniform)
        main, *auxiliary = model(batch.image, auxiliary=True)
        loss = pixel_loss(main, batch.label_map, weights)
        for logits in auxiliary:
            loss = loss + auxiliary_weight * pixel_loss(logits, batch.label_map, weights)
        # Every fourth pixel tells how training goes.
        main, truth = main.detach()[:, :, ::2, ::2], batch.label_map[:, ::2, ::2]
        return StepOutput(loss, {"confusion": confusion(main.argmax(1), truth, main.shape[1])})

    return step


def training_view(config: SegmentConfig, encoder: EncoderConfig) -> SegmentationView:
    """The augmented view that the configuration describes."""
    stated = {name: getattr(config, name) for name in ("scale", "category_share", "flip", "photometric")}
    return SegmentationView(encoder.image_size, base=config.resize, mean=encoder.pixel_mean, **stated)


def description(config: SegmentConfig, source: PairSource, inference: Inference) -> dict[str, Any]:
    """What model.json says about the images and label maps."""
    return {
        "resize": inference.resize,
        "crop": inference.crop,
        "stride": inference.stride,
        "reduce_zero_label": config.reduce_zero_label,
        "ignore_value": IGNORE,
        "palette": [list(color) for color in source.palette],
    }


def norms(config: SegmentConfig, compute: Compute) -> list[str]:
    """Over which images batch norms average, where that is not plain. UserError where they have too few."""
    images = config.batch_size // (compute.world * config.passes)
    together = compute.world > 1 and compute.device.type == "cuda"
    if config.decoder == "upernet" and images * (compute.world if together else 1) < 2:
        few = f"--batch-size {config.batch_size} leaves one image to a pass, and the batch norms of UPerNet need two"
        raise UserError(f"{few}; raise it, or lower --accumulate {config.passes}")
    if compute.world == 1:
        return []
    where = "on all devices" if together else "on each process alone, and those of the first are kept"
    return [f"batch norms average over the images of a pass {where}"]
