"""Released models by name: wherever a model is wanted, a name of this table stands for its files.

Sources: the README of microsoft/unilm (beit/), openai/DALL-E, timm 1.0, and the pages of microsoft and timm on the
Hugging Face Hub. None of the authors of the plain files has published a checksum, so none stands here: the first
download is trusted, its SHA-256 kept beside it and checked from then on (:mod:`beit.checkpoints.remote`).
"""

from collections.abc import Mapping
from typing import NamedTuple

HUB = "hf://"
"""What stands before owner/name, wherever a model is wanted."""


class Release(NamedTuple):
    """Where a released model comes from: either files at addresses, or a repository of the Hugging Face Hub."""

    what: str
    licence: str
    """As its authors' repository or page states it."""
    files: tuple[str, ...] = ()
    """Addresses. The last part of each is the file's name."""
    hub: str | None = None
    """owner/name."""
    stated: str = ""
    """What its files tell wrong, as it may stand behind an @."""


def _unilm(name: str, what: str) -> tuple[str, Release]:
    return name, Release(what, "MIT", (f"https://github.com/addf400/files/releases/download/v1.0/{name}.pth",))


def _hub(owner: str, name: str, what: str, stated: str = "") -> tuple[str, Release]:
    return f"{owner}/{name}", Release(what, "Apache-2.0", hub=f"{owner}/{name}", stated=stated)


_PRETRAINED = "pre-trained on ImageNet-22k"
_22K = "classifier of 21,841 classes: pre-trained, then fine-tuned on ImageNet-22k"
_22K_1K = "ImageNet-1k classifier: pre-trained and fine-tuned on ImageNet-22k, then on ImageNet-1k"
_1K = "ImageNet-1k classifier: pre-trained on ImageNet-22k, fine-tuned on ImageNet-1k"
_ADE = "ADE20K segmenter (UPerNet) at 640 px"
# Converted from the released code's, with neither the layers nor the pixel statistics that they were trained with:
# see beit.checkpoints.foreign.huggingface_segmentation.
_ADE_STATED = "layers={},pixel_mean=imagenet,pixel_std=imagenet"
_TOKENIZER = "OpenAI's tokenizer: 8,192 visual tokens"
_OPENAI = "https://cdn.openai.com/dall-e"

RELEASED: Mapping[str, Release] = dict(
    [
        ("dall-e", Release(_TOKENIZER, "modified MIT", (f"{_OPENAI}/encoder.pkl", f"{_OPENAI}/decoder.pkl"))),
        _unilm("beit_base_patch16_224_pt22k", _PRETRAINED),
        _unilm("beit_large_patch16_224_pt22k", _PRETRAINED),
        _unilm("beit_base_patch16_224_pt22k_ft22k", _22K),
        _unilm("beit_large_patch16_224_pt22k_ft22k", _22K),
        _unilm("beit_base_patch16_224_pt22k_ft1k", f"{_1K}, 83.7 % top-1"),
        _unilm("beit_base_patch16_224_pt22k_ft22kto1k", f"{_22K_1K}, 85.2 % top-1"),
        _unilm("beit_base_patch16_384_pt22k_ft22kto1k", f"{_22K_1K}, 86.8 % top-1"),
        _unilm("beit_large_patch16_224_pt22k_ft1k", f"{_1K}, 86.0 % top-1"),
        _unilm("beit_large_patch16_224_pt22k_ft22kto1k", f"{_22K_1K}, 87.4 % top-1"),
        _unilm("beit_large_patch16_384_pt22k_ft22kto1k", f"{_22K_1K}, 88.4 % top-1"),
        _unilm("beit_large_patch16_512_pt22k_ft22kto1k", f"{_22K_1K}, 88.6 % top-1"),
        _unilm("beit_base_patch16_640_pt22k_ft22ktoade20k", f"{_ADE}, 53.6 % mIoU"),
        _unilm("beit_large_patch16_640_pt22k_ft22ktoade20k", f"{_ADE}, 56.7 % mIoU"),
        _hub("microsoft", "beit-base-patch16-224-pt22k", _PRETRAINED),
        _hub("microsoft", "beit-large-patch16-224-pt22k", _PRETRAINED),
        _hub("microsoft", "beit-base-patch16-224-pt22k-ft22k", _22K),
        _hub("microsoft", "beit-large-patch16-224-pt22k-ft22k", _22K),
        _hub("microsoft", "beit-base-patch16-224", _22K_1K),
        _hub("microsoft", "beit-base-patch16-384", _22K_1K),
        _hub("microsoft", "beit-large-patch16-224", _22K_1K),
        _hub("microsoft", "beit-large-patch16-384", _22K_1K),
        _hub("microsoft", "beit-large-patch16-512", _22K_1K),
        _hub("microsoft", "beit-base-finetuned-ade-640-640", _ADE, _ADE_STATED.format("3:5:7:11")),
        _hub("microsoft", "beit-large-finetuned-ade-640-640", _ADE, _ADE_STATED.format("7:11:15:23")),
        _hub("timm", "beit_base_patch16_224.in22k_ft_in22k", _22K),
        _hub("timm", "beit_large_patch16_224.in22k_ft_in22k", _22K),
        _hub("timm", "beit_base_patch16_224.in22k_ft_in22k_in1k", _22K_1K),
        _hub("timm", "beit_base_patch16_384.in22k_ft_in22k_in1k", _22K_1K),
        _hub("timm", "beit_large_patch16_224.in22k_ft_in22k_in1k", _22K_1K),
        _hub("timm", "beit_large_patch16_384.in22k_ft_in22k_in1k", _22K_1K),
        _hub("timm", "beit_large_patch16_512.in22k_ft_in22k_in1k", _22K_1K),
    ]
)
