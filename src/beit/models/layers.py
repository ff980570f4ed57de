"""The parts of a transformer block, and the decoder that is made of blocks.

Shapes: B images, N patches, T = prefix + N tokens, D width, H heads.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit.config.architecture import MAX_DEPTH
from beit.config.errors import require
from beit.models.position import CLS_TOKENS, Grid, sincos_embedding
from beit.pixels import cut_patches

LOGITS = 2**22
"""Logits that a loss holds at once: 512 rows of 8,192."""


class PatchEmbed(nn.Module):
    """Cuts images (B, C, H, W) into square patches and projects each linearly: (B, N, D), row by row.

    The weight is kept as the convolution of the official code, for its name and shape. Applied as one matrix
    product over the cut patches it is three times faster on a CPU than the strided convolution. Of images of more
    than 8 `bits` it is made in the precision of the weights, whatever autocast says: bfloat16 holds 8 bits.
    """

    def __init__(self, patch_size: int, width: int, channels: int = 3, bits: int = 8) -> None:
        super().__init__()
        self.patch_size, self.bits = patch_size, bits
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor, places: Tensor | None = None) -> Tensor:
        """All patches (B, N, D), or those at `places` (B, K): (B, K, D)."""
        patches = cut_patches(images, self.patch_size).flatten(2)
        if places is not None:
            patches = patches.gather(1, places[..., None].expand(-1, -1, patches.shape[-1]))
        if self.bits <= 8:
            return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        with torch.autocast(images.device.type, enabled=False):
            return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, (..., 1) of (..., values), over all its pixels and channels, as MAE has them:
    the root of the unbiased variance and 1e-6, so that a patch of one colour divides by no zero."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


class Mlp(nn.Module):
    """Linear, exact GELU, linear. No dropout between the two layers, as in the official code."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.drop(self.fc2(F.gelu(self.fc1(tokens))))
        return output


class DropPath(nn.Module):
    """Stochastic depth: each sample of a batch is set to zero with probability `rate`, the others are divided
    by 1 - rate. The identity in evaluation mode."""

    noise: Tensor | None = None
    """(B, 2) in [0, 1): decides of each sample and branch; see :func:`draw_paths`. None: torch's generator does."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, index: int) -> Tensor:
        """The branch `index` of a block, 0 or 1."""
        if not self.training or self.rate == 0:
            return branch
        noise = torch.rand(len(branch), 2, device=branch.device) if self.noise is None else self.noise
        keep = (noise[:, index] >= self.rate).to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))
        return branch * (keep / (1 - self.rate))


def draw_paths(model: nn.Module, uniform: Callable[..., Tensor]) -> None:
    """Decide which samples the blocks of `model` drop in the next pass, by `uniform(N, 2)`: (B, N, 2) in [0, 1)."""
    paths = [x for x in model.modules() if isinstance(x, DropPath) and x.training and x.rate > 0]
    if paths:
        for path, noise in zip(paths, uniform(len(paths), 2).unbind(1), strict=True):
            path.noise = noise


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, D) with an additive bias for every pair of tokens.

    Queries and values have biases, unless `qv_bias` is False. Keys have none, because a constant added to all scores
    of a query cancels in the softmax. `relative_position_bias_table`, where this block owns one, is read by the
    encoder.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float, bias_rows: int | None = None, qv_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qv_bias else None
        table = None if bias_rows is None else nn.Parameter(torch.zeros(bias_rows, num_heads))
        self.relative_position_bias_table = table
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, D) and a bias (1, H, T, T), (B, H, T, T) or None -> (B, T, D)."""
        query, key, value = self._query_key_value(tokens)
        if query.requires_grad and query.device.type == "cpu":
            # With a backward pass torch's fused attention for the CPU takes 4 to 13 times the time of these two
            # products in bfloat16 on a short row of tokens (17 to 65: 50 ms against 4 to 15), and as long in
            # float32. Without one, and on a GPU, it is the faster of the two.
            mixed = attention_weights(query, key, bias) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Tensor = self.drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return output

    def weights(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """The attention that :meth:`forward` pays, (B, H, T, T): row = looking token, rows sum to one."""
        query, key, _ = self._query_key_value(tokens)
        return attention_weights(query, key, bias)

    def _query_key_value(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> three of (B, H, T, D / H)."""
        qkv_bias = None
        if self.q_bias is not None and self.v_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(tokens, self.qkv.weight, qkv_bias)
        query, key, value = qkv.view(*tokens.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return query, key, value


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias), (B, H, T, T)."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.mT
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1)


class Block(nn.Module):
    """Pre-norm transformer block: x + gamma_1 attention(norm(x)), then x + gamma_2 mlp(norm(x)).

    LayerScale is two plain parameters here and no module of its own: as a module it would have to change the
    official names `gamma_1` and `gamma_2`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        layer_norm_eps: float,
        mlp_ratio: float = 4.0,
        layer_scale_init: float | None = None,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        bias_rows: int | None = None,
        qv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attn = Attention(width, num_heads, dropout, bias_rows, qv_bias)
        self.norm2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale_init = layer_scale_init or 0.0
        scales = layer_scale_init is not None
        self.gamma_1 = nn.Parameter(torch.full((width,), self.layer_scale_init)) if scales else None
        self.gamma_2 = nn.Parameter(torch.full((width,), self.layer_scale_init)) if scales else None

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """(B, T, D) and a bias (1, H, T, T), (B, H, T, T) or None -> (B, T, D)."""
        tokens = self._add(tokens, self.attn(self.norm1(tokens), bias), self.gamma_1, 0)
        return self._add(tokens, self.mlp(self.norm2(tokens)), self.gamma_2, 1)

    def _add(self, tokens: Tensor, branch: Tensor, gamma: Tensor | None, index: int) -> Tensor:
        if gamma is None:
            dropped: Tensor = self.drop_path(branch, index)
            return tokens + dropped
        # Dropping samples from gamma, (B, 1, D), and not from the branch, (B, T, D), saves a pass over the tokens.
        scale: Tensor = self.drop_path(gamma.expand(branch.shape[0], 1, -1), index)
        return tokens + scale * branch


def linear_cross_entropy(inputs: Tensor, layer: nn.Linear, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of layer(inputs), whose logits are not kept, and the share of rows that it gets right.

    inputs: (M, D). targets: int64 (M,). Both results are float32 at least. A few rows at a time, whose logits the
    backward pass computes once more: half a GMAC of the 80 that an image takes in a step of BEiT-base.
    """

    def sums(rows: Tensor, truth: Tensor) -> Tensor:
        logits = layer(rows)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.stack([F.cross_entropy(logits, truth, reduction="sum"), (logits.argmax(1) == truth).sum()])

    count = max(1, LOGITS // layer.out_features)
    parts = [*zip(torch.split(inputs, count), torch.split(targets, count), strict=True)]
    if parts[1:]:
        totals = torch.stack([checkpoint(sums, *part, use_reentrant=False) for part in parts]).sum(0)
    else:
        totals = sums(inputs, targets)
    loss, share = totals / len(inputs)
    return loss, share.detach()


# ------------------------------------------------------------------------------------------------------------
# What predicts hidden patches where the encoder has not seen them


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
