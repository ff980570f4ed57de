"""`beit finetune`: classification (paper section 2.6), from a pre-trained encoder, a classifier, or from scratch.

image -> augmented view -> mixed with another of the batch -> encoder -> mean of the patches -> norm -> linear head
label -> smoothed target -> mixed alike ------------------------------> cross-entropy, or binary cross-entropy
"""

from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig, default_crop
from beit.config.errors import require
from beit.config.finetune import FinetuneConfig
from beit.data.batches import LabeledBatch
from beit.data.label_file import Labels
from beit.data.sources.subsets import label_share, labels_per_class
from beit.data.views.classification import ClassificationView
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.mixing import BatchMixing, distance, smoothed
from beit.metrics.classification import classification_sums, share_of_right, with_f1
from beit.models.layers import draw_paths
from beit.stages.auto.choices import settle
from beit.stages.scores.yardsticks import beside_classifier
from beit.stages.session import Feed, Images, Outcome, finished, open_session
from beit.stages.start.encoder import encoder_facts, rates
from beit.stages.start.heads import starting_classifier
from beit.stages.tasks.labels import class_weights, count_labels, open_with_labels
from beit.stages.train import train
from beit.training.method import Evaluation, Learner, Method, Noise, Notes, Product, Step, StepOutput
from beit.training.metrics import over_count
from beit.visualize.drawings import draw_predictions


def finetune(config: FinetuneConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Train a classifier on the labelled images of `config.data`; the run directory is `config.out`."""
    session = open_session("finetune", config, dry_run=dry_run, overwrite=overwrite)
    if session is None:
        return finished(config)
    config = session.config
    images, labels = open_with_labels(config, multilabel=config.multilabel, choose=partial(few_labels, config))
    session, config = settle(session, images)
    require_pairs(config, session.compute.world)
    model, about = starting_classifier(config, labels.classes)
    encoder = model.encoder.config
    crop_pct = default_crop(encoder.image_size) if config.crop_pct is None else config.crop_pct
    view, shown = training_view(config, encoder), EvaluationView(encoder.image_size, crop_share=crop_pct)
    feed = Feed(images=images, view=view, evaluation_view=LabeledView(shown), labeled=True, repeats=config.repeats)
    counts = partial(count_labels, images.train, labels)
    weights = class_weights(config.class_weights, labels.classes, counts, session.compute.device)
    description = {"interpolation": "bicubic", "crop_pct": crop_pct, "multilabel": config.multilabel}
    product = Product(classes=labels.classes, description=description, facts=encoder_facts(model.encoder.config))
    yardsticks, labels = beside_classifier(images, labels), labels.to(session.compute.device)
    step, decay = classification_step(config, labels, weights), config.decay_of_layers
    learner = Learner(model=model, step=step, layer_decay=decay, layer_groups=model.layer_groups())
    judging = replace(evaluation(config.multilabel, labels), yardsticks=yardsticks)
    about.append(rates(config, model.encoder))
    notes = Notes(about=about, next_command=f"beit predict --model {config.out} IMAGE...")
    return train(session, Method(learner=learner, evaluation=judging, product=product, notes=notes), feed)


def few_labels(config: FinetuneConfig, images: Images) -> Images:
    """As few images to train on as `config` asks for."""
    train = images.train
    if config.label_share is not None:
        train = label_share(train, config.label_share, config.seed, balanced=not config.multilabel)
    if config.labels_per_class is not None:
        train = labels_per_class(train, config.labels_per_class, config.seed)
    return images._replace(train=train)


def require_pairs(config: FinetuneConfig, world: int) -> None:
    """UserError where a pass does not hold whole pairs of images to mix."""
    whole = world * config.passes * 2 * distance(config.repeats)
    pairs = config.batch_size % whole == 0 or not (config.mixup or config.cutmix)
    advice = f"--batch-size {config.batch_size} must be a multiple of {whole}, or add --mixup 0 --cutmix 0"
    require(pairs, f"images are mixed in pairs, of which each pass holds whole ones: {advice}")


def classification_step(config: FinetuneConfig, labels: Labels, weights: Tensor | None) -> Step:
    """Targets smoothed, images and targets mixed, and cross-entropy, binary where an image has several classes, with
    the `weights` (C,) of the classes."""
    mixing = BatchMixing(config.mixup, config.cutmix, config.cutmix_share, config.repeats)
    loss_of = F.binary_cross_entropy_with_logits if config.multilabel else F.cross_entropy

    def step(model: nn.Module, batch: LabeledBatch, index: int, noise: Noise) -> StepOutput:
        targets = smoothed(labels.targets(batch.label), config.label_smoothing, multilabel=config.multilabel)
        images, targets = mixing(batch.image, targets, noise.of_batch())
        draw_paths(model, noise.uniform)
        logits = model(images).float()
        return StepOutput(loss_of(logits, targets, weights), {"top1": share_of_right(logits, targets)})

    return step


def evaluation(multilabel: bool, labels: Labels) -> Evaluation:
    """By the share of right answers, or by F1 where an image has several classes."""

    def evaluate(model: nn.Module, batch: LabeledBatch) -> dict[str, Tensor]:
        return classification_sums(model(batch.image), labels.targets(batch.label), multilabel=multilabel)

    return Evaluation(
        evaluate_batch=evaluate,
        summarise=with_f1 if multilabel else over_count,
        monitor="f1" if multilabel else "top1",
        monitor_mode="max",
        draw=partial(draw_predictions, labels),
    )


def training_view(config: FinetuneConfig, encoder: EncoderConfig) -> ClassificationView:
    """The augmented view that the configuration describes."""
    stated = {name: getattr(config, name) for name in ("flip", "color_jitter", "erasing")}
    stated |= {"magnitude": config.randaugment, "magnitude_std": config.randaugment_std, "min_scale": config.min_crop}
    return ClassificationView(encoder.image_size, mean=encoder.pixel_mean, std=encoder.pixel_std, **stated)
