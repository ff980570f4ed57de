"""A training verb on this machine, before anything is written: its configuration, its ranks, its images and their
labels."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from beit.checkpoints.own import is_own, load_own, read_description
from beit.checkpoints.reference import PARTS, part_of
from beit.config.errors import UserError, require
from beit.config.files import fields_of, read_record
from beit.config.run import AdaptsChannels, DataConfig, DecodingConfig, TrainingConfig
from beit.config.run import Outcome as Outcome
from beit.config.values import defaults_of
from beit.data.base import Source, Splits
from beit.data.decode import Decoding
from beit.data.loaders import View
from beit.data.sources.cache import ImageCache
from beit.data.sources.holdout import Holdout, without_copies
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import Subset, limited
from beit.pixels import Limits
from beit.presets import AUTO, NOTHING_KNOWN, Choice, Facts, resolve
from beit.training.console import Console, track
from beit.training.device import Compute, open_compute
from beit.training.plan import Pace, Plan
from beit.training.run.directory import CONFIG, LISTING, RESULTS, Request
from beit.training.run.opening import stored_run
from beit.training.run.trackers import require_trackers
from beit.untrusted import read_json

Config = TypeVar("Config", bound=TrainingConfig)

PLAIN_PIXELS: dict[str, Any] = {"channels": 3, "bits": 8, "value_range": None}
"""What images are where nobody says anything."""


class Session(NamedTuple, Generic[Config]):
    """One start of a training verb."""

    verb: str
    config: Config
    compute: Compute
    console: Console
    dry_run: bool
    overwrite: bool
    began: float
    """By :func:`time.monotonic`."""
    choices: tuple[Choice, ...] = ()
    """What was chosen in this start, with reasons."""
    budget: str | None = None
    """The time that the steps were chosen for."""
    facts: Facts = NOTHING_KNOWN
    """What is known of the model that `--init` names."""
    pace: Pace | None = None
    """What a rehearsal found."""
    memory: float = 0.0
    """Bytes that training takes on each device, besides torch itself; 0 where that is not known."""

    @property
    def has_begun(self) -> bool:
        """Whether the run that this start continues was meant before."""
        return not self.overwrite and Path(self.config.out, CONFIG).exists()

    def expected_seconds(self, plan: Plan) -> float | None:
        """What the whole run will take, its start included, where a rehearsal told; the same on all ranks."""
        left = self.pace and sum(self.pace.left(plan))
        return self.compute.from_main(lambda: None if left is None else time.monotonic() - self.began + left)


def finished(config: TrainingConfig) -> Outcome:
    """That of a run that was finished before."""
    stored, _ = read_record(Path(config.out) / CONFIG, type(config))
    config = type(config)(**{**stored, "preset": None, "out": config.out})
    return Outcome(config, read_json(Path(config.out) / RESULTS) or {})


def open_session(verb: str, config: Config, *, dry_run: bool, overwrite: bool) -> Session[Config] | None:
    """Join the other ranks; None, after saying so, where the run is finished. Its data need not be there any more.

    The configuration of the session is that of the run where it has begun. Of a new run with `--preset auto` it is as
    it was typed, until :func:`beit.stages.auto.choices.settle` has chosen.
    """
    began = time.monotonic()
    # The part that is meant, wherever a run of `beit train` is named.
    starts: dict[str, Any] = _starts(config)
    typed = config.typed | {name: start for name, start in starts.items() if name in config.typed}
    config = dataclasses.replace(config, **starts).as_typed(typed)
    facts = NOTHING_KNOWN
    if (init := getattr(config, "init", None)) is not None:
        from beit.stages.network import facts_of_start

        # What a finished run began with need not be there any more; what learns from it says so.
        with suppress(UserError):
            facts = facts_of_start(config, init)
    # Auto chooses for nothing known, to see what does not fit before anything is opened.
    resolved, _ = resolve(config, facts)
    stored = None if overwrite else stored_run(config.out, run_request(verb, resolved))
    to_extend = stored is not None or resolved.extend_to is None
    require(to_extend, f"--extend-to goes on with a finished run, and --out {config.out} holds none; drop it")
    if stored is not None and stored.status.get("state") == "done":
        # One whose model is gone or damaged goes on, and makes it again from its last state.
        with suppress(UserError):
            load_own(Path(config.out))
            console = Console(os.environ.get("RANK", "0") == "0")
            console.say(f"{config.out} is finished; nothing to do (--overwrite starts afresh)")
            return None
    if stored is not None:
        values = fields_of(stored.config, type(config), f"{config.out}/config.yaml")
        values["pixels"] = values.get("pixels") or PLAIN_PIXELS  # which releases before had alone
        config = type(config)(**{**values, "preset": None}).as_typed(config.typed)
    elif config.preset != AUTO:
        config = resolved
    require_trackers(config)
    compute = open_compute(config.device, config.timeout_seconds())
    torch.manual_seed(config.seed)
    console = Console(compute.main)
    return Session(verb, config, compute, console, dry_run, overwrite, began, facts=facts)


def _starts(config: object) -> dict[str, str]:
    """The models that `config` names, by field."""
    named = {name: getattr(config, name, None) for name in PARTS}
    return {name: part_of(value, name) for name, value in named.items() if value is not None}


def run_request(verb: str, config: TrainingConfig, facts: Mapping[str, str] = {}) -> Request:
    """The run that `config`, which has every value, asks for; it also depends on `facts`."""
    defaults = {key: value for key, value in defaults_of(config).items() if key not in ("preset", "budget")}
    name = config.typed.get("preset", AUTO)
    typed = {key: value for key, value in config.typed.items() if (key, value) != ("preset", AUTO)}
    values = {**dataclasses.asdict(config), "preset": None if name == AUTO else name}
    values.pop("budget")
    return Request(verb, values, defaults, facts, typed)


OpenSplits = Callable[..., Splits[Any]]
"""Opens the images of `data` by split; see :func:`beit.data.sources.opening.open_splits`."""


class Images(NamedTuple):
    """What a run learns from, and what it is judged on."""

    train: Source
    held_back: Source
    """What is chosen on: `val`, or what takes its place; empty where none is held back."""
    test: Source | None = None
    """What is judged once, at the end."""
    all_held_back: Source | None = None
    """What `held_back` is a choice of, which nothing is trained on."""
    holdout: Holdout = Holdout()
    """How they were chosen, with what was found out of them."""

    @property
    def fingerprint(self) -> str:
        """Changes when images of any split are added, removed, renamed or changed."""
        return " and ".join(part.fingerprint for part in (self.train, self.held_back, self.test) if part)

    def plan(self, config: TrainingConfig) -> Plan:
        """The timetable of a run on them."""
        return Plan(config, len(self.train))


def open_images(config: TrainingConfig, opener: OpenSplits = open_splits, holdout: Holdout | None = None) -> Images:
    """The images of `config.data`, `holdout` being theirs where they are opened again. Nothing is written yet, so
    that a mistake in the data leaves no trace."""
    holdout = holdout or holdout_of(config)
    splits = open_data(config, opener, holdout)
    names = ", ".join(config.sources)
    mend = "name that folder itself to train on it"
    require("train" in splits, f"--data {names} holds images for evaluation alone; {mend}")
    train, judges = limited(splits["train"], config.limit, config.seed), "val" in splits or config.holdout == 0
    require(judges, f"--data {names} leaves no image for evaluation; add images, or --holdout 0")
    val = splits.get("val") or Subset(train, [])
    test = splits.get("test")
    train = without_copies(train, [val, *([test] if test else [])], holdout.cache)
    require(len(train) > 0, f"--data {names} leaves no image to train on but those to judge on; add others")
    judged = limited(val, config.eval_images, config.seed)
    return Images(train, judged, test, val, holdout)


def open_data(config: DataConfig, opener: OpenSplits, holdout: Holdout) -> Splits[Source]:
    """The images of `config.data` by split."""
    return opener(config.sources, holdout=holdout, decoding=decoding_of(config))


def decoding_of(config: DecodingConfig) -> Decoding:
    """How `config` has files decoded: as the model was trained that is used or started from, else as the run found
    its images, else as they are found to be."""
    stated, channels = config.value_range, config.image_channels
    black, white = stated or (0, 1)
    require(black != white, f"--value-range {black:g} {white:g} has one value for black and white; give two")
    limits = Limits(config.max_megapixels, config.max_gibibytes)
    known = _decoding_of_models(config)
    if known is None and isinstance(config, TrainingConfig) and config.pixels:
        known = decoding_by(config.pixels)._replace(channels=config.pixels["channels"])
    if known is None:
        return Decoding(limits, channels, None, stated)
    fits = channels in (None, known.channels)
    require(fits, f"--image-channels {channels}: the model takes {known.channels}; drop it")
    return known._replace(limits=limits, value_range=stated or known.value_range)


def _decoding_of_models(config: DecodingConfig) -> Decoding | None:
    """What images are to the models that `config` names, by the one that sees most; None where it names none."""
    places = {name: Path(start) for name, start in _starts(config).items()}
    models = {name: decoding_by(read_description(x) if is_own(x) else {}) for name, x in places.items()}
    known = max(models.values(), key=lambda known: (known.bits, bool(known.value_range)), default=None)
    if known is None:
        return None
    # An encoder to go on from takes other channels, a tokenizer or a teacher beside it does not.
    held = [x for name, x in models.items() if name != "init" or not isinstance(config, AdaptsChannels)]
    channels = held[0].channels if held else config.image_channels or known.channels
    # Black and white of one channel after another are of those alone: others are looked at anew.
    if channels != known.channels and len(known.value_range or ()) > 2:
        return known._replace(channels=channels, bits=None, value_range=None)
    return known._replace(channels=channels)


def decoding_by(description: Mapping[str, Any]) -> Decoding:
    """How a model is shown images that has this description; RGB of 8 bits where that does not say."""
    channels, ends = len(description.get("pixel_mean", "RGB")), description.get("value_range")
    return Decoding(channels=channels, bits=description.get("bits") or 8, value_range=ends and tuple(ends))


def holdout_of(config: DataConfig) -> Holdout:
    """What takes the place of `val`, by what a run has found out before."""
    classes_of = None
    if config.labels is not None:
        from beit.data.label_file import classes_in_file

        classes_of = classes_in_file(config.labels)
    elif config.label_maps is not None:
        from beit.data.label_maps.pairs import mapped_in

        classes_of = mapped_in(config.label_maps)
    from beit.data.sources.listing import list_images

    about = [list_images(place).members.digest for place in (config.labels, config.label_maps) if place]
    cache = ImageCache(Path(config.out, LISTING) if isinstance(config, TrainingConfig) else None, about, track)
    return Holdout(config.holdout, config.group_by, classes_of, config.eval_sources, config.layout, cache=cache)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a method is fed: images, and how it views them."""

    images: Images
    view: View
    """An image, its label if they are `labeled`, and a generator -> a training sample."""
    evaluation_view: View
    """The same -> a sample of the evaluation."""
    labeled: bool = False
    """Whether the views take labels."""
    repeats: int = 1
    """Views of an image that stand together in a batch."""
    cycle: int | None = None
    """Epochs after which its views come again."""

    @property
    def judged(self) -> int:
        """Images with a label that the verdict will be of."""
        return len(self.images.test or self.images.held_back) if self.labeled else 0
