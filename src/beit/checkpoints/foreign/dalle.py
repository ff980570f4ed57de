"""Tokenizers of others: OpenAI's encoder.pkl and decoder.pkl, whole modules or state dicts, and plain discrete VAEs.

A plain one is the released code's "customized" tokenizer (pytorch_model.bin) or DALLE-pytorch's vae.pt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from beit.checkpoints.foreign.key_map import KeyMap
from beit.checkpoints.foreign.shapes import Shape, number_of
from beit.checkpoints.foreign.survey import Stored, Survey, compare, shapes_of
from beit.checkpoints.reading.torch_file import TensorFile, open_tensor_file
from beit.checkpoints.reference import Stated, agreed
from beit.config.architecture import PIXEL_STATISTICS, DiscreteVAEConfig, TokenArchitecture
from beit.config.errors import UserError, require
from beit.config.tokenizer import MAX_LAYERS, Layer, PlainVAEConfig
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.plain_dvae import PlainDVAE
from beit.untrusted import Facts, listed

NAME, PLAIN = "dalle", "plain_dvae"
FILES = ("encoder.pkl", "decoder.pkl")
MAX_SIDE = 2**16
_LAYERS: Mapping[str, Literal["stride", "residual", "pointwise"]]
_LAYERS = {"0.weight": "stride", "net.0.weight": "residual", "weight": "pointwise"}
_BLOCK = "blocks.group_{}.block_{}"


_MODULES = ("blocks.input", f"{_BLOCK}.id_path", f"{_BLOCK}.res_path.conv_{{}}", "blocks.output.conv")
KEYS = {
    half: KeyMap(
        (f"{half}.{name}.{ours}", f"{name}.{theirs}")
        for name in _MODULES
        for ours, theirs in (("weight", "w"), ("bias", "b"))
    )
    for half in ("encoder", "decoder")
}


def survey(folder: Path, stated: Stated) -> Survey:
    """OpenAI's tokenizer: the two files in `folder`."""
    shapes: dict[str, Shape] = {}
    sources, unknown = [], []
    for half, name in zip(KEYS, FILES, strict=True):
        require((folder / name).is_file(), f"{folder / name} is missing; a tokenizer is {' and '.join(FILES)}")
        file = open_tensor_file(folder / name)
        tensors = tensors_of(file, "state_dict")
        keys, strange = KEYS[half].ours(tensors)
        sources.append((file, {name: [tensors[key] for key in parts] for name, parts in keys.items()}))
        shapes |= shapes_of(file.path, tensors, keys)
        unknown += strange
    config = _config(folder / FILES[0], shapes, stated)
    with torch.device("meta"):
        model = DiscreteVAE(config)
    return _survey(NAME, config, model, shapes, sources, unknown)


def write(model: nn.Module, folder: Path, classes: Sequence[str] | None, extra: Facts) -> list[str]:
    """Makes the folder, with encoder.pkl and decoder.pkl, state dicts for the `DALL-E` package's classes."""
    assert isinstance(model, DiscreteVAE)
    config = model.config
    fixed = {
        f"stride {config.stride} (8 only)": config.stride == 8,
        f"width {config.width} (64 and more)": config.width >= 64,
        f"vocab_size {config.vocab_size} (512 and more)": config.vocab_size >= 512,
        f"code_width {config.code_width} (8 and more)": config.code_width >= 8,
    }
    if wrong := [fact for fact, holds in fixed.items() if not holds]:
        raise UserError(f"the DALL-E package cannot hold a tokenizer with {', '.join(wrong)}")
    folder.mkdir()
    for half, name in zip(KEYS, FILES, strict=True):
        own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(f"{half}.")}
        with (folder / name).open("wb") as file:
            torch.save(KEYS[half].write(own, NAME), file)
    sizes = f"n_hid={config.width}, n_blk_per_group={config.blocks_per_group}, vocab_size={config.vocab_size}"
    return [
        f"the files are state dicts, for load_state_dict of dall_e.Encoder({sizes}) "
        f"and Decoder(n_init={config.code_width}, {sizes})"
    ]


def survey_plain(file: TensorFile, stated: Stated) -> Survey:
    """A plain discrete VAE, its layers read off the names and shapes of its weights."""
    tensors = tensors_of(file, "weights")
    shapes = shapes_of(file.path, tensors, {name: (name,) for name in tensors})
    if wrong := [name for name, shape in shapes.items() if 0 in shape]:
        raise UserError(f"{file.path} holds weights without numbers: {listed(wrong)}")
    encoder, decoder = _layers(shapes, "encoder"), _layers(shapes, "decoder")
    codebook = shapes["codebook.weight"]
    strides = sum(kind == "stride" for kind, *_ in encoder)
    ends = [size for layers in (encoder, decoder) if layers for size in (layers[0][1], layers[-1][2])]
    if len(codebook) != 2 or ends != [3, *codebook, 3] or not strides:
        raise UserError(f"{file.path} has a codebook but not the encoder and decoder of a discrete VAE")
    hyper = file.contents.get("hparams")
    side = hyper.get("image_size") if isinstance(hyper, dict) else None
    own = (side >> strides,) * 2 if isinstance(side, int) and 1 << strides <= side < MAX_SIDE else None
    rows, columns = agreed("grid", stated.grid, own) or (max(1, 112 >> strides),) * 2
    mean, std = PIXEL_STATISTICS["half"]
    sizes: dict[str, Any] = {"vocab_size": codebook[0], "code_width": codebook[1], "stride": 1 << strides}
    sizes |= {"pixel_mean": stated.pixel_mean or mean, "pixel_std": stated.pixel_std or std}
    size = rows << strides, columns << strides
    config = PlainVAEConfig(image_size=size, encoder=encoder, decoder=decoder, **sizes)
    with torch.device("meta"):
        model = PlainDVAE(config)
    sources = [(file, {name: [tensor] for name, tensor in tensors.items()})]
    return _survey(PLAIN, config, model, shapes, sources, [])


def _layers(shapes: Mapping[str, Shape], half: str) -> tuple[Layer, ...]:
    """The layers of the encoder or the decoder, up to the first number that is missing."""
    layers: list[Layer] = []
    for number in range(MAX_LAYERS):
        keys = [(kind, shapes.get(f"{half}.{number}.{leaf}", ())) for leaf, kind in _LAYERS.items()]
        present = [(kind, shape) for kind, shape in keys if len(shape) == 4]
        if not present:
            return tuple(layers)
        kind, (n_out, n_in, *_) = present[0]
        if half == "decoder" and kind == "stride":  # a transposed convolution has its inputs first
            n_out, n_in = n_in, n_out
        layers.append((kind, n_in, n_out))
    raise UserError(f"its {half} has more than {MAX_LAYERS} layers, which no discrete VAE has")


def tensors_of(file: TensorFile, key: str) -> dict[str, Stored]:
    """The state dict under `key`, or the whole file."""
    contents = file.contents
    inner = contents.get(key) if isinstance(contents, dict) else None
    return file.tensors(inner if isinstance(inner, dict) else contents)


def _config(path: Path, shapes: Mapping[str, Shape], stated: Stated) -> DiscreteVAEConfig:
    names = ("encoder.blocks.input", "encoder.blocks.output.conv", "decoder.blocks.input")
    first, last, code = (shapes.get(f"{name}.weight", ()) for name in names)
    if not len(first) == len(last) == len(code) == 4 or 0 in (*first, *last, *code):
        raise UserError(f"{path} and its other half are not OpenAI's encoder and decoder; check their names")
    groups = number_of(shapes, "encoder.blocks.group_{}.block_1.res_path.conv_1.weight", start=1)
    blocks = number_of(shapes, "encoder.blocks.group_1.block_{}.res_path.conv_1.weight", start=1)
    require(2 <= groups <= 8, f"{path} has {groups} groups of blocks; OpenAI's encoder has 4")
    stride = 2 ** (groups - 1)
    rows, columns = stated.grid or (max(1, 112 // stride),) * 2
    sizes = {"vocab_size": last[0], "width": first[0], "blocks_per_group": blocks, "code_width": code[0]}
    return DiscreteVAEConfig(stride=stride, image_size=(rows * stride, columns * stride), **sizes)


def _survey(
    name: str,
    config: TokenArchitecture,
    model: DiscreteVAE | PlainDVAE,
    shapes: Mapping[str, Shape],
    files: Sequence[tuple[TensorFile, Mapping[str, Sequence[Stored]]]],
    unknown: list[str],
) -> Survey:
    """The tokenizer compared with its files, whose tensors are under our names."""
    missing, spare = compare(files[0][0].path, shapes, model)
    sources = [(file, {key: parts for key, parts in tensors.items() if key not in spare}) for file, tensors in files]
    return Survey(name, "tokenizer", config, model, sources, [*unknown, *spare], missing)
