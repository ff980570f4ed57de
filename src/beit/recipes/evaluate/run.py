"""`beit evaluate`: how good a model is on images, measured as its kind asks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from beit.atomic import write_text
from beit.checkpoints.store import kind_of, load_model
from beit.config.errors import UserError, given_by
from beit.config.use import EvaluateConfig
from beit.models.heads import ImageClassifier, LinearProbe, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.evaluate.evaluation import Evaluation
from beit.recipes.evaluate.kinds import classifier, segmenter, tokenizer
from beit.recipes.evaluate.pretrained import pretrained
from beit.recipes.evaluate.tables import show
from beit.stages.batches import Machine
from beit.stages.inference import open_machine, require_writable_file
from beit.tokenizers.base import VisualTokenizer


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the figures of `config.model` on `config.data`, write them to `config.out`, and return them."""
    if config.out is not None:
        require_writable_file(config.out)
    with given_by("--model"):
        model = load_model(config.model)
    _require_flags_for(model, config)
    machine = open_machine(config)
    evaluation = evaluation_of(model.to(machine.compute.device), config, machine)
    about = {"model": config.model, "kind": kind_of(model), "split": config.split}
    figures = about | evaluation.figures(config, machine)
    # A file or pipe has no width to keep to.
    show(figures, Console(width=None if sys.stdout.isatty() else 200))
    if config.out is not None:
        write_text(Path(config.out), json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {config.out}")
    return figures


def evaluation_of(model: nn.Module, config: EvaluateConfig, machine: Machine) -> Evaluation:
    """How this kind of model is evaluated; its images are found, and nothing is computed yet but baselines."""
    if isinstance(model, ImageClassifier | LinearProbe):
        return classifier(model, config, machine)
    if isinstance(model, SemanticSegmenter):
        return segmenter(model, config, machine)
    if isinstance(model, MaskedImageModel):
        return pretrained(model, config, machine)
    if isinstance(model, VisualTokenizer):
        return tokenizer(model, config, machine)
    raise UserError(
        f"{config.model} is a {kind_of(model)} model, of which there is nothing to evaluate; "
        f"beit probe judges an encoder"
    )


def _require_flags_for(model: nn.Module, config: EvaluateConfig) -> None:
    """UserError for a flag that is for another kind of model."""
    for flag, value, kinds, name in (
        ("--tokenizer", config.tokenizer, (MaskedImageModel,), "pre-trained models"),
        ("--labels", config.labels, (ImageClassifier, LinearProbe), "classifiers"),
        ("--window", config.window, (SemanticSegmenter,), "segmenters"),
        ("--multi-scale", config.multi_scale, (SemanticSegmenter,), "segmenters"),
    ):
        if value and not isinstance(model, kinds):
            raise UserError(f"{flag} is for {name}, and {config.model} is none; drop it")
