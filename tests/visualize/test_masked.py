"""What pre-training draws of its predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from beit.config.architecture import EncoderConfig
from beit.config.pretrain import PixelNorm
from beit.data.batches import PretrainBatch
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
from beit.visualize import masked


@pytest.mark.parametrize("norm", ["patch", "none"])
def test_a_model_that_knows_the_pixels_draws_the_image(
    norm: PixelNorm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Oracle(MaskedImageModel):
        def forward(self, images: Tensor, mask: Tensor, predict: Tensor | None = None) -> Tensor:
            return self.pixel_targets(images, mask, norm)

    drawn: list[Tensor] = []
    monkeypatch.setattr(masked, "contact_sheet", lambda columns: drawn.extend(columns.values()))
    monkeypatch.setattr(masked, "save_picture", lambda *_: None)
    config = EncoderConfig(image_size=(16, 24), patch_size=8, width=8, depth=1, num_heads=1)
    image = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    batch = PretrainBatch(image, image, torch.rand(2, 2, 3) < 0.5)
    masked.draw_pixels(norm, Oracle(BeitEncoder(config), 192), [batch], tmp_path, 1)
    torch.testing.assert_close(drawn[-1], image / 255)
