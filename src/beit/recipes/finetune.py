"""`beit finetune`: classification (paper section 2.6), from a pre-trained encoder, a classifier, or from scratch.

image -> augmented view -> mixed with another of the batch -> encoder -> mean of the patches -> norm -> linear head
label -> smoothed target -> mixed alike ------------------------------> cross-entropy, or binary cross-entropy
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig, default_crop
from beit.config.finetune import FinetuneConfig
from beit.data.batches import LabeledBatch
from beit.data.label_file import Labels
from beit.data.sources.opening import open_source
from beit.data.sources.subsets import label_share, labels_per_class
from beit.data.views.classification import ClassificationView
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.mixing import BatchMixing, smoothed
from beit.metrics.classification import classification_sums, draw_predictions, share_of_right, with_f1
from beit.models.memory import activations_of_encoder
from beit.stages.labels import label_images
from beit.stages.method import Method
from beit.stages.stage import Stage, is_done
from beit.stages.start import encoder_facts, rates, starting_classifier
from beit.training.metrics import over_count
from beit.training.plan import StepOutput


def finetune(config: FinetuneConfig, *, dry_run: bool = False, overwrite: bool = False) -> None:
    """Train a classifier on the labelled images of `config.data`; the run directory is `config.out`."""
    if is_done("finetune", config, overwrite):
        return
    stage = Stage("finetune", config, partial(open_source, labeled=config.labels is None))
    labels = prepare_labels(config, stage)
    model, about = starting_classifier(config, labels.classes)
    labels = labels.to(stage.compute.device)
    mixing = BatchMixing(config.mixup, config.cutmix, config.cutmix_share)
    loss_of = F.binary_cross_entropy_with_logits if config.multilabel else F.cross_entropy

    def step(model: nn.Module, batch: LabeledBatch, index: int) -> StepOutput:
        targets = smoothed(labels.targets(batch.label), config.label_smoothing, multilabel=config.multilabel)
        images, targets = mixing(batch.image, targets)
        logits = model(images).float()
        return StepOutput(loss_of(logits, targets), {"top1": share_of_right(logits, targets)})

    def evaluate(model: nn.Module, batch: LabeledBatch) -> dict[str, Tensor]:
        targets = labels.targets(batch.label)
        return classification_sums(model(batch.image), targets, multilabel=config.multilabel)

    encoder = model.encoder.config
    crop_pct = default_crop(encoder.image_size) if config.crop_pct is None else config.crop_pct
    stage.train(
        Method(
            model=model,
            step=step,
            view=training_view(config, encoder),
            evaluation_view=LabeledView(EvaluationView(encoder.image_size, crop_share=crop_pct)),
            evaluate=evaluate,
            draw=partial(draw_predictions, labels, config.multilabel),
            summarise_evaluation=with_f1 if config.multilabel else over_count,
            monitor="f1" if config.multilabel else "top1",
            monitor_mode="max",
            labeled=True,
            repeats=config.repeats,
            layer_decay=config.decay_of_layers,
            layer_groups=model.layer_groups(),
            classes=labels.classes,
            description={"interpolation": "bicubic", "crop_pct": crop_pct, "multilabel": config.multilabel},
            facts=encoder_facts(model.encoder.config),
            about=[*about, rates(config, encoder.depth)],
            activations=activations_of_encoder(encoder),
            next_command=f"beit predict --model {config.out} IMAGE...",
        ),
        dry_run=dry_run,
        overwrite=overwrite,
    )


def prepare_labels(config: FinetuneConfig, stage: Stage) -> Labels:
    """Give the stage's images their labels, and keep few for training where asked for; returns what they mean."""
    labels = label_images(stage, config.labels, multilabel=config.multilabel)
    if config.label_share is not None:
        stage.source = label_share(
            stage.source, config.label_share, config.seed, balanced=not config.multilabel
        )
    if config.labels_per_class is not None:
        stage.source = labels_per_class(stage.source, config.labels_per_class, config.seed)
    return labels


def training_view(config: FinetuneConfig, encoder: EncoderConfig) -> ClassificationView:
    """The augmented view that the configuration describes."""
    return ClassificationView(
        encoder.image_size,
        min_scale=config.min_crop,
        flip=config.flip,
        color_jitter=config.color_jitter,
        magnitude=config.randaugment,
        magnitude_std=config.randaugment_std,
        erasing=config.erasing,
        mean=encoder.pixel_mean,
        std=encoder.pixel_std,
    )
