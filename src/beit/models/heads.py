"""What is put on an encoder: prediction of visual tokens (or pixels), classification, linear probes."""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from beit.config.architecture import InitScheme
from beit.config.errors import require
from beit.config.pretrain import PixelNorm
from beit.config.values import counted
from beit.models.encoder import BeitEncoder, init_weights
from beit.models.layers import PatchDecoder, default_decoder_width, linear_cross_entropy, patch_statistics
from beit.models.position import Grid
from beit.pixels import cut_patches

Pool = Literal["mean", "cls", "cls_mean"]
"""What a classifier reads of the tokens: see :func:`pool_tokens`."""


class EncoderWithHead(nn.Module):
    """What models on an encoder have in common: `encoder`, and parameters of their own above it."""

    encoder: BeitEncoder

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The encoder's groups by depth, with the head in the last; see :meth:`BeitEncoder.layer_groups`."""
        *lower, last = self.encoder.layer_groups()
        head = [x for name, x in self.named_parameters() if not name.startswith("encoder.")]
        return [*lower, [*last, *head]]


class MaskedImageModel(EncoderWithHead):
    """Masked image modelling (paper section 2.3): predicts the visual token of every hidden patch.

    With vocab_size = channels * patch_size**2 it predicts pixels instead (table 4, "- visual tokens"): its rows then
    answer to :meth:`pixel_targets`.

    encoder_sees: "all" patches, with a mask token in place of each hidden one (BEiT); or the "visible" ones alone, of
        which a :class:`PatchDecoder` of `decoder_depth` blocks, `decoder_width` wide (by default
        :func:`default_decoder_width`), makes a token for every patch (MAE). Static shapes need masks that hide
        `num_masked` patches of every image.
    """

    def __init__(
        self,
        encoder: BeitEncoder,
        vocab_size: int,
        encoder_sees: Literal["all", "visible"] = "all",
        num_masked: int | None = None,
        decoder_depth: int | None = None,
        decoder_width: int | None = None,
    ) -> None:
        super().__init__()
        config = encoder.config
        width, eps = config.width, config.layer_norm_eps
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.encoder_sees = encoder_sees
        self.num_masked, self.decoder_depth, self.decoder_width = num_masked, decoder_depth, decoder_width
        self.norm = nn.LayerNorm(width, eps=eps)
        self.decoder: PatchDecoder | None = None
        if encoder_sees == "visible":
            count, patches = num_masked or 0, math.prod(encoder.grid)
            require(0 < count < patches, f"num_masked {num_masked} is not between 1 and {patches - 1}")
            width = self.decoder_width = decoder_width or default_decoder_width(width)
            depth = self.decoder_depth = decoder_depth or 1
            self.decoder = PatchDecoder(encoder.grid, config.width, width, depth, eps)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.token_head = nn.Linear(width, vocab_size)
        init_weights(self, keep=encoder)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        predict: Tensor | None = None,
        tokens: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the patches in `predict`, (number of True, vocab_size), in the order of predict.flatten().

        images: (B, 3, H, W), float in [0, 1] or uint8. mask: bool (B, h, w) or (B, N), True = hidden.
        predict: the patches to predict, shaped like a mask; by default the hidden ones.
        tokens: int64 (B, h, w), the truth: gives the cross-entropy of the predicted ones and the share that is right
            instead of logits, which are never there at once.
        count: patches that `predict` has of every image, where that is known: no shape depends on a value then. Who
            gives it has looked at the masks on the host: on a GPU, which would be waited for, nobody looks again.
        Raises ValueError for a mask that is not of these patches, and, outside compilation, for one that has another
        number of them in an image than `count`, or hides another than `num_masked` where only the visible are seen.
        """
        grid = self.encoder.grid_of(images)
        mask = _flat_mask("mask", mask, (len(images), math.prod(grid)))
        predict = mask if predict is None else _flat_mask("predict", predict, mask.shape)
        if self.decoder is None:
            states, norm = self._all_tokens(images, mask, grid), self.norm
        else:
            states, norm = self._tokens_of_visible(images, mask, grid, self.decoder), self.decoder.norm
        if count is None or mask.is_cpu:  # last, because a GPU is waited for
            self._require_counts(mask, predict, count)
        rows, (prefix, patches) = rows_of(predict, count), (states.shape[1] - predict.shape[1], predict.shape[1])
        # The norm works on each token alone, so only the predicted ones go through it.
        features = norm(states.flatten(0, 1).index_select(0, rows + prefix * (1 + rows // patches)))
        if tokens is None:
            return cast(Tensor, self.token_head(features))
        return linear_cross_entropy(features, self.token_head, tokens.flatten()[rows])

    def _all_tokens(self, images: Tensor, mask: Tensor, grid: Grid) -> Tensor:
        """(B, 1 + N, D) of an encoder that sees all patches, the hidden ones as mask tokens."""
        patches = self.encoder.embed(images)
        # Mask before position: a hidden patch still knows where it is.
        patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        return self.encoder.transform(patches, grid)

    def _tokens_of_visible(self, images: Tensor, mask: Tensor, grid: Grid, decoder: PatchDecoder) -> Tensor:
        """(B, 1 + N, decoder width) of a decoder that reads what the encoder makes of the visible patches."""
        assert self.num_masked is not None
        places = _first_places(~mask, mask.shape[1] - self.num_masked)
        seen = self.encoder.transform(self.encoder.embed(images, places), grid, places)
        return cast(Tensor, decoder(self.norm(seen), places, self.mask_token, grid))

    def _require_counts(self, mask: Tensor, predict: Tensor, count: int | None) -> None:
        """ValueError where a row of `mask` or `predict` (B, N) has another number of patches than is said."""
        num_masked = None if self.decoder is None else self.num_masked
        if torch.compiler.is_compiling() or mask.is_meta:
            return
        for name, patches, number in (("num_masked", mask, num_masked), ("count", predict, count)):
            if number is not None and (others := set(patches.sum(dim=1).tolist()) - {number}):
                wrong = f"mask has {counted(min(others), 'patch')} of an image, but {name} is {number}"
                raise ValueError(f"{wrong}; give masks that have as many of every image")

    def pixel_targets(self, images: Tensor, predict: Tensor, norm: PixelNorm = "none") -> Tensor:
        """Normalised pixels of the patches in `predict`, (number of True, 3 * patch_size**2), rows as forward's;
        within a row by channel, row, column. norm "patch": each less its own mean, by its own deviation (MAE)."""
        patches = cut_patches(self.encoder.normalize(images), self.encoder.config.patch_size).flatten(2)
        targets = patches[_flat_mask("predict", predict, patches.shape)]
        if norm == "none":
            return targets
        mean, deviation = patch_statistics(targets)
        return (targets - mean) / deviation


class ImageClassifier(EncoderWithHead):
    """An encoder, pooled, normed and classified by one linear layer (paper section 2.6).

    pool "mean" averages the patches, without the class token; "cls" takes the class token; "cls_mean" puts it before
    that mean. Where the encoder keeps a norm, it comes before the pooling, and none after. The head's first weights
    are scaled by `init_scale`, so that training starts from nearly equal class probabilities (released code).
    """

    def __init__(
        self,
        encoder: BeitEncoder,
        num_classes: int,
        pool: Pool = "mean",
        init_scale: float = 0.001,
        init_scheme: InitScheme = "beit",
    ) -> None:
        super().__init__()
        width, eps = encoder.config.width, encoder.config.layer_norm_eps
        self.encoder = encoder
        self.num_classes = num_classes
        self.pool = pool
        # Two names for the one norm, as in the official code: its weights mean different things.
        has_norm = encoder.config.final_norm
        require(has_norm or pool != "cls_mean", "pool cls_mean needs an encoder that keeps its final norm")
        self.fc_norm = nn.LayerNorm(width, eps=eps) if pool == "mean" and not has_norm else None
        self.norm = nn.LayerNorm(width, eps=eps) if pool == "cls" and not has_norm else None
        self.head = nn.Linear(width * (2 if pool == "cls_mean" else 1), num_classes)
        init_weights(self, init_scheme, cut=None, keep=encoder)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), float in [0, 1] or uint8 -> logits (B, num_classes)."""
        pooled = pool_tokens(self.encoder, self.encoder(images), self.pool)
        for norm in (self.fc_norm, self.norm):
            pooled = pooled if norm is None else norm(pooled)
        # Near classes tie in bfloat16: with its 8 bits in the last product five times as many decisions change.
        with torch.autocast(pooled.device.type, enabled=False):
            return cast(Tensor, self.head(pooled.to(self.head.weight.dtype)))


class LinearProbe(nn.Module):
    """One linear layer on what a frozen encoder holds after block `layer` (0 the first), without a norm, but for an
    encoder that keeps one.

    pool "mean" averages the patches (paper appendix D); "cls_mean" puts the class token before that mean
    (released code).
    """

    def __init__(self, encoder: BeitEncoder, num_classes: int, layer: int, pool: Pool = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.layer = layer
        self.pool = pool
        self.head = nn.Linear(encoder.config.width * (1 if pool == "mean" else 2), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), float in [0, 1] or uint8 -> logits (B, num_classes)."""
        features = layer_features(self.encoder, images, [self.layer], self.pool)[:, 0]
        with torch.autocast(features.device.type, enabled=False):  # as the probe was trained
            return cast(Tensor, self.head(features))


class LayerProbes(nn.Module):
    """A linear classifier for each layer of an encoder, over features that were computed before.

    `mean` and `std`, (layers, features), are taken off the features first; 0 and 1 unless they are set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_layers: int, num_features: int, num_classes: int) -> None:
        super().__init__()
        # normal(0, 0.01) and zero: the released code's.
        self.weight = nn.Parameter(0.01 * torch.randn(num_layers, num_classes, num_features))
        self.bias = nn.Parameter(torch.zeros(num_layers, num_classes))
        self.register_buffer("mean", torch.zeros(num_layers, num_features))
        self.register_buffer("std", torch.ones(num_layers, num_features))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, layers, F) -> logits (B, layers, num_classes), in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            scaled = (features.to(self.mean.dtype) - self.mean) / self.std
            return torch.einsum("blf,lcf->blc", scaled, self.weight) + self.bias

    @torch.no_grad()
    def probe(self, encoder: BeitEncoder, layer: int, pool: Pool) -> LinearProbe:
        """The classifier of `layer` on the encoder that the features came from."""
        probe = LinearProbe(encoder, self.weight.shape[1], layer, pool)
        probe.head.to(self.weight)
        probe.head.weight.copy_(self.weight[layer] / self.std[layer])
        probe.head.bias.copy_(self.bias[layer] - probe.head.weight @ self.mean[layer])
        return probe


def layer_features(encoder: BeitEncoder, images: Tensor, layers: Sequence[int], pool: Pool) -> Tensor:
    """What linear probes of `layers` read of images (B, 3, H, W): (B, layers, F), at least float32."""
    states = encoder.states(images, layers)
    wide = (tokens.to(torch.promote_types(tokens.dtype, torch.float32)) for tokens in states)
    return torch.stack([pool_tokens(encoder, tokens, pool) for tokens in wide], dim=1)


def pool_tokens(encoder: BeitEncoder, tokens: Tensor, pool: Pool) -> Tensor:
    """Tokens of `encoder` after a block, (B, P + N, D) -> (B, F): the mean of the patches, the class token, or the
    latter before the former; after the norm of an encoder that keeps one."""
    tokens = encoder.normed(tokens)
    parts = {"mean": tokens[:, encoder.num_prefix_tokens :].mean(dim=1), "cls": tokens[:, 0]}
    return torch.cat([parts[name] for name in pool.split("_")], dim=1)


def rows_of(mask: Tensor, count: int | None = None) -> Tensor:
    """Where a bool mask (B, N) is True, as places in mask.flatten(), int64 (M,). count: how often it is so in every
    row, where that is known."""
    if count is None:
        return mask.flatten().nonzero().squeeze(1)
    before = mask.shape[1] * torch.arange(len(mask), device=mask.device)[:, None]
    return (before + _first_places(mask, count)).flatten()


def _first_places(mask: Tensor, count: int) -> Tensor:
    """The first `count` places of each row where a bool mask (B, N) is True, int64 (B, count). By a stable sort, so
    that no shape depends on the values."""
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def _flat_mask(name: str, mask: Tensor, patches: Sequence[int]) -> Tensor:
    """bool (B, h, w) or (B, N) -> (B, N), checked against the shape of patches (B, N, ...)."""
    flat = mask.flatten(1)
    if mask.dtype != torch.bool or flat.shape != tuple(patches[:2]):
        wrong = f"{name} is {mask.dtype} of shape {tuple(mask.shape)}, but the images hold {tuple(patches[:2])}"
        raise ValueError(f"{wrong} (batch, patches); give a bool mask of these patches")
    return flat
