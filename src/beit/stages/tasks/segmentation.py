"""Images through a segmenter, as it is evaluated in training and by the verbs that use it.

An image for which there is no memory is said in one line, where possible before the machine gives way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from beit.config.errors import RunFailed, UserError, out_of_memory
from beit.data.batches import SegmentationBatch
from beit.data.decode import ImageError
from beit.data.label_maps.pairs import PairSource
from beit.metrics.segmentation import segmentation_sums
from beit.models.segmentation import SemanticSegmenter
from beit.models.windows import Inference, Size, likeliest, pair
from beit.pixels import scale_size
from beit.training.device import memory_of


class TooLarge(RunFailed):
    """An image that does not fit into memory, and what to do."""


def evaluate_batch(inference: Inference, model: nn.Module, batch: SegmentationBatch) -> dict[str, Tensor]:
    """Sums over a batch of one image, at the size of its label map, and `each`: its pixels of every class that are
    named right, that are there, and that are named so. TooLarge where the memory does not suffice."""
    segmenter, size = cast(SemanticSegmenter, model), pair(batch.label_map.shape[1:])
    with within_memory(segmenter, inference, size, batch.image.device):
        sums = segmentation_sums(inference.scores(segmenter, batch.image, size), batch.label_map)
    table = sums["confusion"]
    return sums | {"each": torch.cat([table.diagonal(), table.sum(1), table.sum(0)])[None]}


def predict_classes(inference: Inference, model: nn.Module, image: Tensor, shape: Sequence[int]) -> Tensor:
    """The class of every pixel, int64 of `shape` (H, W), of `image`, (1, 3, h, w). TooLarge as above."""
    segmenter, size = cast(SemanticSegmenter, model), pair(shape)
    with within_memory(segmenter, inference, size, image.device):
        return likeliest(inference.scores(segmenter, image, pair(image.shape[2:])), size)[0]


@contextmanager
def within_memory(model: SemanticSegmenter, inference: Inference, size: Size, device: torch.device) -> Iterator[None]:
    """Raise :class:`TooLarge` when the memory of `device` does not suffice for an image that is (H, W) `size` large.

    An operating system that gives out more than it has may kill the process instead, so that what cannot be is
    refused beforehand.
    """
    require_memory(model, inference, size, device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        remedy = "make it smaller" if inference.stride else "choose --window slide, or make it smaller"
        raise TooLarge(f"out of memory with an image of {size[1]}x{size[0]} px; {remedy}") from error


def require_memory(model: SemanticSegmenter, inference: Inference, size: Size, device: torch.device) -> None:
    """Raise :class:`TooLarge` for an image in one pass where the position bias of attention alone is larger than all
    memory of `device`."""
    if inference.stride is not None:
        return
    config, patch = model.encoder.config, model.encoder.config.patch_size
    sizes = inference.sizes(scale_size(size, inference.input_side))
    tokens = max(1 + -(-height // patch) * -(-width // patch) for height, width in sizes)
    # For every pair of tokens the row of the table, int64, and each head's value, float32, at least.
    required, memory = tokens**2 * (8 + 4 * config.num_heads), memory_of(device)
    if config.bias != "none" and required > memory:  # without a bias attention keeps no pairs
        raise TooLarge(
            f"an image of {size[1]}x{size[0]} px in one pass takes {required / 2**30:,.0f} GiB for attention alone, "
            f"of {memory / 2**30:,.0f}; choose --window slide, or make it smaller"
        )


def require_memory_for_all(
    model: SemanticSegmenter, inference: Inference, source: PairSource, device: torch.device
) -> None:
    """:func:`require_memory` for every image of `source`, told by the headers of its files; UserError names one that
    is too large."""
    if inference.stride is not None:
        return
    for index in range(len(source)):
        try:
            require_memory(model, inference, source.size(index), device)
        except ImageError:
            continue  # damaged files are left out of an evaluation
        except TooLarge as error:
            raise UserError(f"{source.name(index)}: {error}") from error
