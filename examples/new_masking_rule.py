"""A masking rule of your own: ``python new_masking_rule.py RUN TOKENIZER PHOTOGRAPHS``.

A rule is a function of a random generator that draws one mask, bool (rows, columns), True = hidden, like those of
``beit.masking``. This one hides whole columns of patches. The pre-trained model of RUN is asked for the tokens that
it hides, and for those that the paper's blocks hide, and learns a little from the new task.
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
from beit.masking import BlockwiseMasking, Mask


class ColumnMasking:
    """Hides `share` of the columns of patches, at least one and never all."""

    def __init__(self, grid: tuple[int, int], share: float = 0.4) -> None:
        self.grid = grid
        self.hidden_columns = min(max(round(share * grid[1]), 1), grid[1] - 1)

    def __call__(self, rng: np.random.Generator) -> Mask:
        mask = np.zeros(self.grid, dtype=np.bool_)
        mask[:, rng.choice(self.grid[1], self.hidden_columns, replace=False)] = True
        return mask


def read(files: list[Path], size: tuple[int, int]) -> Tensor:
    """The images as uint8 (B, 3, *size)."""
    images = [Image.open(file).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC) for file in files]
    return torch.from_numpy(np.stack([np.array(image) for image in images])).movedim(-1, 1)


def compare(run: str, tokenizer: str, photographs: str, steps: int = 10) -> dict[str, float]:
    """Masked-token losses under both rules, and under the new one after `steps` steps of training with it."""
    model, visual_tokenizer = beit.load_model(run), beit.load_tokenizer(tokenizer)
    assert isinstance(model, beit.MaskedImageModel)
    files = sorted(file for file in Path(photographs).iterdir() if file.suffix.lower() in (".jpg", ".png"))[:64]
    images = read(files, model.encoder.config.image_size)
    with torch.no_grad():
        tokens = visual_tokenizer.encode(read(files, visual_tokenizer.image_size))
    rng = np.random.default_rng(0)

    def loss(rule: ColumnMasking | BlockwiseMasking) -> Tensor:
        mask = torch.from_numpy(np.stack([rule(rng) for _ in files]))
        return F.cross_entropy(model(images, mask), tokens[mask])

    columns, blocks = ColumnMasking(model.encoder.grid), BlockwiseMasking(model.encoder.grid)
    with torch.no_grad():
        losses = {"blocks": float(loss(blocks)), "columns": float(loss(columns))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(columns).backward()
        optimizer.step()
    with torch.no_grad():
        return losses | {f"columns, {steps} steps later": float(loss(columns))}


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    for rule, value in compare(*sys.argv[1:]).items():
        print(f"{rule}: {value:.3f} nats for each hidden token")
