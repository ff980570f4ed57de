"""Images per second of one core: from the bytes of a JPEG to a pre-training sample, beside the released pipeline.

    python benchmarks/data_pipeline.py [FOLDER] [--count 200] [--image-size 224] [--token-size 112]

FOLDER holds photographs (default: $BEIT_REAL_DATA/imagenet_sample; without it, generated photographs of 500 x 375).
"released" is the official order on Pillow: decode, colour jitter of the whole image, flip, crop, bicubic and Lanczos
views, two float tensors, both normalised, a mask. The pipelines take turns in one process, and each figure is the
best of the rounds, because other programs on the machine can only make a round slower.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from beit.data.decode import Decoding, decode_image
from beit.data.sources.files import FileSource
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.data.views.pretraining import PretrainViews
from beit.data.views.tokenizer import TokenizerViews
from beit.masking import BlockwiseMasking


def photographs(folder: str | None, count: int) -> list[bytes]:
    """Compressed files, so that no disk is measured."""
    if folder:
        source = open_splits([folder], holdout=Holdout(0.0))["train"]
        assert isinstance(source, FileSource)
        return [source.read(i) for i in range(min(count, len(source)))]
    return generated(count, (375, 500))


def generated(count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEG files of (height, width) `size` with the spectrum of photographs."""
    files = []
    height, width = size
    for seed in range(count):
        rng = np.random.default_rng(seed)
        spectrum = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1e-3  # 1/f
        noise = np.fft.fft2(rng.normal(size=(3, *size)), axes=(1, 2)) / spectrum
        pixels = np.fft.ifft2(noise, axes=(1, 2)).real
        pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def released(image_size: int, token_size: int, masking: BlockwiseMasking) -> Callable[[bytes, int], object]:
    """The official steps in the official order, as published for ImageNet pre-training."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def run(data: bytes, number: int) -> object:
        image = jitter(Image.open(io.BytesIO(data)).convert("RGB"))
        if random.random() < 0.5:
            image = functional.hflip(image)
        box = transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        sizes = [image_size, image_size], [token_size, token_size]
        view = functional.resized_crop(image, *box, sizes[0], transforms.InterpolationMode.BICUBIC)
        token_view = functional.resized_crop(image, *box, sizes[1], transforms.InterpolationMode.LANCZOS)
        patches = functional.normalize(functional.to_tensor(view), mean, std)
        tokens = 0.8 * functional.to_tensor(token_view) + 0.1
        return patches, tokens, masking(np.random.default_rng(number))

    return run


def ours(views: Callable[..., object], *, pillow: bool = False) -> Callable[[bytes, int], object]:
    def run(data: bytes, number: int) -> object:
        image = decode_image(data, "file", Decoding(pillow=pillow))
        return views(image, np.random.default_rng((0, 0, number)))

    return run


def measure(pipeline: Callable[[bytes, int], object], files: list[bytes]) -> float:
    start = time.perf_counter()
    for number, data in enumerate(files):
        pipeline(data, number)
    return len(files) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = os.environ.get("BEIT_REAL_DATA")
    parser.add_argument("folder", nargs="?", default=real and os.path.join(real, "imagenet_sample"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--token-size", type=int, default=112)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = photographs(args.folder, args.count)
    grid = args.image_size // 16
    masking = BlockwiseMasking((grid, grid))
    sizes = (args.image_size, args.image_size), (args.token_size, args.token_size)
    pipelines = {
        "released (Pillow)": released(args.image_size, args.token_size, masking),
        "ours, exact": ours(PretrainViews(*sizes, masking, mode="exact"), pillow=True),
        "ours, fast": ours(PretrainViews(*sizes, masking)),
        "tokenizer views": ours(TokenizerViews((256, 256))),
        "decoding alone, Pillow": lambda data, _: Image.open(io.BytesIO(data)).convert("RGB"),
        "decoding alone, ours": lambda data, _: decode_image(data, "file"),
    }
    best = dict.fromkeys(pipelines, 0.0)
    for _ in range(args.rounds):
        for name, pipeline in pipelines.items():
            best[name] = max(best[name], measure(pipeline, files))
    print(f"{len(files)} photographs from {args.folder or 'a generator'}, one thread, best of {args.rounds}")
    for name, rate in best.items():
        print(f"{name:24} {rate:8.0f} images/s   {rate / best['released (Pillow)']:5.2f} x")


if __name__ == "__main__":
    main()
