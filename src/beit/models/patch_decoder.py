"""What predicts hidden patches where the encoder has not seen them."""

import torch
from torch import Tensor, nn

from beit.config.architecture import MAX_DEPTH
from beit.config.errors import require
from beit.models.layers import Block
from beit.models.position import CLS_TOKENS, Grid, sincos_embedding

HEAD_WIDTH = 32
"""Dimensions of an attention head."""


def default_decoder_width(width: int) -> int:
    """For an encoder of this width: two fifths of it, in whole heads; 64 for 128 and 192, 320 for 768."""
    return HEAD_WIDTH * max(1, round(0.4 * width / HEAD_WIDTH))


class PatchDecoder(nn.Module):
    """A light transformer from tokens of the visible patches to a token for every patch (MAE, section 3).

    Linear to its own width, a mask token at each hidden place, sine-cosine positions, blocks without relative bias,
    LayerScale and dropout. `norm` is left to whoever reads the tokens, because not all of them are read.

    grid: the one that the coordinates of positions are scaled to, as in the encoder.
    """

    def __init__(self, grid: Grid, source_width: int, width: int, depth: int, layer_norm_eps: float) -> None:
        super().__init__()
        fits = width > 0 and width % HEAD_WIDTH == 0
        require(fits, f"--decoder-width {width} is not a multiple of {HEAD_WIDTH}")
        require(0 < depth <= MAX_DEPTH, f"--decoder-depth {depth} is not between 1 and {MAX_DEPTH}")
        self.grid, self.width = grid, width
        self.embed = nn.Linear(source_width, width)
        self.blocks = nn.ModuleList(
            Block(width, width // HEAD_WIDTH, layer_norm_eps=layer_norm_eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)

    def forward(self, tokens: Tensor, places: Tensor, mask_token: Tensor, grid: Grid) -> Tensor:
        """Class token and K visible patches (B, 1 + K, source width) -> class token and all N patches of `grid`, row
        by row, (B, 1 + N, width), not yet normed.

        places: (B, K) int64, where in the grid the visible patches are. mask_token: (1, 1, width), for the others.
        """
        tokens = self.embed(tokens)
        first = tokens.shape[1] - places.shape[1]
        hidden = mask_token.to(tokens.dtype).expand(len(tokens), grid[0] * grid[1], -1)
        patches = hidden.scatter(1, places[..., None].expand(-1, -1, self.width), tokens[:, first:])
        tokens = torch.cat([tokens[:, :CLS_TOKENS], patches], dim=1)  # without registers
        tokens = tokens + sincos_embedding(grid, self.grid, self.width, mask_token.dtype, mask_token.device)
        for block in self.blocks:
            tokens = block(tokens, None)
        return tokens
