"""Verbs that train nothing themselves: they are made of those that do, look data over, or use what was trained."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

import beit.config.values as knobs
from beit.config.errors import require
from beit.config.run import DataConfig, DecodingConfig, DevicesConfig, MachineConfig, RanksConfig, seconds_of
from beit.config.run import Outcome as Outcome


@dataclass(frozen=True, kw_only=True)
class JourneyConfig(DevicesConfig, DataConfig):
    """What `beit train` and `beit plan` share."""

    data: str | tuple[str, ...]
    """Folders of images, as of the other verbs. With one folder for each class, or a file of labels, a classifier is
    trained; with label maps (`--label-maps`, or `images/` and `annotations/`) a segmenter; else an encoder alone."""
    task: Literal["auto", "classify", "segment", "none"] = "auto"
    """What to teach the encoder after pre-training; auto: what the data has labels for; none: nothing."""
    budget: str = "1h"
    """Time for all of it (`30m`, `2h`): from the first look at the images to the report."""
    init: str | None = None
    """Leave pre-training out and start from this run or model, ours or not (as SOURCE of `beit convert`)."""
    scratch: bool = True
    """Also train the same network from scratch, on the same labels for the same steps, to see what pre-training is
    worth."""
    label_share: knobs.PositiveShare | None = None
    """Learn from this share of the labels alone: a seeded choice, the same share of each class."""
    labels_per_class: knobs.PositiveInt | None = None
    """Learn from this many labels of each class alone: a seeded choice."""
    multilabel: bool = False
    """An image may have several classes, or none, which a file of labels says."""
    reduce_zero_label: bool = False
    """Value 0 of a label map is to be ignored, and value 1 is the first class (ADE20K's convention)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        seconds_of(self.budget)

    def shared_with(self, config_type: type) -> dict[str, Any]:
        """The values, other than defaults, of the knobs that a verb's configuration has as well."""
        names = {knob.name for knob in fields(config_type)} - {"init", "budget", "out"}
        defaults = {**dict.fromkeys(names, MISSING), **knobs.defaults_of(self)}
        return {name: value for name, value in vars(self).items() if name in names and value != defaults[name]}

    def flags(self) -> list[str]:
        """What was said of images and task, as words of a command."""
        said = {"data": self.data} | self.shared_with(JourneyConfig) | ({"init": self.init} if self.init else {})
        words: list[str] = []
        for name, value in said.items():
            values = () if isinstance(value, bool) else value if isinstance(value, tuple) else (value,)
            words += [knobs.flag_of(f"no_{name}" if value is False else name), *map(str, values)]
        return words


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JourneyConfig):
    """From images to a model in one command: tokenizer, pre-training, and a classifier or segmenter, from the
    pre-trained encoder and from scratch beside it. The same command continues it."""

    out: str
    """Folder for the runs of all parts and the report. The same command on it continues what is there."""
    parts: dict[str, dict[str, Any]] | None = field(default=None, metadata=knobs.FILE_ONLY)
    """Every knob of every part, as OUT/config.yaml has them; null: chosen."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(JourneyConfig):
    """What `beit train` would do with these images on this machine: the commands, sizes and times, and what to
    expect. Nothing is written."""

    out: str = "runs/mine"
    """The folder that the commands name for their runs."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RanksConfig, DataConfig):
    """Judge a model on images: accuracy, mIoU, reconstruction error, or masked-token loss, as its kind asks."""

    model: str
    """A run or model, ours or not (as SOURCE of `beit convert`); brings classes, image size and normalisation."""
    split: Literal["test", "val", "train", "all"] | None = None
    """Which images; null for `test` where the data has one, else `val`, else those that the model's own run held back
    from the same data, else all."""
    labels: str | None = None
    """For a classifier or a tokenizer: a file of labels as in `beit finetune`; null for one folder per class."""
    tokenizer: str | None = None
    """For a pre-trained model: the tokenizer whose tokens it predicts; null for the one its run names."""
    window: Literal["slide", "whole"] | None = None
    """For a segmenter: overlapping windows, or one pass over each image; null for what it was trained with."""
    multi_scale: bool = False
    """For a segmenter: average over six sizes of each image, from 0.5 to 1.75 but none smaller than a window, and
    their mirror images: some 17 times the work."""
    baseline_images: knobs.PositiveInt = 2048
    """For a pre-trained model: training images that the baselines count tokens on, at most."""
    batch_size: knobs.PositiveInt = 64
    """Images at a time."""
    seed: knobs.NonNegativeInt = 0
    """Seed of the masks, and of the choice that `limit` makes."""
    out: str | None = None
    """A .json file for all figures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.out is None or self.out.endswith(".json"), f"--out {self.out} must end in .json")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RanksConfig, DecodingConfig):
    """What a model makes of images: labels, label maps, tokens, or features, as its kind asks."""

    images: tuple[str, ...]
    """Image files, folders of images at any depth, and tar shards (`shards-{000..099}.tar`)."""
    model: str
    """A run or model, ours or not (as SOURCE of `beit convert`); brings labels, image size and normalisation."""
    out: str | None = None
    """File for the results: .csv or .jsonl for labels, .jsonl or .npz for tokens, .npz for features; for label maps
    a folder, which gets `maps/`, `overlays/` and classes.tsv."""
    overlays: bool = True
    """For a segmenter: also write every image under the colours of its classes."""
    window: Literal["slide", "whole"] | None = None
    """For a segmenter: see images in overlapping windows, or in one pass; null as in training."""
    top_k: knobs.PositiveInt = 5
    """Labels of each image, the likeliest first."""
    features: bool = False
    """Features of the encoder, also of a classifier or segmenter."""
    layer: int | None = None
    """Block whose features are written (0 the first, -1 the last); null for the last."""
    batch_size: knobs.PositiveInt = 64
    """Images at a time."""

    def __post_init__(self) -> None:
        knobs.check_limits(self)
        require(bool(self.images), "--images names nothing; give image files or folders")


@dataclass(frozen=True, kw_only=True)
class SuggestConfig(MachineConfig):
    """Which images to label next: those that stand for many others in the features of a model, and where it is a
    classifier half of them those that it is least sure of."""

    images: tuple[str, ...]
    """Image files, folders of images at any depth, and tar shards."""
    model: str
    """A run or model with an encoder: pre-trained, a classifier, or a run of `beit train`."""
    number: knobs.PositiveInt = 50
    """How many."""
    labels: str | None = None
    """File of the labels that are there already: its images are not suggested again."""
    out: str = "to-label.csv"
    """The file to fill in, which `--labels` of the other verbs reads; a page with the pictures is put beside it."""
    seed: knobs.NonNegativeInt = 0
    """Seed of the choice."""

    def __post_init__(self) -> None:
        knobs.check_limits(self)
        require(self.out.endswith(".csv"), f"--out {self.out} must end in .csv")


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Say what a run or a model is, and where a run stands."""

    path: str
    """A run or model, ours or not (as SOURCE of `beit convert`)."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole story on built-in images: tokenizer, pre-training, fine-tuning, segmentation, report."""

    out: str = "demo"
    """Folder for the demo's runs and its report.html."""
    seed: int = 0
    """Seed of everything random."""
    scale: knobs.PositiveFloat = 1.0
    """Lengthen or shorten every training; 1 takes a few minutes on 2 CPU cores."""

    overwrite: bool = False
    """Delete the demo's runs in `out` and start afresh."""

    def __post_init__(self) -> None:
        knobs.check_limits(self)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataConfig):
    """Look a data set over before anything is trained: what it is taken for, counts, sizes, channels, label maps,
    broken files, duplicates, images that look alike, and which verbs will take it."""

    html: str | None = None
    """Also write all of it to this page, with pictures."""

    workers: knobs.NonNegativeInt | Literal["auto"] = "auto"
    """Processes that read images."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write one offline HTML page about one or several runs."""

    runs: tuple[str, ...]
    """Run directories; several are set side by side."""
    out: str | None = None
    """The page; by default report.html in the (first) run."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(MachineConfig):
    """What this machine does, stage by stage, in a minute or two: images a second, the share of its own rate of
    matrix products, memory, waiting for data, and how long the recipes would take."""

    encoder: Literal["tiny", "small", "base", "large"] = "base"
    """A network of `beit presets pretrain`, by its width and depth."""
    image_size: knobs.PositiveInt = 224
    """Side of the images in pixels."""
    patch_size: knobs.PositiveInt = 16
    """Side of a patch in pixels."""
    batch_size: knobs.PositiveInt = 8
    """Images of a step, two at least; a quarter of them in segmentation, but no less than two."""
    seconds: knobs.PositiveFloat = 3.0
    """Time for each stage; one step after the first takes place in any case."""
    json: str | None = None
    """A .json file for all figures."""

    def __post_init__(self) -> None:
        knobs.check_limits(self)
        require(self.batch_size > 1, "--batch-size 1 is too few for batch norms; give 2 or more")
        require(self.json is None or self.json.endswith(".json"), f"--json {self.json} must end in .json")


@dataclass(frozen=True, kw_only=True)
class PresetsConfig:
    """List recipes and released models by name, with their sources."""

    verb: Literal["tokenizer", "pretrain", "finetune", "segment", "probe", "models"] | None = None
    """The command whose recipes are listed, or `models` for the released ones; null for all of them."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write a model in the format of another library: SOURCE DESTINATION --to FORMAT."""

    source: str
    """A run, a model/ folder, weights of another library (file, folder, hf://owner/name), told by their contents, or
    a released model by name (`beit presets`). PATH@num_heads=6,grid=24x16 says what a file cannot tell."""
    destination: str
    """The file (unilm) or folder (all others) to write; it must not exist."""
    to: Literal["beit", "unilm", "timm", "huggingface", "dalle"]
    """The format to write."""
