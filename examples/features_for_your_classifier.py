"""Features for a classifier of your own: ``python features_for_your_classifier.py RUN LABELLED``.

RUN is a run of ``beit pretrain``, or any model that ``beit info`` can read; LABELLED has one folder of images for
each class. The encoder stays as it is; a linear classifier in plain torch learns from its features.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import beit


@torch.inference_mode()
def features(encoder: beit.BeitEncoder, files: list[Path], batch_size: int = 64) -> Tensor:
    """The mean of each image's patch features (N, D)."""
    height, width = encoder.config.image_size
    batches = []
    for start in range(0, len(files), batch_size):
        images = [
            np.array(Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
            for file in files[start : start + batch_size]
        ]
        pixels = torch.from_numpy(np.stack(images)).movedim(-1, 1)  # uint8 (B, 3, H, W)
        batches.append(encoder(pixels)[:, encoder.num_prefix_tokens :].mean(dim=1))
    return torch.cat(batches)


def fit_linear(inputs: Tensor, labels: Tensor, num_classes: int, weight_decay: float = 1e-3) -> torch.nn.Linear:
    """Multinomial logistic regression."""
    classifier = torch.nn.Linear(inputs.shape[1], num_classes)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(classifier(inputs), labels) + weight_decay * classifier.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return classifier


def classify(run: str, labelled: str) -> float:
    """Train on four fifths of the images; the share of the other fifth that is classified right."""
    files = sorted(file for file in Path(labelled).glob("*/*") if file.is_file())
    classes = sorted({file.parent.name for file in files})
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    inputs = features(beit.load_encoder(run).eval(), files)
    held_back = torch.arange(len(files)) % 5 == 0
    mean, std = inputs[~held_back].mean(dim=0), inputs[~held_back].std(dim=0) + 1e-6
    inputs = (inputs - mean) / std
    classifier = fit_linear(inputs[~held_back], labels[~held_back], len(classes))
    right = classifier(inputs[held_back]).argmax(dim=1) == labels[held_back]
    return float(right.float().mean())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{classify(*sys.argv[1:]):.1%} of the held-back images are classified right")
