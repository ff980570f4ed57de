"""The network of a task that starts from scratch with a preset: that of pre-training."""

from beit.config.files import layered
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig
from beit.presets import Values, recipes_of, verb_of

NETWORK = (
    *("patch_size", "width", "depth", "num_heads", "mlp_ratio"),
    *("position", "bias", "layer_scale_init", "init_scheme", "normalization"),
)
"""The knobs of an encoder, of pre-training as of a task that starts from scratch."""


def network_of(preset: str, config_type: type[TrainingConfig]) -> Values:
    """The encoder of the pre-training preset of that name, where there is one, as a task states it."""
    if preset not in (recipes := recipes_of("pretrain")):
        return {}
    return task_network(layered(PretrainConfig, [recipes[preset].values]), config_type)


def task_network(values: Values, config_type: type[TrainingConfig]) -> Values:
    """The encoder of a pre-training of these `values`, as a task that starts from scratch states it."""
    size = "crop" if verb_of(config_type) == "segment" else "image_size"
    network = {name: values[name] for name in NETWORK} | {size: values["image_size"]}
    if network["position"] == "shared_bias":
        network["position"] = None  # a task has one for each block, as after pre-training
    return network | {"layer_scale_init": network["layer_scale_init"] or 0.0}
