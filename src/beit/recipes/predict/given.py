"""What a model says of images that a program has in its hands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.config.errors import UserError
from beit.data.decode import to_rgb
from beit.data.sources.opening import open_images
from beit.pixels import require_unit, to_unit
from beit.recipes.predict.output import Reading
from beit.training.device import eval_mode, to_device


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image; None is what its kind does not say."""

    image: str | None = None
    """The path of the image, where it was given by one."""
    label: str | None = None
    """The likeliest class, of a classifier."""
    probability: float | None = None
    """That of `label`."""
    probabilities: Mapping[str, float] | None = None
    """Those of all classes, the likeliest first."""
    label_map: NDArray[Any] | None = None
    """The class of every pixel, of a segmenter: indices (H, W) into `model.classes`."""
    classes: Mapping[str, float] | None = None
    """What share of it each class has that occurs, the largest first."""
    tokens: NDArray[Any] | None = None
    """Visual tokens, of a tokenizer: int64 (h, w)."""
    mean: NDArray[Any] | None = None
    """Features, of an encoder: the mean of the patches, float32 (D,)."""
    cls: NDArray[Any] | None = None
    """The class token, likewise."""


def predict_given(reading: Reading, images: Any, device: torch.device) -> Prediction | list[Prediction]:
    """One for an image, a list for several, in their order; see :func:`beit.predict`.

    Raises:
        UserError: something is no image.
        ImageError: a file is damaged.
        RunFailed: the memory does not suffice for an image.
    """
    predicted = []
    for path, image in _each(images):
        sample = reading.view(image, np.random.default_rng(0))
        batch = to_device(type(sample)(*(part[None] for part in sample)), device)
        with eval_mode(device, "float32"):
            columns = reading.apply(batch)
        if isinstance(columns, Exception):
            raise columns
        record = reading.record({name: column[0].cpu().numpy() for name, column in columns.items()})
        if "top" in record:
            record["probabilities"] = {entry["label"]: entry["probability"] for entry in record.pop("top")}
        record.pop("picture", None)
        predicted.append(Prediction(path, **record))
    return predicted[0] if _is_one(images) else predicted


def _is_one(images: Any) -> bool:
    if isinstance(images, str | Path):
        return Path(images).is_file() and Path(images).suffix != ".tar"
    return isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4)


def _each(images: Any) -> Iterator[tuple[str | None, Tensor]]:
    """Path, where there is one, and uint8 (3, H, W) of every image."""
    if isinstance(images, str | Path):
        source = open_images([str(images)])
        yield from ((source.path(index), source.image(index)) for index in range(len(source)))
    elif isinstance(images, Image.Image):
        yield None, torch.from_numpy(np.array(to_rgb(images))).movedim(-1, 0)
    elif isinstance(images, np.ndarray | Tensor) and images.ndim < 4:
        yield None, _pixels(images)
    else:
        for image in images:
            yield from _each(image)


def _pixels(image: NDArray[Any] | Tensor) -> Tensor:
    """uint8 (3, H, W) of an array (H, W), (H, W, 1) or (H, W, 3), or a tensor (H, W), (1, H, W) or (3, H, W)."""
    # Copied, for torch takes no view that runs backwards, as BGR -> RGB is, nor what may not be written.
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.atleast_3d(np.array(image))).movedim(-1, 0)
    pixels = pixels.expand(3, -1, -1) if pixels.ndim == 2 or len(pixels) == 1 else pixels
    if pixels.ndim != 3 or len(pixels) != 3:
        raise UserError(f"an image of shape {tuple(image.shape)}; give arrays (H, W, 3) or tensors (3, H, W)")
    require_unit(pixels)
    return to_unit(pixels).clamp(0, 1).mul(255).round().to(torch.uint8)
