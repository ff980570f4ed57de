"""Classes and functions that pickles of checkpoints name: none of them is imported or called by that name."""

import torch

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
MODULES = {
    *(f"dall_e.encoder.{name}" for name in ("Encoder", "EncoderBlock")),
    *(f"dall_e.decoder.{name}" for name in ("Decoder", "DecoderBlock")),
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
}
"""Classes of OpenAI's encoder.pkl and decoder.pkl, which are whole modules."""
_BUILTINS = ("set", "frozenset", "list", "dict", "tuple", "int", "long", "float", "str", "unicode", "bool")
BYSTANDERS = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    *("_codecs.encode", "argparse.Namespace", "collections.Counter", "datetime.datetime"),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "_local.PosixPath")),
    *(f"torch.{name}" for name in ("device", "float16", "bfloat16", "float32", "float64", "bool", "uint8")),
    *(f"torch.int{bits}" for bits in (8, 16, 32, 64)),
}
"""What modules and training checkpoints hold beside their weights; nothing here reads it but the arguments."""
TENSOR, OLD_TENSOR = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"
PARAMETERS = {"torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"}
DICT, DEFAULT_DICT, SIZE = "collections.OrderedDict", "collections.defaultdict", "torch.Size"
ALLOWED = {*STORAGES, *MODULES, *BYSTANDERS, *PARAMETERS, TENSOR, OLD_TENSOR}
ALLOWED |= {DICT, DEFAULT_DICT, SIZE}
