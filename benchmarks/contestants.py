"""What runs beside what in peers.py: for every stage, this package and what a user would run instead.

A contestant is a function without arguments that does the stage's work once. "published" is the peer as its page
shows it (float32, plain AdamW); "tuned" is the best that a user who knows torch makes of it: autocast to bfloat16
where the machine is fast at it, scaled-dot-product attention, channels-last convolutions, fused AdamW. Weights are
random: the work is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import dall_e
import data_pipeline
import encoder_step
import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from beit.config.architecture import DiscreteVAEConfig, EncoderConfig
from beit.data.batches import PretrainBatch
from beit.data.decode import decode_image
from beit.data.views.pretraining import PretrainViews
from beit.masking import BlockwiseMasking, RandomMasking
from beit.metrics.segmentation import pixel_loss
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier, MaskedImageModel
from beit.models.segmentation import SemanticSegmenter, released_layers
from beit.stages.tasks.masked_modelling import masked_image_modelling, tokens_by
from beit.tokenizers.dvae import DiscreteVAE
from beit.training.device import Precision
from beit.training.optim import adamw, parameter_groups

Work = Callable[[], object]
BASE, TOKENS, CLASSES, SEGMENT_CLASSES = "base", 8192, 1000, 150
SIZES: Mapping[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "num_heads": 3},
    "base": {"width": 768, "depth": 12, "num_heads": 12},
}


class Stage(NamedTuple):
    """Contestants for the same work on the same images, the first of them ours."""

    images: int
    contestants: Mapping[str, Callable[[], Work]]
    """Each builds its networks when it is called, and gives the work."""


class Setting(NamedTuple):
    """What holds for all of a run."""

    device: torch.device
    batch_size: int
    compiled: bool
    precision: Precision
    """Of this package and of what is tuned: bf16 where the machine is fast at it."""

    def run(self, tuned: bool) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=tuned and self.precision == "bf16")

    def built(self, module: nn.Module, compiled: bool = False) -> nn.Module:
        module = module.to(self.device)
        if compiled:
            module.compile()
        return module

    def images(self, count: int, size: int) -> Tensor:
        return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, device=self.device)

    def step(self, model: nn.Module, loss: Callable[[], Tensor], *, bf16: bool, ours: bool = False) -> Work:
        """A whole training step: forward, backward, clipping, AdamW (fused where `bf16`, as all of the tuned)."""
        if ours:
            optimizer: torch.optim.Optimizer = adamw(parameter_groups(model, weight_decay=0.05), lr=1e-5)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=bf16)
        model.train()

        def work() -> None:
            with self.run(bf16):
                value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return work

    def inference(self, model: nn.Module, images: Tensor, *, bf16: bool) -> Work:
        model.eval().requires_grad_(False)

        def work() -> None:
            with torch.no_grad(), self.run(bf16):
                model(images)

        return work


def stages(setting: Setting) -> dict[str, Stage]:
    """By name, in the order of the documentation."""
    return {
        **_views(),
        "tokenization": _tokenization(setting),
        "encoder step, tiny at 32 px": _encoder_step(setting, "tiny", 32, 4, 128),
        "encoder step, tiny at 224 px": _encoder_step(setting, "tiny", 224, 16, 16),
        "pre-training step, all": _pretraining(setting, "all"),
        "pre-training step, visible": _pretraining(setting, "visible"),
        "fine-tuning step": _classification(setting, training=True),
        "segmentation step": _segmentation(setting, training=True),
        "labels": _classification(setting, training=False),
        "label maps": _segmentation(setting, training=False),
        "features": _features(setting),
    }


def architecture(size: str, image_size: int = 224, patch_size: int = 16) -> EncoderConfig:
    return EncoderConfig(image_size=(image_size,) * 2, patch_size=patch_size, **SIZES[size])


def theirs(size: str, image_size: int = 224, patch_size: int = 16, **values: object) -> transformers.BeitConfig:
    """The same network as transformers has it."""
    ours = architecture(size, image_size, patch_size)
    return transformers.BeitConfig(
        vocab_size=TOKENS,
        hidden_size=ours.width,
        num_hidden_layers=ours.depth,
        num_attention_heads=ours.num_heads,
        intermediate_size=4 * ours.width,
        image_size=image_size,
        patch_size=patch_size,
        layer_scale_init_value=0.1,
        drop_path_rate=0.1,
        **values,
    )


def normalized(images: Tensor) -> Tensor:
    return encoder_step.normalized(images)


# ------------------------------------------------------------------------------------------------------------
# The stages


def _views() -> dict[str, Stage]:
    """One core: files of 500 x 375 and of 2000 x 1500 pixels."""
    masking, found = BlockwiseMasking((14, 14)), {}
    for size, count in (((375, 500), 24), ((1500, 2000), 4)):
        files = data_pipeline.generated(count, size)
        pipelines = {
            "ours, fast": partial(data_pipeline.ours, PretrainViews((224, 224), (112, 112), masking)),
            "ours, exact": partial(
                data_pipeline.ours, PretrainViews((224, 224), (112, 112), masking, mode="exact"), pillow=True
            ),
            "the released pipeline": partial(data_pipeline.released, 224, 112, masking),
            "decoding alone, ours": lambda: lambda data, _: decode_image(data, "file"),
        }

        def build(make: Callable[[], Callable[[bytes, int], object]], files: list[bytes] = files) -> Work:
            return partial(_in_one_thread, make(), files)

        name = f"views, {size[1]}x{size[0]} JPEG"
        found[name] = Stage(count, {title: partial(build, make) for title, make in pipelines.items()})
    return found


def _in_one_thread(pipeline: Callable[[bytes, int], object], files: list[bytes]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data_pipeline.measure(pipeline, files)
    torch.set_num_threads(threads)


def _tokenization(setting: Setting) -> Stage:
    def ours() -> Work:
        tokenizer = setting.built(DiscreteVAE(DiscreteVAEConfig())).eval().requires_grad_(False)
        images = setting.images(setting.batch_size, 112)

        def work() -> None:
            with setting.run(True):
                tokenizer.encode(images)

        return work

    def package(bf16: bool, compiled: bool) -> Work:
        encode, images = dalle_encode(setting, bf16, compiled), setting.images(setting.batch_size, 112)
        return partial(encode, images)

    return Stage(setting.batch_size, {"ours": ours, **variants(setting, "DALL-E package", package)})


def dalle_encode(setting: Setting, bf16: bool, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Images to tokens by the published package."""
    encoder = dall_e.Encoder().to(setting.device).eval().requires_grad_(False)
    if bf16:
        encoder = encoder.to(memory_format=torch.channels_last)
        for module in encoder.modules():  # its convolutions cast by themselves, and only to float16
            if hasattr(module, "use_float16"):
                module.use_float16 = False
    if compiled:
        encoder.compile()

    def encode(images: Tensor) -> Tensor:
        pixels = dall_e.map_pixels(images.float() / 255)
        with torch.no_grad(), setting.run(bf16):
            if bf16:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            return encoder(pixels).argmax(dim=1)

    return encode


def variants(setting: Setting, name: str, build: Callable[[bool, bool], Work]) -> dict[str, Callable[[], Work]]:
    """A peer as published, tuned, and where it is asked for tuned and compiled."""
    found = {f"{name}, published": partial(build, False, False), f"{name}, tuned": partial(build, True, False)}
    if setting.compiled:
        found[f"{name}, tuned and compiled"] = partial(build, True, True)
    return found


def _masks(count: int, masking: Callable[[np.random.Generator], object]) -> Tensor:
    return torch.stack([torch.as_tensor(masking(np.random.default_rng(number))) for number in range(count)])


def _encoder_step(setting: Setting, size: str, image_size: int, patch_size: int, images: int) -> Stage:
    """Forward, loss, backward of masked image modelling, without tokenizer and optimiser."""
    config = architecture(size, image_size, patch_size)
    count = round(75 / 196 * config.grid[0] * config.grid[1])
    batch = setting.images(images, image_size)
    mask = _masks(images, RandomMasking(config.grid, count)).to(setting.device)
    grid = torch.randint(TOKENS, (images, *config.grid), device=setting.device)

    def ours() -> Work:
        model = setting.built(MaskedImageModel(BeitEncoder(config), TOKENS)).train()
        loss = lambda *_: model(batch, mask, mask, grid, count)[0]  # noqa: E731
        return encoder_step.stopwatch(model, loss, (batch, mask, grid), setting.run(True))

    def peer(make: Callable[..., tuple[nn.Module, encoder_step.Loss]], bf16: bool, compiled: bool) -> Work:
        model, loss = make(config, TOKENS)
        model = setting.built(model, compiled).train()
        return encoder_step.stopwatch(model, loss, (batch, mask, grid[mask]), setting.run(bf16))

    return Stage(
        images,
        {
            "ours": ours,
            **variants(setting, "transformers", partial(peer, encoder_step.transformers)),
            **variants(setting, "timm", partial(peer, encoder_step.timm)),
        },
    )


def _pretraining(setting: Setting, sees: str) -> Stage:
    """The whole step of BEiT-base at 224 px, tokenizer and optimiser included; `tokens kept`: as with --token-cache K
    from epoch K on."""
    config, count = architecture(BASE), setting.batch_size
    images, token_images = setting.images(count, 224), setting.images(count, 112)
    hidden = 75 if sees == "all" else 147
    masking = BlockwiseMasking((14, 14)) if sees == "all" else RandomMasking((14, 14), hidden)
    batch = PretrainBatch(images, token_images, _masks(count, masking).to(setting.device))

    def ours(cached: bool) -> Work:
        network = MaskedImageModel(
            BeitEncoder(config), TOKENS, encoder_sees=sees, num_masked=hidden if sees == "visible" else None
        )
        model = setting.built(network)
        tokenizer = setting.built(DiscreteVAE(DiscreteVAEConfig())).eval().requires_grad_(False)
        kept = torch.randint(TOKENS, (count, 14, 14), device=setting.device)
        encode = (lambda batch: kept) if cached else tokens_by(tokenizer)
        loss = lambda: masked_image_modelling(model, encode, batch, batch.mask, hidden)[1]  # noqa: E731
        return setting.step(model, loss, bf16=True, ours=True)

    def published(bf16: bool, compiled: bool) -> Work:
        values = {"use_mask_token": True, "use_shared_relative_position_bias": True}
        values |= {"attn_implementation": "sdpa"} if bf16 else {}
        model = setting.built(transformers.BeitForMaskedImageModeling(theirs(BASE, **values)), compiled)
        encode, mask = dalle_encode(setting, bf16, compiled), batch.mask.flatten(1)

        def loss() -> Tensor:
            tokens = encode(token_images)[batch.mask]
            return model(normalized(images), bool_masked_pos=mask, labels=tokens).loss

        return setting.step(model, loss, bf16=bf16)

    contestants = {"ours": partial(ours, False), "ours, tokens kept": partial(ours, True)}
    peers = variants(setting, "transformers and DALL-E package", published) if sees == "all" else {}
    return Stage(count, {**contestants, **peers})


def _classification(setting: Setting, *, training: bool) -> Stage:
    count = setting.batch_size
    images, labels = setting.images(count, 224), torch.randint(CLASSES, (count,), device=setting.device)

    def work(model: nn.Module, call: Callable[[Tensor], Tensor], bf16: bool, ours: bool = False) -> Work:
        if training:
            return setting.step(model, lambda: F.cross_entropy(call(images).float(), labels), bf16=bf16, ours=ours)
        model.eval().requires_grad_(False)

        def infer() -> None:
            with torch.no_grad(), setting.run(bf16):
                call(images)

        return infer

    def ours() -> Work:
        config = EncoderConfig(position="block_bias", **SIZES[BASE])
        model = setting.built(ImageClassifier(BeitEncoder(config), CLASSES))
        return work(model, model, True, ours=True)

    def hugging(bf16: bool, compiled: bool) -> Work:
        values = {"use_relative_position_bias": True, "num_labels": CLASSES}
        values |= {"attn_implementation": "sdpa"} if bf16 else {}
        model = setting.built(transformers.BeitForImageClassification(theirs(BASE, **values)), compiled)
        return work(model, lambda images: model(normalized(images)).logits, bf16)

    def of_timm(bf16: bool, compiled: bool) -> Work:
        model = setting.built(
            timm.create_model("beit_base_patch16_224", num_classes=CLASSES, drop_path_rate=0.1), compiled
        )
        return work(model, lambda images: model(normalized(images)), bf16)

    peers = {**variants(setting, "transformers", hugging), **variants(setting, "timm", of_timm)}
    return Stage(count, {"ours": ours, **peers})


def _segmentation(setting: Setting, *, training: bool) -> Stage:
    """UPerNet on crops of 224 px."""
    count = max(2, setting.batch_size // 4)
    images = setting.images(count, 224)
    maps = torch.randint(SEGMENT_CLASSES, (count, 224, 224), device=setting.device)

    def ours() -> Work:
        config = EncoderConfig(position="block_bias", **SIZES[BASE])
        model = setting.built(
            SemanticSegmenter(
                BeitEncoder(config),
                SEGMENT_CLASSES,
                decoder="upernet",
                layers=released_layers("upernet", 12),
                channels=768,
            )
        )
        if not training:
            return setting.inference(model, images, bf16=True)

        def loss() -> Tensor:
            main, auxiliary = model(images, auxiliary=True)
            return pixel_loss(main, maps) + 0.4 * pixel_loss(auxiliary, maps)

        return setting.step(model, loss, bf16=True, ours=True)

    def hugging(bf16: bool, compiled: bool) -> Work:
        values = {"use_relative_position_bias": True, "num_labels": SEGMENT_CLASSES, "out_indices": [4, 6, 8, 12]}
        values |= {"attn_implementation": "sdpa"} if bf16 else {}
        model = setting.built(transformers.BeitForSemanticSegmentation(theirs(BASE, **values)), compiled)
        if training:
            return setting.step(model, lambda: model(normalized(images), labels=maps).loss, bf16=bf16)
        model.eval().requires_grad_(False)

        def infer() -> None:
            with torch.no_grad(), setting.run(bf16):
                F.interpolate(model(normalized(images)).logits, (224, 224), mode="bilinear")

        return infer

    return Stage(count, {"ours": ours, **variants(setting, "transformers", hugging)})


def _features(setting: Setting) -> Stage:
    images = setting.images(setting.batch_size, 224)

    def ours() -> Work:
        model = setting.built(BeitEncoder(EncoderConfig(position="block_bias", **SIZES[BASE])))
        return setting.inference(model, images, bf16=True)

    def of_timm(bf16: bool, compiled: bool) -> Work:
        model = setting.built(timm.create_model("beit_base_patch16_224", num_classes=0), compiled)
        model.eval().requires_grad_(False)

        def infer() -> None:
            with torch.no_grad(), setting.run(bf16):
                model.forward_features(normalized(images))

        return infer

    return Stage(setting.batch_size, {"ours": ours, **variants(setting, "timm", of_timm)})
