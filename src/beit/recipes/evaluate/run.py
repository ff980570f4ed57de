"""`beit evaluate`: how good a model is on images, measured as its kind asks."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import nn

from beit.atomic import write_text
from beit.checkpoints.store import kind_of, load_model
from beit.config.errors import UserError, given_by
from beit.config.use import EvaluateConfig
from beit.data.views.evaluation import EvaluationView
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.evaluate.classifier import evaluate_classifier
from beit.recipes.evaluate.images import Damage, open_split
from beit.recipes.evaluate.pretrained import evaluate_pretrained
from beit.recipes.evaluate.segmenter import evaluate_segmenter
from beit.recipes.evaluate.tables import show
from beit.recipes.predict.output import require_writable_file
from beit.recipes.tokenizer import reconstruction_figures, reconstruction_sums
from beit.stages.batches import Machine, each_batch, open_machine, tell, totals
from beit.tokenizers.base import VisualTokenizer


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the figures of `config.model` on `config.data`, write them to `config.out`, and return them."""
    if config.out is not None:
        require_writable_file(config.out)
    with given_by("--model"):
        model = load_model(config.model)
    if config.tokenizer is not None and not isinstance(model, MaskedImageModel):
        raise UserError(f"--tokenizer is for pre-trained models, and {config.model} is none; drop it")
    if config.labels is not None and not isinstance(model, ImageClassifier | LinearProbe):
        raise UserError(f"--labels is for classifiers, and {config.model} is none; drop it")
    if (config.window or config.multi_scale) and not isinstance(model, SemanticSegmenter):
        flag = "--window" if config.window else "--multi-scale"
        raise UserError(f"{flag} is for segmenters, and {config.model} is none; drop it")
    machine = open_machine(config.precision, config.workers)
    model.to(machine.compute.device)
    if isinstance(model, ImageClassifier | LinearProbe):
        figures = evaluate_classifier(model, config, machine)
    elif isinstance(model, SemanticSegmenter):
        figures = evaluate_segmenter(model, config, machine)
    elif isinstance(model, MaskedImageModel):
        figures = evaluate_pretrained(model, config, machine)
    elif isinstance(model, VisualTokenizer):
        figures = evaluate_tokenizer(model, config, machine)
    else:
        raise UserError(
            f"{config.model} is a {kind_of(model)} model, of which there is nothing to evaluate; "
            f"beit probe judges an encoder"
        )
    figures = {"model": config.model, "kind": kind_of(model), "split": config.split, **figures}
    # A file or pipe has no width to keep to.
    show(figures, Console(width=None if sys.stdout.isatty() else 200))
    if config.out is not None:
        write_text(Path(config.out), json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {config.out}")
    return figures


def evaluate_tokenizer(model: VisualTokenizer, config: EvaluateConfig, machine: Machine) -> dict[str, Any]:
    """What is left of images that became tokens, and how much of the codebook is used."""
    source = open_split(config)
    tell(source.notes)
    damage = Damage(source, config.max_bad)
    sums = totals(
        each_batch(
            partial(reconstruction_sums, cast(nn.Module, model)),
            source,
            EvaluationView(model.image_size),
            machine,
            batch_size=config.batch_size,
            seed=config.seed,
            on_bad=damage,
            title="evaluating",
        )
    )
    images = damage.figures(source)
    figures = reconstruction_figures(machine.compute.sums(sums))
    return {**images, **figures, "vocab_size": model.vocab_size}
