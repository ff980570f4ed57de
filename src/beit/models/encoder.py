"""BeitEncoder: images -> tokens. One encoder for every task; methods and heads take it.

Shapes: B images of C channels and (H, W) pixels, (h, w) the patch grid, N = h w patches, D width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import beit.models.position as position
from beit.config.architecture import EncoderConfig, InitScheme
from beit.config.errors import UserError
from beit.models.layers import Block, PatchEmbed
from beit.models.position import Grid
from beit.pixels import checked, per_channel, white


class BeitEncoder(nn.Module):
    """Vision Transformer of the BEiT paper (section 2.5), plain or with relative position bias and LayerScale.

    images (B, C, H, W), float in [0, 1] or uint8, or uint16 where `value_range` says what these mean
        -> embed -> patches (B, N, D) -> transform -> (B, 1 + N, D).
    Given `places` (B, K), embed and transform work on these K patches of each image, as if there were no others.
    H and W are any multiples of the patch size: position information is resized when they are not
    `config.image_size`. Parameter names are those of the official code.
    """

    num_prefix_tokens: int
    """Tokens before the patches: the class token, then registers."""
    value_range: tuple[float, ...] | None = None
    """The numbers that are black and white in images of uint16, of all channels or of one after another; None for an
    encoder of 8 bits, which takes no such images."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.grid: Grid = config.grid
        self.checkpoint_activations = False
        """Recompute each block in the backward pass instead of keeping its activations: less memory, more time."""

        self.frozen_blocks = 0
        """Blocks from the first on that do not learn; see :meth:`freeze`."""

        width, grid = config.width, config.grid
        self.num_prefix_tokens = position.CLS_TOKENS + config.num_registers
        self.patch_embed = PatchEmbed(config.patch_size, width, config.channels, config.pixel_bits)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        registers = config.num_registers
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.final_norm else None
        places = position.CLS_TOKENS + math.prod(grid)
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width)) if config.position == "absolute" else None
        self.rel_pos_bias = position.RelativePositionBias(grid, config.num_heads) if config.bias == "shared" else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale_init=config.layer_scale_init,
                drop_path_rate=config.drop_path_rate * layer / max(config.depth - 1, 1),
                dropout=config.dropout,
                layer_norm_eps=config.layer_norm_eps,
                bias_rows=position.bias_table_rows(grid) if config.bias == "block" else None,
                qv_bias=config.qv_bias,
            )
            for layer in range(config.depth)
        )
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> class token and patches after the last block, (B, 1 + N, D), no final norm."""
        return self.transform(self.embed(images), self.grid_of(images))

    def embed(self, images: Tensor, places: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> patches (B, N, D), row by row, or those at `places` (B, K), int64; without positions."""
        self.grid_of(images)
        images = checked(images, self.value_range, look=not self.training)
        return cast(Tensor, self.patch_embed(self.normalize(images), places))

    def transform(self, patches: Tensor, grid: Grid, places: Tensor | None = None) -> Tensor:
        """Patches of `grid`, all N or those at `places` (B, K) -> class token and patches after the last block,
        (B, 1 + N, D) or (B, 1 + K, D)."""
        if places is not None:  # among all tokens, the class token's first
            places = F.pad(places + 1, (1, 0))
        tokens = self._tokens(patches, grid, places)
        return self._run_blocks(tokens, grid, [self.config.depth - 1], places)[0]

    def intermediates(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Patches after the named blocks (0 the first, -1 the last), each as a map (B, D, h, w), no final norm."""
        grid = self.grid_of(images)
        states = self.states(images, layers)
        return [x[:, self.num_prefix_tokens :].mT.reshape(x.shape[0], -1, *grid) for x in states]

    def states(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """All tokens after the named blocks (0 the first, -1 the last), each (B, 1 + N, D), no final norm."""
        grid = self.grid_of(images)
        return self._run_blocks(self._tokens(self.embed(images), grid), grid, [*map(self._layer, layers)])

    def normed(self, tokens: Tensor) -> Tensor:
        """Tokens after a block, (B, P + N, D), as features are read: by the norm of an encoder that keeps one."""
        return tokens if self.norm is None else self.norm(tokens)

    def attention(self, images: Tensor, layer: int = -1) -> Tensor:
        """Attention that block `layer` pays, (B, heads, 1 + N, 1 + N): rows sum to one, row and column 0 class."""
        grid, layer = self.grid_of(images), self._layer(layer)
        tokens = self._tokens(self.embed(images), grid)
        if layer > 0:
            tokens = self._run_blocks(tokens, grid, [layer - 1])[0]
        block, bias = next(islice(self._blocks_and_biases(grid), layer, None))
        return block.attn.weights(block.norm1(tokens), bias)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1] -> (x - pixel_mean) / pixel_std in the precision of the weights."""
        weight, scale = self.patch_embed.proj.weight, white(images)
        constants = self.config.pixel_mean, self.config.pixel_std
        mean, std = (scale * per_channel(values, weight) for values in constants)
        return (images.to(weight.dtype) - mean) / std

    def grid_of(self, images: Tensor) -> Grid:
        """Rows and columns of patches of images (B, C, H, W)."""
        height, width = images.shape[-2:]
        side, count = self.patch_embed.patch_size, self.patch_embed.proj.in_channels
        if images.dim() != 4 or images.shape[1] != count or height % side or width % side or not height * width:
            given, mend = tuple(images.shape), f"give (batch, {count}, height, width) with sides that are multiples"
            patches = f"patches of {side}x{side} pixels"
            raise UserError(f"images of shape {given} do not fit an encoder with {patches}; {mend} of {side}")
        return height // side, width // side

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth, for layer-wise learning-rate decay: depth + 2 groups, lowest first.

        Group 0: class token, position embedding, patch projection. Group k: block k - 1. The last group, with
        the full learning rate, is everything else: the shared bias here, and what a head adds (official rule).
        """
        tables = [x for x in (self.pos_embed, self.register_tokens) if x is not None]
        stem = [self.cls_token, *self.patch_embed.parameters(), *tables]
        blocks = [list(block.parameters()) for block in self.blocks]
        lower = {id(parameter) for group in (stem, *blocks) for parameter in group}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in lower]
        return [stem, *blocks, rest]

    def freeze(self, blocks: int) -> None:
        """Keep the stem (group 0 of :meth:`layer_groups`) and the first `blocks` blocks as they are.

        They get no gradients and stay in eval mode, without drop path and dropout. A shared bias, which the frozen
        blocks read as well, is kept with the first of them.
        """
        stem, *layers, rest = self.layer_groups()
        for parameter in (*stem, *chain(*layers[:blocks]), *(rest if blocks else ())):
            parameter.requires_grad_(False)
        self.frozen_blocks = blocks
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As any module's, but for the frozen blocks."""
        super().train(mode)
        self.blocks[: self.frozen_blocks].eval()
        return self

    def position_embedding(self, grid: Grid) -> Tensor | None:
        """What is added to the tokens of `grid`, (1, 1 + N, D), learned or sine-cosine; None for none."""
        if self.pos_embed is not None:
            return position.resize_position_embedding(self.pos_embed, self.grid, grid)
        if self.config.position == "sincos":
            token, trained = self.cls_token, self.config.position_grid or self.grid
            table: Tensor = position.sincos_embedding(grid, trained, self.config.width, token.dtype, token.device)
            return table
        return None

    def _tokens(self, patches: Tensor, grid: Grid, places: Tensor | None = None) -> Tensor:
        """Patches -> class token first, position embeddings added, registers between: (B, P + N, D). places: of the
        tokens without registers among all of `grid`, (B, T)."""
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        embedding = self.position_embedding(grid)
        if embedding is not None:
            tokens = tokens + (embedding if places is None else F.embedding(places, embedding[0]))
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, : position.CLS_TOKENS], registers, tokens[:, position.CLS_TOKENS :]], dim=1)

    def _run_blocks(
        self, tokens: Tensor, grid: Grid, keep: Sequence[int], places: Tensor | None = None
    ) -> list[Tensor]:
        """The states after the blocks in `keep`, in its order; blocks above the highest are not run."""
        states: dict[int, Tensor] = {}
        for layer, (block, bias) in enumerate(self._blocks_and_biases(grid, places)):
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, bias, use_reentrant=False)
            else:
                tokens = block(tokens, bias)
            if layer in keep:
                states[layer] = tokens
            if len(states) == len(set(keep)):
                break
        return [states[layer] for layer in keep]

    def _blocks_and_biases(self, grid: Grid, places: Tensor | None = None) -> Iterator[tuple[Block, Tensor | None]]:
        """Each block with its bias (1, heads, 1 + N, 1 + N), for tokens at `places` (B, heads, T, T), in the compute
        dtype, or None; a shared one is computed once."""
        if self.config.bias == "none":
            yield from ((block, None) for block in cast("Iterable[Block]", self.blocks))
            return
        device = self.cls_token.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.cls_token.dtype
        index = position.relative_position_index(grid, device)
        index = index[None] if places is None else index[places[:, :, None], places[:, None, :]]

        def bias_of(table: Tensor) -> Tensor:
            return position.position_bias(table, self.grid, grid, index, dtype)

        owner = self.rel_pos_bias
        shared = None if owner is None else bias_of(owner.relative_position_bias_table)
        for block in cast("Iterable[Block]", self.blocks):
            table = block.attn.relative_position_bias_table
            yield block, shared if table is None else bias_of(table)

    def _layer(self, layer: int) -> int:
        """A block counted from the first (0, 1, ...) or from the last (-1, -2, ...) -> from the first."""
        depth = self.config.depth
        if not -depth <= layer < depth:
            raise UserError(f"layer {layer} is not one of the blocks; give {-depth} to {depth - 1}")
        return layer % depth


@torch.no_grad()
def init_weights(
    model: nn.Module, scheme: InitScheme = "beit", *, cut: float | None = 1.0, keep: nn.Module | None = None
) -> None:
    """Draws first values for a model. Scheme "beit" (paper section 2.5, released code) has one deviation for every
    width; "torch" has that of torch's own layers, which follows the width, and leaves the blocks undivided:

    ============================================  =================================  =============================
    what                                          beit                               torch
    ============================================  =================================  =============================
    cls_token, mask_token, pos_embed,             normal(0, 0.02) cut at +- `cut`    the same
    register_tokens                               standard deviations
    weight of every linear layer and convolution  the same                           uniform +- 1 / sqrt(inputs)
    attn.proj.weight, mlp.fc2.weight of block l   then divided by sqrt(2 l),         not divided
                                                  l = 1 ... L
    every bias, q_bias, v_bias, bias tables       0                                  0 (torch's own are uniform)
    LayerNorm                                     weight 1, bias 0                   the same
    gamma_1, gamma_2                              `EncoderConfig.layer_scale_init`   the same
    ============================================  =================================  =============================

    The released pre-training cuts at 1, its fine-tuning not at all (None). Parameters of `keep`, such as a
    pre-trained encoder under a new head, are left alone.
    """
    frozen = set() if keep is None else {id(parameter) for parameter in keep.parameters()}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if id(parameter) in frozen:
            continue
        is_matrix = leaf == "weight" and parameter.dim() > 1
        if is_matrix and scheme == "torch":
            edge = 1 / math.sqrt(parameter[0].numel())
            parameter.uniform_(-edge, edge)
        elif is_matrix or leaf in ("cls_token", "mask_token", "pos_embed", "register_tokens"):
            _normal(parameter, 0.02, cut)
        else:
            nn.init.constant_(parameter, 1.0 if leaf == "weight" else 0.0)
    for name, block in model.named_modules():
        if not isinstance(block, Block) or id(block.norm1.weight) in frozen:
            continue
        if scheme == "beit":
            depth = 1 + int(name.rpartition(".")[2])
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.mlp.fc2.weight.div_(math.sqrt(2 * depth))
        for gamma in (block.gamma_1, block.gamma_2):
            if gamma is not None:
                nn.init.constant_(gamma, block.layer_scale_init)


def _normal(parameter: Tensor, std: float, cut: float | None) -> None:
    if parameter.is_meta:
        return  # weights to be loaded; drawing none is slow
    if cut is None:
        parameter.normal_(0, std)
    else:
        # Through the inverse of the cumulative distribution: torch's trunc_normal_ draws again until all values
        # lie within the cut, which takes 30 times the time at 1.
        edge = math.erf(cut / math.sqrt(2))
        parameter.uniform_(-edge, edge).erfinv_().mul_(std * math.sqrt(2)).clamp_(-cut * std, cut * std)
