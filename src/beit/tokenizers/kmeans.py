"""Tokenizers made by k-means: the token of a patch is the number of the centre nearest to it.

    images (B, C, H, W) -> vectors (B, h w, D), what is compared -> nearest of the centres (V, D) -> tokens (B, h, w)
        -> for each token the mean of the patches that it stands for

What is compared are pixels, or the features that a frozen encoder, the teacher, has of patches: tokens of meaning.
The teacher may be any encoder that the package loads, one of an earlier round of pre-training among them. Its weights
are part of the tokenizer and of its identity.

Nothing is learned by gradient: the codebook is computed at once, from a sample of patches, in seconds.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.config.architecture import EncoderConfig, Sides
from beit.config.errors import UserError, require
from beit.config.tokenizer import PatchKMeansConfig
from beit.pixels import cut_patches, to_unit
from beit.tokenizers.base import VisualTokenizer

Poll = Callable[[], None]
"""Called now and then; may raise, to leave."""
ITERATIONS = 100
"""Of Lloyd's algorithm, at most: it ends where no vector changes its centre, or little is gained."""
LEAST_GAIN = 1e-3
"""Share of the mean squared distance that an iteration must gain for another to follow."""
SEEDING = 2**14
"""Vectors among which the first centres are sought."""
CHUNK = 2**14
"""Vectors whose distances to all centres are in memory at once."""
FLAT = 0.02
"""Added to the deviation of a patch that is divided by it: noise in an even patch, 5 of 255 grey values, is no
pattern."""


class KMeansTokenizer(VisualTokenizer):
    """The nearest of V centres. `vectors` says what is compared."""

    centers: Tensor
    """float32 (V, D)."""
    patches: Tensor
    """float32 (V, C, stride, stride): the mean patch of each token, in [0, 1]."""

    def __init__(self, vocab_size: int, width: int, stride: int, image_size: Sides, channels: int) -> None:
        super().__init__()
        self.vocab_size, self.stride, self.image_size = vocab_size, stride, image_size
        self.register_buffer("centers", torch.zeros(vocab_size, width))
        self.register_buffer("patches", torch.zeros(vocab_size, channels, stride, stride))

    @abstractmethod
    def read(self, images: Tensor) -> Tensor:
        """A vector for each patch, (B, h w, D), row by row."""

    @abstractmethod
    def scale(self, vectors: Tensor) -> Tensor:
        """What `read` gave, (..., D), as distances are taken of it."""

    def fit(self, vectors: Tensor, patches: Tensor, rng: torch.Generator, poll: Poll = lambda: None) -> None:
        """Compute the codebook from a sample of patches: vectors (M, D) as `read` gives them, and the patches
        themselves (M, C, stride, stride) in [0, 1], all on the CPU. `poll` is called now and then, and may raise.

        UserError where there are fewer patches than entries.
        """
        most = f"the {len(vectors):,} patches of the sample"
        require(len(vectors) >= self.vocab_size, f"--vocab-size {self.vocab_size} is more than {most}; take less")
        self.adapt(vectors)
        centers, tokens = kmeans(self.scale(vectors), self.vocab_size, rng, poll)
        self.centers.copy_(centers)
        self.patches.copy_(means_of(patches.flatten(1), tokens, self.vocab_size).view(self.patches.shape))

    def adapt(self, vectors: Tensor) -> None:
        """Take what `scale` needs to know from a sample of vectors (M, D)."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The tokens of the nearest centres, int64 (B, h, w); the first of equals."""
        images = self.whole_tokens(images)
        vectors = self.scale(self.read(images).to(self.centers.dtype))
        grid = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        return scores(vectors, self.centers).argmax(dim=2).view(len(images), *grid)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images in [0, 1], (B, C, H, W), each token int64 (B, h, w) as its mean patch."""
        count, rows, columns = tokens.shape
        cells = self.patches[tokens].permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(count, -1, rows * self.stride, columns * self.stride)


class PatchKMeans(KMeansTokenizer):
    """k-means of the pixels of patches, as they are or normalised per patch."""

    kind = "kmeans"

    def __init__(self, config: PatchKMeansConfig) -> None:
        size, stride, channels = config.vocab_size, config.stride, config.channels
        super().__init__(size, channels * stride**2, stride, config.image_size, channels)
        self.config = config

    def read(self, images: Tensor) -> Tensor:
        return cut_patches(to_unit(images), self.stride).flatten(2)

    def scale(self, vectors: Tensor) -> Tensor:
        if self.config.pixel_norm == "none":
            return vectors
        std, mean = torch.std_mean(vectors, dim=-1, keepdim=True, correction=0)
        return (vectors - mean) / (std + FLAT)


class Teacher(Protocol):
    """What is asked of an encoder."""

    config: EncoderConfig

    def intermediates(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Patches after the named blocks, each as a map (B, D, h, w)."""


class FeatureKMeans(KMeansTokenizer):
    """k-means of the features after block `layer` of the teacher: each channel standardised, then each vector of
    length one, so that distances are angles.

    Args:
        encoder: the teacher, an nn.Module; its patches are the tokens' cells, its pixel statistics apply.
    """

    kind = "features"
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Teacher, vocab_size: int, layer: int) -> None:
        config = encoder.config
        if not 0 <= layer < config.depth:
            raise UserError(f"layer {layer} is not one of the blocks; give 0 to {config.depth - 1}")
        super().__init__(vocab_size, config.width, config.patch_size, config.image_size, config.channels)
        self.encoder = cast(nn.Module, encoder)
        self.layer = layer
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("std", torch.ones(config.width))

    def read(self, images: Tensor) -> Tensor:
        [features] = cast(Teacher, self.encoder).intermediates(images, [self.layer])
        return features.flatten(2).mT

    def scale(self, vectors: Tensor) -> Tensor:
        return F.normalize((vectors - self.mean) / self.std, dim=-1)

    def adapt(self, vectors: Tensor) -> None:
        self.mean.copy_(vectors.mean(dim=0))
        self.std.copy_(vectors.std(dim=0, correction=0).clamp(min=1e-6))


# ------------------------------------------------------------------------------------------------------------
# k-means


def kmeans(vectors: Tensor, count: int, rng: torch.Generator, poll: Poll = lambda: None) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from the seeds of k-means++: centres (count, D), and the nearest one of each of the vectors
    (M, D), int64 (M,). The same generator gives the same centres.

    A centre that no vector is nearest to is set on one of the vectors that lie farthest from theirs.
    """
    sample = vectors[torch.randperm(len(vectors), generator=rng)[: max(SEEDING, 4 * count)]]
    centers = first_centers(sample, count, rng, poll)
    tokens, distances = nearest(vectors, centers, poll)
    for _ in range(ITERATIONS):
        before, spread = tokens, distances.mean()
        centers = means_of(vectors, tokens, count)
        unused = torch.bincount(tokens, minlength=count) == 0
        centers[unused] = vectors[distances.topk(int(unused.sum())).indices]
        tokens, distances = nearest(vectors, centers, poll)
        if torch.equal(tokens, before) or distances.mean() > (1 - LEAST_GAIN) * spread:
            break
    return centers, tokens


def first_centers(vectors: Tensor, count: int, rng: torch.Generator, poll: Poll = lambda: None) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each of the vectors (M, D) that become centres (count, D) is drawn
    with a probability in proportion to its squared distance to the nearest one before it."""
    rows = torch.randint(len(vectors), (1,), generator=rng)
    squares = vectors.square().sum(dim=1)
    distances = torch.full((len(vectors),), torch.inf)
    for number in range(1, count):
        if number % 256 == 0:
            poll()
        center = vectors[rows[-1]]
        distances = torch.minimum(distances, squares - 2 * (vectors @ center) + center.square().sum()).clamp_(min=0)
        # Where all vectors lie on centres, any will do.
        weights = distances if distances.any() else torch.ones_like(distances)
        rows = torch.cat([rows, torch.multinomial(weights, 1, generator=rng)])
    return vectors[rows]


def nearest(vectors: Tensor, centers: Tensor, poll: Poll) -> tuple[Tensor, Tensor]:
    """Of each of the vectors (M, D): the nearest of the centres (V, D), int64 (M,), and its squared distance (M,)."""
    found = []
    for part in torch.split(vectors, CHUNK):
        poll()
        found.append(scores(part, centers).max(dim=1))
    values, tokens = map(torch.cat, zip(*found, strict=True))
    return tokens, (vectors.square().sum(dim=1) - 2 * values).clamp_(min=0)


def scores(vectors: Tensor, centers: Tensor) -> Tensor:
    """x c - c c / 2 of vectors (..., D) and centres (V, D), (..., V): the larger, the nearer. In full precision, for
    near centres differ little."""
    with torch.autocast(vectors.device.type, enabled=False):
        return F.linear(vectors, centers, -0.5 * centers.square().sum(dim=1))


def means_of(vectors: Tensor, tokens: Tensor, count: int) -> Tensor:
    """The mean of the vectors (M, D) of each token (M,), (count, D); zeros where a token has none."""
    sums = torch.zeros(count, vectors.shape[1]).index_add_(0, tokens, vectors)
    return sums / torch.bincount(tokens, minlength=count).clamp(min=1)[:, None]
