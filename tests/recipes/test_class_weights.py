"""Weights of the classes in the loss: balanced, or from a file; of images, of sets of labels, and of pixels."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from arrivals import arrive
from PIL import Image
from tiny_runs import finetune_config, probe_config, segment_config

from beit.checkpoints.own import save_model
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.data.batches import LabeledBatch, SegmentationBatch
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier
from beit.recipes.finetune import finetune
from beit.recipes.probe import probe
from beit.recipes.segment import segment

PLAIN = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "holdout": 0.0}
WEIGHTS = torch.tensor([24 / 3 / 12, 24 / 3 / 8, 24 / 3 / 4])


@pytest.fixture
def unequal(tmp_path: Path) -> Path:
    """Twelve images of a, eight of b, and four of c."""
    for name, count in (("a", 12), ("b", 8), ("c", 4)):
        (tmp_path / "unequal" / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng([index, count]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "unequal" / name / f"{index}.png")
    return tmp_path / "unequal"


def test_balanced_weights_make_rare_classes_count(unequal: Path, tmp_path: Path) -> None:
    run = arrive(finetune, finetune_config(unequal, tmp_path / "run", class_weights="balanced", **PLAIN))
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    loss = run.step(lambda images: logits, LabeledBatch(torch.zeros(4, 3, 32, 32), labels)).loss
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, (each * WEIGHTS[labels]).mean())


def test_weights_of_sets_of_labels_and_of_a_file(unequal: Path, tmp_path: Path) -> None:
    rows = [f"{path.relative_to(unequal)},{path.parent.name};a" for path in sorted(unequal.rglob("*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    file = tmp_path / "weights.csv"
    file.write_text("c,4\na,0.5\nb,1e0\n")
    config = {"labels": str(tmp_path / "labels.csv"), "multilabel": True, "class_weights": str(file), **PLAIN}
    run = arrive(finetune, finetune_config(unequal, tmp_path / "run", **config))
    logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
    loss = run.step(lambda images: logits, LabeledBatch(torch.zeros(2, 3, 32, 32), labels)).loss
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(loss, (each * torch.tensor([0.5, 1, 4])).mean())
    lacks, others = "has no line `class,weight`, above 0, for {}; add it", "names {}, which is no class here or there"
    for text, fault in (
        ("a,1\nb,1\n", lacks.format("c")),
        ("a,1\nb,0\nc,1\n", lacks.format("b")),
        ("a,1\nb,-2\nc,nan\n", lacks.format("b, c")),
        ("a,1\nb,1e400\nc,1\n", lacks.format("b")),
        ("class;weight\na;1\nb;1\nc;1\n", lacks.format("a, b, c")),
        ("class,weight\na,1\nb,1\nc,1\nd,9\n", others.format("d")),
        ("a,1\nb,1\nc,1\na,3\n", others.format("a")),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=re.escape(f"--class-weights {file} {fault}")):
            finetune(finetune_config(unequal, tmp_path / "none", **config))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("stated", ["balanced", None])
def test_weights_of_the_linear_classifiers_of_a_probe(unequal: Path, tmp_path: Path, stated: str | None) -> None:
    encoder = EncoderConfig(image_size=(32, 32), patch_size=8, width=16, depth=2, num_heads=2)
    save_model(ImageClassifier(BeitEncoder(encoder), 2), tmp_path / "init", provenance={}, classes=["x", "y"])
    config = probe_config(unequal, tmp_path / "run", tmp_path / "init", class_weights=stated, holdout=0.2)
    run = arrive(probe, config)
    counts = Counter(run.feed.images.train.label(i) for i in range(len(run.feed.images.train)))
    weights = torch.tensor([sum(counts.values()) / 3 / counts[i] for i in range(3)]) if stated else torch.ones(3)
    logits, labels = torch.randn(4, 2, 3), torch.tensor([0, 2, 1, 2])
    loss = run.step(lambda features: logits, LabeledBatch(torch.zeros(4, 2, 16), labels)).loss
    each = [F.cross_entropy(logits[:, layer], labels, reduction="none") for layer in range(2)]
    torch.testing.assert_close(loss, sum((part * weights[labels]).mean() for part in each))


def test_weights_of_pixels(regions: Path, tmp_path: Path) -> None:
    config = segment_config(regions, tmp_path / "run", class_weights="balanced", auxiliary_weight=0.0, holdout=0.0)
    run = arrive(segment, config)
    source = run.feed.images.train
    counts = torch.stack([source.label(i).flatten().bincount(minlength=256) for i in range(len(source))]).sum(0)
    counts = counts[: len(source.classes)].double()
    weights = (counts.sum() / (counts > 0).sum() / counts.clamp(min=1)).float()
    logits = torch.randn(1, len(counts), 8, 8)
    labels = torch.randint(len(counts), (1, 8, 8), generator=torch.Generator().manual_seed(0))
    batch = SegmentationBatch(torch.zeros(1, 3, 8, 8), labels)
    loss = run.step(lambda images, auxiliary: [logits], batch).loss
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, weights, reduction="sum") / 64)
