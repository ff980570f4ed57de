"""`beit segment`: semantic segmentation (paper section 3.2), from a pre-trained model, a classifier, a segmenter, or
from scratch.

image     -> resized, cropped, flipped, recoloured -> encoder -> decoder -> a class for every pixel
label map -> resized, cropped, flipped ------------------------------------> cross-entropy, with auxiliary heads
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from beit.config.errors import UserError
from beit.config.segment import SegmentConfig
from beit.data.batches import SegmentationBatch
from beit.data.label_maps.pairs import PairSource, open_pairs
from beit.data.label_maps.table import IGNORE
from beit.data.views.segmentation import SegmentationEvaluationView, SegmentationView
from beit.metrics.segmentation import (
    Inference,
    by_class,
    confusion,
    pixel_loss,
    segmentation_figures,
)
from beit.models.memory import activations_of_segmenter
from beit.models.segmentation import SemanticSegmenter
from beit.stages.large_images import require_memory_for_all
from beit.stages.method import Method
from beit.stages.segmentation import draw_label_maps, judge
from beit.stages.stage import Stage, is_done
from beit.stages.start import encoder_facts, rates, starting_segmenter
from beit.training.device import Compute
from beit.training.optim import polynomial_schedule
from beit.training.plan import StepOutput


def segment(config: SegmentConfig, *, dry_run: bool = False, overwrite: bool = False) -> None:
    """Train a segmenter on the images and label maps of `config.data`; the run directory is `config.out`."""
    if is_done("segment", config, overwrite):
        return
    opener = partial(open_pairs, reduce_zero_label=config.reduce_zero_label, class_table=config.classes)
    stage = Stage("segment", config, opener)
    source, held_back = cast(PairSource, stage.source), cast(PairSource, stage.held_back)
    # 2,000 maps take seconds; a mistake that shows in the first evaluation takes the steps until then.
    held_back.verify_labels()
    model, about = starting_segmenter(config, source.classes)
    about += [*norms(config, stage.compute), rates(config, model.encoder.config.depth)]
    if stage.compute.world > 1 and stage.compute.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    encoder = model.encoder.config
    inference = Inference(config.resize, encoder.image_size, config.strides(encoder.image_size))
    require_memory_for_all(model, inference, held_back, stage.compute.device)
    judged = torch.zeros(model.num_classes, model.num_classes)

    def summarise(totals: Mapping[str, Tensor]) -> dict[str, float]:
        judged.copy_(totals["confusion"])
        return segmentation_figures(totals)

    stage.train(
        Method(
            model=model,
            step=partial(step, config.auxiliary_weight),
            view=training_view(config, model),
            evaluation_view=SegmentationEvaluationView(inference.reduced),
            evaluate=partial(judge, inference),
            evaluation_batch_size=1,
            draw=partial(draw_label_maps, inference, source.classes, source.palette),
            summarise=segmentation_figures,
            summarise_evaluation=summarise,
            monitor="miou",
            monitor_mode="max",
            labeled=True,
            blank_label=torch.full((64, 64), IGNORE, dtype=torch.uint8),
            schedule=partial(polynomial_schedule, power=config.power),
            layer_decay=config.decay_of_layers,
            layer_groups=model.layer_groups(),
            classes=source.classes,
            description=description(config, source, inference),
            details=lambda: {"classes": by_class(judged, source.classes)},
            facts=encoder_facts(model.encoder.config),
            about=[*about, inference.words()],
            activations=activations_of_segmenter(model),
            next_command=f"beit predict --model {config.out} --out MAPS IMAGE...",
        ),
        dry_run=dry_run,
        overwrite=overwrite,
    )


def step(auxiliary_weight: float, model: nn.Module, batch: SegmentationBatch, index: int) -> StepOutput:
    """Cross-entropy of the decoder, and of the auxiliary heads at their weight."""
    main, *auxiliary = model(batch.image, auxiliary=True)
    loss = pixel_loss(main, batch.label_map)
    for logits in auxiliary:
        loss = loss + auxiliary_weight * pixel_loss(logits, batch.label_map)
    # Every fourth pixel tells how training goes.
    main, truth = main.detach()[:, :, ::2, ::2], batch.label_map[:, ::2, ::2]
    return StepOutput(loss, {"confusion": confusion(main.argmax(1), truth, main.shape[1])})


def training_view(config: SegmentConfig, model: SemanticSegmenter) -> SegmentationView:
    """The augmented view that the configuration describes."""
    encoder = model.encoder.config
    return SegmentationView(
        encoder.image_size,
        base=config.resize,
        scale=config.scale,
        category_share=config.category_share,
        flip=config.flip,
        photometric=config.photometric,
        mean=encoder.pixel_mean,
    )


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
    images = config.batch_size // (compute.world * config.accumulate)
    together = compute.world > 1 and compute.device.type == "cuda"
    if config.decoder == "upernet" and images * (compute.world if together else 1) < 2:
        raise UserError(
            f"--batch-size {config.batch_size} leaves one image to a pass, and the batch norms of UPerNet need two; "
            f"raise it, or lower --accumulate {config.accumulate}"
        )
    if together:
        return [f"batch norms average over the {images * compute.world} images of a pass on all devices"]
    if compute.world > 1:
        return [
            f"batch norms average over the {images} images of a pass on each of {compute.world} CPU processes alone, "
            f"and those of the first are kept: only GPUs can share them"
        ]
    return []
