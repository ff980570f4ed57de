"""The parts of a journey, ordinary runs of the verbs, and how its time is divided among them."""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

from beit.checkpoints.store import load_tokenizer, save_model
from beit.config.errors import UserError
from beit.config.files import fields_of
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.run import TrainingConfig, seconds_of
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import PatchKMeansConfig, TokenizerConfig
from beit.config.use import CheckConfig, JourneyConfig, Outcome
from beit.config.values import counted, flag_of
from beit.data.base import Source
from beit.data.label_file import read_label_rows
from beit.data.label_maps.pairs import IMAGES, names_beside
from beit.data.label_maps.table import is_none
from beit.data.sources.listing import list_maps
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import Subset
from beit.presets import NETWORK, Values, task_network
from beit.presets.auto import shown
from beit.presets.trials import FETCHED, FEW_IMAGES, RELEASED, prospect
from beit.recipes.check.report import flattery
from beit.recipes.check.run import inspect
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.segment import segment
from beit.recipes.tokenizer.run import VIEWS, tokenizer
from beit.stages.announcement import part_of_journey
from beit.stages.auto.choices import SAMPLE, median_side, rate_of, settle
from beit.stages.scores.tokens import BANK
from beit.stages.session import Images, holdout_of, open_data, open_session
from beit.tokenizers.kmeans import PatchKMeans
from beit.training.console import duration
from beit.training.device import choose_precision

RESERVE, BESIDE = 0.03, 10.0
"""Share of a budget that is left free, and seconds of each part that no rehearsal sees: its start, the last images,
and what stands beside its score."""
CHECKED = 10_000
"""Up to so many images are looked through for those that look alike."""
PRETRAINING = {"classifier": 0.7, "segmenter": 0.5, None: 1.0}
"""Share of the time for pre-training, and for the task once; its training from scratch comes on top of both."""

VERBS: Mapping[str, tuple[type[TrainingConfig], Callable[..., Outcome]]] = {
    "tokenizer": (TokenizerConfig, tokenizer),
    "pretrain": (PretrainConfig, pretrain),
    "classifier": (FinetuneConfig, finetune),
    "segmenter": (SegmentConfig, segment),
}
"""The parts in their order; `scratch`, the task without pre-training, comes after it."""
TYPES = {name: config_type for name, (config_type, _) in VERBS.items()}
TASKS = {"classify": "classifier", "segment": "segmenter", "none": None}
STARTS = {
    "pretrain": ("tokenizer", "tokenizer"),
    "classifier": ("init", "pretrain"),
    "segmenter": ("init", "pretrain"),
}
"""Which knob of a part names the run of which other."""


class Part(NamedTuple):
    """One run of a journey."""

    name: str
    """Of its folder."""
    config: TrainingConfig
    seconds: float = 0.0
    """What it is expected to take."""
    judged: int = 0
    """Labelled images that it is judged on."""

    def run(self, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
        mark = part_of_journey.set(True)
        try:
            return dict(VERBS.values())[type(self.config)](self.config, dry_run=dry_run, overwrite=overwrite)
        finally:
            part_of_journey.reset(mark)

    def plan(self) -> "Part":
        """This part with every value of its configuration, and the time that it takes here, by a rehearsal."""
        with contextlib.redirect_stdout(io.StringIO()):
            outcome = self.run(dry_run=True, overwrite=True)  # whatever lies there
        return Part(self.name, outcome.config, outcome.seconds or 0.0, outcome.results.get("judged", 0))


class Journey(NamedTuple):
    """What a journey is made for, and where."""

    config: JourneyConfig
    task: str | None
    """`classifier`, `segmenter` or None."""
    folder: Path
    images: Source
    """Those to train on, with labels where a folder stands for a class."""

    def words(self) -> list[str]:
        """What to expect, and what to try first."""
        config, images = self.config, self.images
        count, classes = len(images), len(images.classes or ())
        labels = len(read_label_rows(Path(config.labels))) if config.labels else count
        labels = len(list_maps(config.label_maps).members) if config.label_maps else labels
        labels = round(min(labels, (config.labels_per_class or count) * classes or count) * (config.label_share or 1))
        asked = self.task, count, labels, median_side(images), seconds_of(config.budget) / 60
        lines = [f"expect: {prospect(*asked)}"]
        if self.task == "segmenter" and not config.reduce_zero_label:
            zero = names_beside(config, holdout_of(config).cache)[1].get(0, "")
            if is_none(zero):
                lines.append(f"0 in a label map is called '{zero}', and learned; --reduce-zero-label ignores it")
        if self.task and config.init is None and count <= FEW_IMAGES:
            lines.append(f"few images teach little; try a released encoder first: --init {RELEASED} ({FETCHED})")
        return lines

    def warnings(self) -> list[str]:
        """What `beit check` says that flatters a score, of images that it takes seconds to read."""
        is_checked = self.task is not None and len(self.images) <= CHECKED
        return flattery(inspect(CheckConfig(**self.config.shared_with(CheckConfig)))) if is_checked else []

    def part(self, name: str, config_type: type[TrainingConfig] | None = None, **values: Any) -> Part:
        """A part with what was said of the journey, and `values` over it."""
        config_type = config_type or TYPES[name]
        if name in STARTS:
            knob, other = STARTS[name]
            values = {**values, knob: self.config.init or str(self.folder / other)}
        config = config_type(**{**self.config.shared_with(config_type), "out": str(self.folder / name), **values})
        return Part(name, config)

    def network(self, seconds: float) -> tuple[PretrainConfig, float]:
        """Pre-training in so many seconds, with every value but the steps; and multiply-adds a second here."""
        config = self.part("pretrain", budget=f"{max(1.0, seconds):.0f}s").config
        session = open_session("pretrain", cast(PretrainConfig, config), dry_run=True, overwrite=True)
        assert session is not None, "it begins afresh"
        images = Images(self.images, Subset(self.images, []))
        rate = rate_of(session.compute, choose_precision(session.config.precision, session.compute.device))
        return settle(session, images, load_tokenizer(str(session.config.tokenizer)))[1], rate


def begin(config: JourneyConfig, folder: Path) -> Journey:
    """The journey that the images of `config.data` allow. UserError where what is asked for is not for them."""
    found, images = _labeled_images(config)
    task = found if config.task == "auto" else TASKS[config.task]
    few = [name for name in ("label_share", "labels_per_class") if getattr(config, name) is not None]
    if few and task != "classifier":
        raise UserError(f"{flag_of(few[0])} is for a classifier; give --labels or one folder for each class")
    if task is None and config.init is not None:
        raise UserError(f"--init {config.init} leaves nothing to train without a task; give --labels, or drop --init")
    return Journey(config, task, folder, images)


def _labeled_images(config: JourneyConfig) -> tuple[str | None, Source]:
    """What the images have labels for, and those to train on."""
    opened = open_data(config, open_splits, holdout_of(config))
    images = opened["train" if "train" in opened else next(iter(opened))]
    if config.label_maps or any(source.key(0).startswith(IMAGES) for source in opened.values() if len(source)):
        return "segmenter", images
    if config.labels is None:
        with contextlib.suppress(UserError):
            labeled = open_data(config, partial(open_splits, labeled=True), holdout_of(config))["train"]
            if len(labeled.classes or ()) > 1:
                return "classifier", labeled
    return (None if config.labels is None else "classifier"), images


def planned(config: JourneyConfig) -> list[Part]:
    """The parts that a journey would have; nothing is written or said."""
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return choose_parts(begin(config, Path(folder)), imagined_tokenizer)


def choose_parts(journey: Journey, make: Callable[[Journey], Part]) -> list[Part]:
    """All parts with every value, within the budget. The steps come from rehearsals of seconds, and the tokens from
    the tokenizer that `make` leaves: nothing else is written."""
    config, task = journey.config, journey.task
    trainings, share = 2 if config.scratch and task else 1, PRETRAINING[task]
    ends = time.monotonic() + (1 - RESERVE) * seconds_of(config.budget) - BESIDE * (1 + trainings)

    def plan(name: str, seconds: float, config_type: type[TrainingConfig] | None = None, **typed: Any) -> Part:
        return journey.part(name, config_type, budget=f"{max(1.0, seconds):.0f}s", **typed).plan()

    def left() -> float:
        return ends - time.monotonic()

    if config.init is not None:
        assert task is not None, "an encoder that is given and taught nothing is no journey"
        return [plan(task, left())]
    began, tokens = time.monotonic(), make(journey)
    ends -= tokens.seconds - (time.monotonic() - began)  # where it was not made, but will be
    if task is None:
        return [tokens, plan("pretrain", left())]
    unit = left() / (share + (1 - share) * trainings)
    network, rate = journey.network(share * unit)
    start = task_network(dataclasses.asdict(network), TYPES[task])
    encoder, work = network.architecture(), (1 - share) * unit * rate
    as_shown = partial(shown, size=encoder.image_size, patch=encoder.patch_size, work=work)
    crop: Values = as_shown(median_side(journey.images)) if task == "segmenter" else {}
    alone = plan("scratch", (1 - share) * unit, TYPES[task], from_scratch=True, **{**start, **crop})
    # The same recipe from the encoder that is not there yet.
    own = {**dict.fromkeys(start), "init_scheme": start["init_scheme"], "from_scratch": False, **crop}
    taught = journey.part(task, **{**own_values(alone.config), **own})._replace(seconds=alone.seconds)
    typed = {name: getattr(network, name) for name in (*NETWORK, "image_size")}
    last = plan("pretrain", left() - trainings * alone.seconds, **typed)
    return [tokens, last, taught, *([alone] if config.scratch else [])]


def fit_task(journey: Journey, parts: dict[str, Any], seconds: float, say: Callable[..., None]) -> dict[str, Any]:
    """`parts`, of which the task's have the steps that fit into so many seconds, and half of the planned ones at
    least, which is said. For what was planned in seconds, pre-training may have taken more, or less."""
    task = journey.task or ""
    tasks, planned = [name for name in (task, "scratch") if name in parts], parts[task]["steps"]
    each = f"{max(1.0, seconds / len(tasks) - BESIDE):.0f}s"
    fitting = journey.part(task, **{**parts[task], "steps": None, "budget": each}).plan().config
    steps = max(fitting.steps or 0, planned // 2)
    changed = {name: {**parts[name], "steps": steps, "evaluations": fitting.evaluations} for name in tasks}
    if steps != planned:
        say(f"{counted(steps, 'step')} instead of the {planned:,} of the plan: {duration(seconds)} are left\n")
    return {**parts, **changed}


def made_tokenizer(journey: Journey, *, overwrite: bool) -> Part:
    """The tokenizer, which is there from now on."""
    began, part = time.monotonic(), journey.part("tokenizer")
    config = part.run(overwrite=overwrite).config
    return Part(part.name, config, time.monotonic() - began)


def imagined_tokenizer(journey: Journey) -> Part:
    """What it will be, one in its place whose tokens say nothing, and its time: that of decoding what it looks at."""
    began = time.monotonic()
    median_side(journey.images)
    an_image, part = (time.monotonic() - began) / SAMPLE, journey.part("tokenizer").plan()
    architecture = cast(TokenizerConfig, part.config).architecture()
    save_model(PatchKMeans(cast(PatchKMeansConfig, architecture)), Path(part.config.out), provenance={})
    return part._replace(seconds=BESIDE + (VIEWS + 2 * min(BANK, len(journey.images))) * an_image)


# ------------------------------------------------------------------------------------------------------------
# Parts in a file


def restored(journey: Journey, values: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """The parts of OUT/config.yaml. UserError for a part that is none, or a value that is none of it."""
    parts = []
    for name, fields in values.items():
        config_type = TYPES.get((journey.task or "") if name == "scratch" else name)
        if config_type is None:
            raise UserError(f"parts: {name!r} is no part of this journey; give one of {', '.join(TYPES)} or scratch")
        known = fields_of(fields, config_type, f"parts: {name}")
        if unknown := fields.keys() - known.keys():
            raise UserError(f"parts: {name} has no {sorted(unknown)[0]!r}")
        parts.append(journey.part(name, config_type, **known))
    return parts


def own_values(config: TrainingConfig) -> dict[str, Any]:
    """The knobs of a part that are its own, as OUT/config.yaml has them: neither those of the whole journey, nor the
    run that it starts from."""
    values = dataclasses.asdict(config)
    common = {field.name for field in dataclasses.fields(JourneyConfig)} - {"init"}
    apart = {"out", *(knob for knob, _ in STARTS.values())}
    return {name: value for name, value in values.items() if name not in common | apart}
