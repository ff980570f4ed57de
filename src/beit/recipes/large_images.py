"""Images for which a segmenter lacks memory: said in one line, where possible before the machine gives way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from beit.config import RunFailed
from beit.models.segmentation import SemanticSegmenter
from beit.recipes.segmentation import Inference, Size
from beit.training.device import memory_of
from beit.training.failures import out_of_memory


class TooLarge(RunFailed):
    """An image that does not fit into memory, and what to do."""


@contextmanager
def within_memory(
    model: SemanticSegmenter, inference: Inference, images: Tensor, original: Size
) -> Iterator[None]:
    """Raise :class:`TooLarge` when memory does not suffice for `images` (B, 3, h, w), made of those of (H, W)
    `original`.

    An operating system that gives out more than it has may kill the process instead. So images in one pass are
    refused beforehand when the position bias of attention alone is larger than all memory of the device.
    """
    height, width = original
    shown = f"an image of {width}x{height} px"
    remedy = (
        "make it smaller" if inference.stride is not None else "choose --window slide, or make it smaller"
    )
    if inference.stride is None:
        height, width = images.shape[-2:]
        needed = max(attention_memory(model, size) for size in inference.sizes((height, width)))
        if needed > (memory := memory_of(images.device)):
            raise TooLarge(
                f"{shown} in one pass takes {needed / 2**30:,.0f} GiB for attention alone, of "
                f"{memory / 2**30:,.0f}; {remedy}"
            )
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise TooLarge(f"out of memory with {shown}; {remedy}") from error
        raise


def attention_memory(model: SemanticSegmenter, size: Size) -> int:
    """Bytes, at least, of the position bias of one block for an image of `size`: for every pair of tokens the row of
    the table, int64, and each head's value, float32. 0 without a bias, for then attention keeps no pairs."""
    config = model.encoder.config
    if config.position in ("absolute", "none"):
        return 0
    rows, columns = (-(-side // config.patch_size) for side in size)
    return int((1 + rows * columns) ** 2 * (8 + 4 * config.num_heads))
