"""Images per second of one masked-image-modelling step (forward, loss, backward) beside transformers and timm.

    python benchmarks/encoder_step.py
    python benchmarks/encoder_step.py --encoder base --batch-size 128 --device cuda

Same architecture (shared bias, LayerScale, drop path), images, masks, targets and precision for all. The loss is
cross-entropy of the tokens at hidden patches; tokenizer and optimiser are left out. "timm" is its Beit with the
mask token and the head put around it, as the official code does; transformers has the whole model and computes
logits at every patch. Contestants take turns, and the fastest of their steps counts.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import BeitConfig, BeitForMaskedImageModeling

from beit.config.architecture import EncoderConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
from beit.presets import ENCODERS
from beit.training.device import choose_precision

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(config: EncoderConfig, vocab_size: int) -> tuple[nn.Module, Loss]:
    model = MaskedImageModel(BeitEncoder(config), vocab_size)
    return model, lambda images, mask, tokens: F.cross_entropy(model(images, mask).float(), tokens)


def transformers(config: EncoderConfig, vocab_size: int) -> tuple[nn.Module, Loss]:
    model = BeitForMaskedImageModeling(
        BeitConfig(
            vocab_size=vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=int(config.width * config.mlp_ratio),
            layer_norm_eps=config.layer_norm_eps,
            image_size=config.image_size[0],
            patch_size=config.patch_size,
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            layer_scale_init_value=config.layer_scale_init,
            drop_path_rate=config.drop_path_rate,
        )
    )
    return (
        model,
        lambda images, mask, tokens: model(normalized(images), bool_masked_pos=mask.flatten(1), labels=tokens).loss,
    )


class TimmMaskedImageModel(Beit):
    """timm's Beit with what the official pre-training model adds."""

    def __init__(self, config: EncoderConfig, vocab_size: int) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=vocab_size,
            global_pool="token",
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=True,
            init_values=config.layer_scale_init,
            drop_path_rate=config.drop_path_rate,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        weight = mask.flatten(1)[..., None].type_as(self.mask_token)
        patches = patches * (1 - weight) + self.mask_token * weight
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        bias = self.rel_pos_bias()
        for block in self.blocks:
            tokens = block(tokens, shared_rel_pos_bias=bias)
        return self.head(self.norm(tokens)[:, 1:][mask.flatten(1)])


def timm(config: EncoderConfig, vocab_size: int) -> tuple[nn.Module, Loss]:
    model = TimmMaskedImageModel(config, vocab_size)
    return model, lambda images, mask, tokens: F.cross_entropy(model(normalized(images), mask).float(), tokens)


def normalized(images: Tensor) -> Tensor:
    """What the data pipelines of the peers hand over; ours takes uint8."""
    return (images.float() / 255 - 0.5) / 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="tiny")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contestant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["auto", "bf16", "float32"], default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile each model")
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    fields = {key: x for key, x in ENCODERS[options.encoder].items() if key in EncoderConfig.__dataclass_fields__}
    config = EncoderConfig(
        image_size=(options.image_size,) * 2, patch_size=options.patch_size, drop_path_rate=0.1, **fields
    )
    torch.manual_seed(0)
    shape = (options.batch_size, 3, *config.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    mask = torch.rand(options.batch_size, *config.grid, device=device) < 75 / 196
    tokens = torch.randint(options.vocab_size, (int(mask.sum()),), device=device)

    is_bf16 = choose_precision(options.precision, device) == "bf16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_bf16)
    steps: dict[str, Callable[[], float]] = {}
    for name, build in (("beit", ours), ("transformers", transformers), ("timm", timm)):
        model, loss = build(config, options.vocab_size)
        model.to(device).train()
        if options.compile:
            model.compile()
        steps[name] = stopwatch(model, loss, (images, mask, tokens), autocast)

    memory: dict[str, float] = {}
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(options.steps + 1):
        for name, step in steps.items():
            gc.collect()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            seconds = step()
            if turn:  # The first turn warms up.
                best[name] = min(best[name], seconds)
            if device.type == "cuda":
                memory[name] = (torch.cuda.max_memory_allocated() - held) / 2**30
    print(
        f"{options.encoder} at {options.image_size}, patch {options.patch_size}, batch {options.batch_size}, "
        f"{'bf16' if is_bf16 else 'float32'}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, seconds in best.items():
        line = f"{name:13} {options.batch_size / seconds:9.1f} images/s  {seconds * 1e3:9.1f} ms"
        line += f"  {best['transformers'] / seconds:5.2f} x transformers  {best['timm'] / seconds:5.2f} x timm"
        print(line + (f"  {memory[name]:6.2f} GiB above the weights" if memory else ""))


def stopwatch(
    model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor, Tensor], autocast: torch.autocast
) -> Callable[[], float]:
    """A function that runs one step, its forward pass in `autocast`, and returns its seconds."""
    device = batch[0].device

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with autocast:
            value = loss(*batch)
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return step


if __name__ == "__main__":
    main()
