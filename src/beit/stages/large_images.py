"""Images for which a segmenter lacks memory: said in one line, where possible before the machine gives way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from beit.config.errors import RunFailed, UserError
from beit.data.decode import ImageError
from beit.data.label_maps.pairs import PairSource
from beit.data.views.segmentation import resized
from beit.metrics.segmentation import Inference, Size
from beit.models.segmentation import SemanticSegmenter
from beit.training.device import memory_of
from beit.training.failures import out_of_memory


class TooLarge(RunFailed):
    """An image that does not fit into memory, and what to do."""


@contextmanager
def within_memory(
    model: SemanticSegmenter, inference: Inference, size: Size, device: torch.device
) -> Iterator[None]:
    """Raise :class:`TooLarge` when the memory of `device` does not suffice for an image that is (H, W) `size` large.

    An operating system that gives out more than it has may kill the process instead, so that what cannot be is
    refused beforehand.
    """
    require_memory(model, inference, size, device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise TooLarge(f"out of memory with {_shown(size)}; {_remedy(inference)}") from error
        raise


def require_memory(model: SemanticSegmenter, inference: Inference, size: Size, device: torch.device) -> None:
    """Raise :class:`TooLarge` for an image in one pass where the position bias of attention alone is larger than all
    memory of `device`."""
    if inference.stride is not None:
        return
    seen = inference.sizes(resized(size, inference.reduced))
    needed, memory = max(attention_memory(model, shown) for shown in seen), memory_of(device)
    if needed > memory:
        raise TooLarge(
            f"{_shown(size)} in one pass takes {needed / 2**30:,.0f} GiB for attention alone, of "
            f"{memory / 2**30:,.0f}; {_remedy(inference)}"
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


def attention_memory(model: SemanticSegmenter, size: Size) -> int:
    """Bytes, at least, of the position bias of one block for an image of `size`: for every pair of tokens the row of
    the table, int64, and each head's value, float32. 0 without a bias, for then attention keeps no pairs."""
    config = model.encoder.config
    if config.position in ("absolute", "none"):
        return 0
    rows, columns = (-(-side // config.patch_size) for side in size)
    return int((1 + rows * columns) ** 2 * (8 + 4 * config.num_heads))


def _shown(size: Size) -> str:
    return f"an image of {size[1]}x{size[0]} px"


def _remedy(inference: Inference) -> str:
    return "make it smaller" if inference.stride is not None else "choose --window slide, or make it smaller"
