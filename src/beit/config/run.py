"""What every verb that reads images takes, what every verb that trains takes, and what all return."""

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import beit.config.values as knobs
from beit.config.errors import UserError, require

LayoutName = Literal["splits", "classes"]


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """What is made of files of images."""

    max_megapixels: knobs.PositiveFloat = 64.0
    """Refuse images larger than this many million pixels."""
    max_gibibytes: knobs.PositiveFloat = 1.0
    """Refuse images whose decoding takes more memory than this."""
    image_channels: knobs.PositiveInt | None = None
    """Channels of the images; null for those of the model, else what the files have. With another number than that
    of `init` its patch projection is summed (1), or taken in turn and scaled."""
    value_range: tuple[float, float] | None = None
    """The numbers that are black and white in images of more than 8 bits; null for what the model was trained with,
    else what the files state, else percentiles of each channel."""


class AdaptsChannels:
    """Of a verb whose `init` brings an encoder that takes images of another number of channels."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(DecodingConfig):
    """Which images, and how much damage among them is bearable."""

    data: str | tuple[str, ...]
    """Folders of images, tar shards (`shards-{000..099}.tar`), torchvision data sets by name, or `demo`: the
    built-in set (a folder of that name is `./demo`)."""
    layout: LayoutName | None = None
    """What folders called `train`, `val` or `test` hold: these `splits`, or images like all `classes` beside them;
    null: as what lies beside them says, where that leaves no doubt."""
    limit: knobs.PositiveInt | None = None
    """Use only this many images: a fixed choice, spread over the set."""
    holdout: knobs.ShareBelowOne | None = None
    """Share of the training images held back as `val` where the data has none; 0 for none: nothing is chosen then;
    null for 0.05, or 0.2 of labelled images where there are fewer than 2,000."""
    eval_data: str | tuple[str, ...] | None = None
    """Images to evaluate on while training, named as `data`, instead of the `val` of the data or a part held back."""
    group_by: str | None = None
    """Regular expression on the path of an image below the root; images of which its first group is the same, as of
    `(patient\\d+)`, are held back together."""
    labels: str | None = None
    """File with the classes of images (.csv, .json, .jsonl), of which each gives its share to the images held back;
    null: class folders, where there are any."""
    label_maps: str | None = None
    """Folder of label maps, under the names of their images (`a/street.png` for `photos/a/street.jpg`), for some of
    them or all; null: those beside the images, where there are any."""
    max_bad: knobs.Share = 0.05
    """Stop when more than this share of the images cannot be read."""

    def __post_init__(self) -> None:
        knobs.check_limits(self)
        require(bool(self.sources), "--data names no images; give a folder, tar shards, a data set's name, or demo")
        once = len({*self.sources}) == len(self.sources)
        require(once, f"--data {' '.join(self.sources)} names the same images twice; name them once")
        try:
            groups = 1 if self.group_by is None else re.compile(self.group_by).groups
        except re.error as error:
            raise UserError(f"--group-by {self.group_by} is no regular expression ({error}); correct it") from error
        mend = f"put brackets around what names one: ({self.group_by})"
        require(groups > 0, f"--group-by {self.group_by} has no group; {mend}")

    @property
    def sources(self) -> tuple[str, ...]:
        """`data` as a tuple, however it was given."""
        return _as_tuple(self.data)

    @property
    def eval_sources(self) -> tuple[str, ...]:
        """`eval_data` likewise."""
        return _as_tuple(self.eval_data or ())


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Where a network runs, and who reads its images."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a GPU where there is one, else the CPU."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bf16 where this machine is fast at it, else float32."""
    workers: knobs.NonNegativeInt | Literal["auto"] = "auto"
    """Processes that load images, for each device. Does not change the result."""


@dataclass(frozen=True, kw_only=True)
class RanksConfig(MachineConfig):
    """What one device does, or several."""

    devices: knobs.PositiveInt | Literal["auto"] = "auto"
    """Processes to start on this machine, one per GPU; auto: every GPU, or one CPU process."""


@dataclass(frozen=True, kw_only=True)
class DevicesConfig(RanksConfig):
    """What is trained on one device or several."""

    seed: knobs.NonNegativeInt = 0
    """Seed of everything random."""


class Outcome(NamedTuple):
    """What every verb returns."""

    config: Any
    """The configuration; of a verb that trains, with every value."""
    results: Mapping[str, Any] = {}
    """What came of it, by name. Of a verb that trains, the content of results.json; of its dry run
    `judged`, the labelled images that the verdict will be of."""
    seconds: float | None = None
    """Of a dry run with a budget: what the run is expected to take."""


def _as_tuple(values: str | tuple[str, ...]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def seconds_of(text: str, flag: str = "--budget") -> float:
    """A time as `--budget` takes it, in seconds; `flag` gave it."""
    number, unit = _quantity(text, "smh")
    require(number > 0 and unit != "", f"{flag} {text} is no time; write it as 90s, 30m or 2h")
    return number * {"s": 1, "m": 60, "h": 3600}[unit]


def _quantity(text: str, units: str) -> tuple[float, str]:
    """A number and its unit, one of the letters in `units`, or none for a whole number; 0 where `text` is neither."""
    match = re.fullmatch(rf"(\d+(?:\.\d+(?=[{units}]))?)([{units}]?)", text)
    return (float(match[1]), match[2]) if match else (0, "")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(DevicesConfig, DataConfig):
    """What every training verb shares: length, optimiser, machine, and what is written when.

    A configuration is made as it is typed. :func:`beit.presets.resolve` lays that over a preset, or over what `auto`
    chooses; what it gives has every value and no `preset` any more, and is checked as a whole.
    """

    preset: str | None = "auto"
    """A recipe of `beit presets`; auto chooses for images and machine; null: the defaults alone, as shown here."""
    out: str
    """The run directory. The same command on a directory that holds a run continues it."""
    pixels: dict[str, Any] | None = field(default=None, metadata=knobs.FILE_ONLY)
    """What the images are, found before the first step: channels, bits, value_range, and, where they normalise the
    encoder, mean and std of each channel; null: to be found."""

    epochs: knobs.PositiveFloat | None = None
    """Length in passes over the images. Excludes `steps` and `budget`."""
    steps: knobs.PositiveInt | None = None
    """Length in optimiser steps. Excludes `epochs` and `budget`."""
    budget: str | None = None
    """Time for the whole run (`30m`, `2h`), which a rehearsal turns into steps. Excludes `epochs` and `steps`."""
    extend_to: str | None = None
    """Go on with the finished run in `out` until it has so many steps (`2000`) or epochs (`20e`), all in all. The
    steps that are added are warmed up and decay as a run of their own, unless `schedule` is constant."""
    ends: tuple[int, ...] | None = field(default=None, metadata=knobs.FILE_ONLY)
    """The steps at which the run was finished before it was extended, the first first; null for none."""
    batch_size: knobs.PositiveInt = 2048
    """Images per optimiser step over all devices and accumulation steps."""
    accumulate: knobs.PositiveInt | Literal["auto"] = 1
    """Split every device's share of the batch into this many passes, whose losses are averaged, to save memory; auto:
    as few as fit, by the memory that a few images take."""
    checkpoint_activations: Literal["auto", "on", "off"] = "auto"
    """Compute the activations of blocks again in the backward pass, to save memory for a third more time; auto: where
    they do not fit otherwise. Does not change the result."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the passes of training by torch.compile, which rounds otherwise; auto: where the run is long enough for
    it, and a rehearsal shows that its steps get faster."""

    lr: knobs.PositiveFloat = 1.5e-3
    """Peak learning rate at a batch of `lr_batch_size`."""
    lr_batch_size: knobs.PositiveInt = 2048
    """The batch that `lr` is meant for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate follows the batch size away from `lr_batch_size`."""
    schedule: Literal["decay", "constant"] = "decay"
    """decay: the learning rate falls from its peak on, along half a cosine (segmentation: a polynomial); constant: in
    the last tenth of the run alone, whatever `lr_steps` is. The state before that is kept, from which `extend_to`
    goes on without a seam."""
    min_lr: knobs.NonNegativeFloat = 1e-5
    """Learning rate at the end of the run, scaled like `lr`."""
    lr_steps: knobs.PositiveInt | knobs.PositiveFloat = 1.0
    """Steps, or a share of the run up to 1, over which the learning rate falls to `min_lr`."""
    warmup_epochs: knobs.NonNegativeFloat | None = 10.0
    """Linear warm-up from 0 in epochs, at most a fifth of the run. Excludes `warmup_steps`."""
    warmup_steps: knobs.NonNegativeInt | knobs.NonNegativeFloat | None = None
    """Linear warm-up in steps or a share of the run; a fifth of a run without more. Excludes `warmup_epochs`."""
    weight_decay: knobs.NonNegativeFloat = 0.05
    """AdamW weight decay; biases, norms, class token and position embeddings have none."""
    beta1: knobs.ShareBelowOne = 0.9
    """AdamW first moment."""
    beta2: knobs.ShareBelowOne = 0.999
    """AdamW second moment."""
    clip_grad: knobs.PositiveFloat | None = None
    """Largest norm of the gradient; null for no clipping."""
    ema_decay: knobs.ShareBelowOne | None = None
    """Decay of the moving average of the weights, reached as min(decay, (1 + t) / (10 + t)); null for none."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Stop at a loss or gradient that is not finite, or skip that step."""

    timeout: str = "5m"
    """Give up on a file, a loader process or another device that is silent for so long (`90s`, `5m`)."""

    save_every: str = "10m"
    """Save a state to resume from every so many steps (`500`) or minutes (`10m`)."""
    keep: knobs.PositiveInt = 2
    """States to keep."""
    log_every: knobs.PositiveInt = 50
    """Steps between lines of metrics.jsonl."""
    evaluations: knobs.PositiveInt = 10
    """Evaluations on `val` (held-back images where the data has none) over the run, the last one included."""
    eval_images: knobs.PositiveInt = 50_000
    """Images of `val` to evaluate on, at most; a `test` is judged whole, once, at the end."""
    tensorboard: bool = False
    """Also log to TensorBoard, in the run directory (needs `pip install beit[tensorboard]`)."""
    wandb: str | None = None
    """Also log to this Weights & Biases project (needs `pip install beit[wandb]`)."""

    def __new__(cls, **typed: Any) -> Self:
        # None where that is the default says nothing.
        said = {name: value for name, value in typed.items() if not value is getattr(cls, name, 0) is None}
        return super().__new__(cls).as_typed(said)

    def as_typed(self, typed: Mapping[str, Any]) -> Self:
        """This configuration, of which a user gave `typed`."""
        object.__setattr__(self, "_typed", dict(typed))
        return self

    @property
    def typed(self) -> dict[str, Any]:
        """What a user gave, by name; the rest comes from a preset, a choice, or the defaults."""
        return dict(self.__dict__["_typed"])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.save_interval()
        self.budget_seconds()
        self.extended(0, 0)
        for name in ("init", "tokenizer", "teacher"):
            # --overwrite would delete a model that lies in the run.
            out, read = Path(self.out).resolve(), Path(getattr(self, name, None) or os.devnull).resolve()
            lies_in_it = read == out or any(read.is_relative_to(out / place) for place in ("model", "model-best"))
            require(not lies_in_it, f"--out is the run of {knobs.flag_of(name)}; choose another folder")
        if self.preset is None:
            self.check()

    def check(self) -> None:
        """UserError where values do not fit one another."""
        one_length = [self.steps, self.epochs, self.budget].count(None) == 2
        require(one_length, "give the length of the run as either --epochs or --steps, or give its --budget")

    def budget_seconds(self) -> float | None:
        """`budget` in seconds."""
        return None if self.budget is None else seconds_of(self.budget)

    @property
    def passes(self) -> int:
        """`accumulate` as a number: 1 until it is chosen."""
        return 1 if self.accumulate == "auto" else self.accumulate

    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return seconds_of(self.timeout, "--timeout")

    def save_interval(self) -> tuple[int | None, float | None]:
        """`save_every` as (steps, None) or (None, minutes)."""
        number, unit = _quantity(self.save_every, "m")
        require(number > 0, f"--save-every {self.save_every} is neither steps (500) nor minutes (10m)")
        return (None, number) if unit else (int(number), None)

    def idle(self) -> Mapping[str, Collection[str]]:
        """The knobs without effect, by the choice that makes them so."""
        return {}

    def refuse_idle(self, typed: Collection[str]) -> None:
        """UserError where a knob that was `typed`, and not left to a preset, has no effect."""
        values = {name: getattr(self, name) for name in typed}
        for choice, names in self.idle().items():
            for name in self.changed(names, values):
                raise UserError(f"{choice} has no use for {knobs.flag_of(name)}; drop it")

    @classmethod
    def changed(cls, names: Collection[str], values: Mapping[str, Any]) -> list[str]:
        """The knobs in `names` that `values` gives, and not as they are by default."""
        defaults = knobs.defaults_of(cls)
        return sorted(name for name in {*names}.intersection(values) if values[name] != defaults[name])

    def num_steps(self, images: int) -> int:
        """Optimiser steps of a run on so many images."""
        return self.steps or max(1, self._steps_of(self.epochs or 0, images))

    def extended(self, first: int, images: int) -> int:
        """The steps of a run of `first` steps with those that `extend_to` adds."""
        if self.extend_to is None:
            return first
        number, unit = _quantity(self.extend_to, "e")
        require(number > 0, f"--extend-to {self.extend_to} is neither steps (2000) nor epochs (20e)")
        steps = self._steps_of(number, images) if unit else int(number)
        done = max(first, *(self.ends or (0,)))
        is_more = steps > done or images == 0
        asked = f"--extend-to {self.extend_to} is {knobs.counted(steps, 'step')}"
        require(is_more, f"{asked}, and the run has {done:,}; ask for more")
        return steps

    def num_warmup_steps(self, steps: int, images: int) -> int:
        """How many of `steps` are linear warm-up: never all, where a recipe for a long run is cut short."""
        warmup = self.warmup_steps
        if warmup is None:
            return min(self._steps_of(self.warmup_epochs or 0, images), steps // 5)
        if 0 < warmup < 1:
            return round(warmup * steps)
        return int(warmup) if warmup < steps else steps // 5

    def _steps_of(self, epochs: float, images: int) -> int:
        """Steps that show every image `epochs` times; the loader's stream drops none at an epoch's end."""
        return round(epochs * images / self.batch_size)

    def in_steps(self, length: int | float, steps_of_run: int) -> int:
        """A schedule's `length` in steps, where one up to 1 is a share of the run."""
        return max(1, round(length * steps_of_run)) if length <= 1 else round(length)

    def scaled(self, lr: float) -> float:
        """`lr` at this run's batch size."""
        ratio = self.batch_size / self.lr_batch_size
        return lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[self.lr_scaling]
