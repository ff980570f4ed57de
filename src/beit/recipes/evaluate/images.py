"""Which images of the data a model is judged on."""

from dataclasses import replace
from typing import Literal, NamedTuple

from beit.config.errors import require
from beit.config.use import EvaluateConfig
from beit.config.values import counted
from beit.data.base import SPLITS, Source, Split
from beit.data.sources.holdout import Holdout
from beit.data.sources.opening import open_splits
from beit.data.sources.subsets import Concatenation, limited
from beit.stages.overlap import count_trained_on, held_back_of
from beit.stages.session import OpenSplits, holdout_of, open_data


class Judged(NamedTuple):
    """Images, and the split that they are."""

    split: Split | Literal["all"]
    source: Source


def judged_images(config: EvaluateConfig, opener: OpenSplits = open_splits, *, labeled: bool = False) -> Judged:
    """The images of `config.split`, or of the one that the data have; a note says which. Those of several splits must
    agree on their classes where they are `labeled`."""
    holdout = holdout_to_judge(config)
    splits = open_data(config, opener, holdout)
    chosen: list[Split] = [name for name in ("test", "val") if name in splits]
    split: Split | Literal["all"] = config.split or (chosen[0] if chosen else "all")
    names = [name for name in SPLITS if name in splits and split in (name, "all")]
    choice = " or ".join(f"--split {name}" for name in splits)
    require(bool(names), f"--data {', '.join(config.sources)} has no {split} images; choose {choice}")
    sources = [limited(splits[name], config.limit, config.seed) for name in names]
    source = sources[0] if len(sources) == 1 else Concatenation(sources, labeled)
    is_all = split == "all" and config.split is None
    source.notes.insert(0, f"judged on {'all images: the data have no test and no val' if is_all else split}")
    if count := count_trained_on(config.model, source):
        source.notes.insert(1, f"the model was trained on {count:,} of these {counted(len(source), 'image')}")
    return Judged(split, source)


def holdout_to_judge(config: EvaluateConfig) -> Holdout:
    """What takes the place of `val`: what is asked for, else what the model's own run held back, if it is among the
    images; else what training would hold back, or nothing where no split is named."""
    holdout = holdout_of(config)
    if config.holdout is not None or config.eval_data is not None:
        return holdout
    holdout = replace(holdout, listed=held_back_of(config.model))
    return replace(holdout, share=0) if config.split is None else holdout
