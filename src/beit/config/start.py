"""What the verbs share that teach an encoder a task: where it starts, and how fast its layers learn."""

from dataclasses import dataclass
from typing import Any, Literal

import beit.config.architecture as network
import beit.config.values as knobs
from beit.config.errors import UserError, require
from beit.config.run import AdaptsChannels, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class StartConfig(AdaptsChannels, TrainingConfig):
    """A pre-trained encoder, or one of a stated architecture with first values drawn at random."""

    init: str | None = None
    """Start from this run or model, ours or not (as SOURCE of `beit convert`)."""
    from_scratch: bool = False
    """Start from first values drawn at random instead of `init`: the encoder of the pre-training preset of the same
    name, or auto's, as far as its knobs are not given."""
    patch_size: knobs.PositiveInt | None = None
    """From scratch: side of a patch in pixels."""
    width: knobs.PositiveInt | None = None
    """From scratch: channels of every token."""
    depth: knobs.PositiveInt | None = None
    """From scratch: transformer blocks."""
    num_heads: knobs.PositiveInt | None = None
    """From scratch: attention heads."""
    mlp_ratio: knobs.PositiveFloat | None = None
    """From scratch: hidden width of the MLP as a multiple of `width`; null for 4."""
    position: network.Position | None = None
    """Learned absolute embeddings, fixed sine-cosine ones, or none, as of `beit pretrain`; null for those of `init`,
    from scratch none."""
    bias: network.Bias | None = None
    """Relative position bias; null for what `position` says, else one in each block, into which a shared one is
    copied (released code)."""
    layer_scale_init: knobs.NonNegativeFloat | None = None
    """From scratch: first value of LayerScale, 0 for none; null for 0.1."""
    init_scheme: network.InitScheme = "beit"
    """First values of the encoder, from scratch, and of a classifier's head, as of `beit pretrain`."""
    normalization: network.Normalization | None = None
    """From scratch: pixel mean and deviation, 0.5 and 0.5, ImageNet's, or those of the data; null for half, but those
    of data that is not RGB of 8 bits."""
    drop_path_rate: knobs.ShareBelowOne = 0.1
    """Stochastic depth of the last block."""
    dropout: knobs.ShareBelowOne = 0.0
    """Dropout after the MLP and the attention projection."""
    layer_decay: knobs.PositiveShare = 0.65
    """Each layer learns at this share of the rate of the layer above it. From scratch all learn at the full rate."""
    freeze: knobs.NonNegativeInt | Literal["all"] | None = None
    """Keep patches, positions and so many blocks as `init` has them, or `all` of the encoder, and teach the rest (for
    few labels); null keeps nothing."""

    class_weights: str | None = None
    """Weights of the classes in the loss: `balanced`, as rare as they are among the labels to train on (of pixels, in
    a sample of the label maps), or a .csv file of lines `class,weight`; null for all alike."""

    SIZE = "image_size"
    """The field that states the size of the images."""

    def check(self) -> None:
        super().check()
        one_start = self.init is None or not self.from_scratch
        require(one_start, f"--from-scratch and --init {self.init} exclude each other; give one")
        kept = self.init is not None or self.freeze is None
        require(kept, f"--freeze {self.freeze} keeps what --init brings; give --init, or drop --freeze")
        if self.init is None:
            self.architecture()

    @property
    def stated_size(self) -> network.Sides | None:
        """Height and width of the images that the encoder's positions are stored for; None for those of `init`."""
        size: int | network.Sides | None = getattr(self, self.SIZE)
        return network.sides(size)

    @property
    def decay_of_layers(self) -> float:
        """`layer_decay`, but 1 from scratch: the lower layers hold nothing to preserve then, and slowness hurts."""
        return 1.0 if self.init is None else self.layer_decay

    def architecture(self) -> network.EncoderConfig:
        """The encoder to train from scratch."""
        size = self.stated_size
        needed = (self.SIZE, "patch_size", "width", "depth", "num_heads")
        missing = [knobs.flag_of(name) for name in needed if getattr(self, name) is None]
        if size is None or missing:
            start = "--from-scratch with --preset auto or one that `beit pretrain` has too"
            wants = f"without such a preset, name {', '.join(missing)}"
            raise UserError(f"give --init a trained model, or {start}; {wants}")
        # Fine-tuning's form of the default architecture, so that both starts train the same network.
        pixels = network.pixel_constants(self.normalization, self.pixels)
        values: dict[str, Any] = {"position": "block_bias", **self.stated(), **pixels, "dropout": self.dropout}
        return network.EncoderConfig(image_size=size, drop_path_rate=self.drop_path_rate, **values)

    def stated(self) -> dict[str, Any]:
        """The fields of an EncoderConfig that knobs of the architecture were given for."""
        names = ("patch_size", "width", "depth", "num_heads", "mlp_ratio", "bias")
        stated = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.position is not None:
            stated["position"], stated["bias"] = network.positions(self.position, self.bias)
        if self.layer_scale_init is not None:
            stated["layer_scale_init"] = self.layer_scale_init or None
        if self.normalization in network.PIXEL_STATISTICS:
            stated["pixel_mean"], stated["pixel_std"] = network.PIXEL_STATISTICS[self.normalization]
        return stated
