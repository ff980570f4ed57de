"""What a model says of images that a program has in its hands."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import IOBase
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from beit.config.errors import UserError, require
from beit.data.decode import Decoding, pixels_of_picture, reading
from beit.data.sources.opening import open_images
from beit.pixels import checked, from_unit, to_unit
from beit.recipes.predict.output import Reading
from beit.stages.session import decoding_by
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


def predict_given(reading: Reading, images: Any, model: nn.Module) -> Prediction | list[Prediction]:
    """One for an image, a list for several, in their order, read as the model was shown those that it was trained on;
    see :func:`beit.predict`.

    Raises:
        UserError: something is no image.
        ImageError: a file is damaged, or a PIL image does not say what is black and white.
        RunFailed: the memory does not suffice for an image.
    """
    predicted, decoding = [], decoding_by(getattr(model, "description", {}))
    device = next(chain(model.parameters(), model.buffers())).device
    for path, image in _each(images, decoding):
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


def _each(images: Any, decoding: Decoding) -> Iterator[tuple[str | None, Tensor]]:
    """Path, where there is one, and (C, H, W), uint8 or of more bits float in [0, 1], of every image."""
    if isinstance(images, str | Path):
        source = open_images([str(images)], decoding)
        yield from ((source.path(index), source.image(index)) for index in range(len(source)))
    elif isinstance(images, Image.Image):
        name = "a PIL image {}x{} of mode {}".format(*images.size, images.mode)
        require(min(images.size) > 0, f"{name} has no pixels; give one that has")
        with reading(name):
            pixels = pixels_of_picture(images, decoding)
        yield None, pixels
    elif isinstance(images, np.ndarray | Tensor) and images.ndim < 4:
        yield None, _pixels(images, decoding)
    elif not isinstance(images, Iterable) or isinstance(images, bytes | IOBase):
        raise UserError(f"{type(images).__name__} is no image; give paths, PIL images, arrays or tensors")
    else:
        for image in images:
            yield from _each(image, decoding)


def _pixels(image: NDArray[Any] | Tensor, decoding: Decoding) -> Tensor:
    """The same of an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W); gray is made RGB."""
    if not isinstance(image, Tensor) and np.asarray(image).dtype.kind not in "buif":
        raise UserError(f"an array of {image.dtype} is no image; give uint8, or floats in [0, 1]")
    # Copied, for torch takes no view that runs backwards, as BGR -> RGB is, nor what may not be written.
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.atleast_3d(np.array(image))).movedim(-1, 0)
    pixels, channels = pixels[None] if pixels.ndim == 2 else pixels, decoding.channels or 3
    pixels = pixels.expand(3, -1, -1) if channels == 3 and len(pixels) == 1 else pixels
    if pixels.ndim != 3 or len(pixels) != channels or not pixels.numel():
        shapes = f"arrays (H, W, {channels}) or tensors ({channels}, H, W)"
        raise UserError(f"an image of shape {tuple(image.shape)}; give {shapes}")
    if decoding.bits == 8:
        return from_unit(to_unit(checked(pixels)).detach().float().cpu(), torch.uint8)
    return to_unit(checked(pixels, decoding.value_range or (0, 0xFFFF))).clamp(0, 1)
