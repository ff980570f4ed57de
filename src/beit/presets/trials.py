"""What was measured: by how much seeds of a recipe differed, and what journeys came to (docs/results.md)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SPREADS: Mapping[tuple[Any, ...], float] = {
    ("finetune", "tiny", 625, None): 0.008,
    ("finetune", "small-data", 188, None): 0.098,
    ("segment", "camvid", 1101, "upernet"): 0.002,
    ("segment", "camvid", 1101, "pup"): 0.032,
    ("segment", "camvid", 459, "upernet"): 0.004,
    ("segment", "camvid", 459, "pup"): 0.023,
}
"""By verb, preset, steps and decoder: the largest difference of the scores of two seeds, pre-trained or from scratch,
as a share (docs/results.md)."""


def seed_spread(verb: str, config: Mapping[str, Any]) -> float | None:
    """That of the recipe in a config.yaml; None where no trial had its steps."""
    return SPREADS.get((verb, *(config.get(name) for name in ("preset", "steps", "decoder"))))


class Trial(NamedTuple):
    """A journey that was made."""

    task: str
    images: int
    labels: int
    side: float
    """Median of the images' shorter sides in pixels."""
    minutes: float
    lowest: float
    highest: float
    """Of the scores of its runs, in percent."""


TRIALS = (
    Trial("classifier", 47_500, 4_750, 32, 63, 67.9, 68.2),
    Trial("classifier", 47_500, 475, 32, 63, 53.8, 54.4),
    Trial("classifier", 47_500, 4_750, 32, 14, 53.3, 54.3),
    Trial("classifier", 1_422, 201, 224, 69, 58.2, 61.4),
    Trial("classifier", 644, 200, 230, 30, 56.7, 62.0),
    Trial("segmenter", 1_422, 367, 360, 71, 34.5, 34.6),
    Trial("segmenter", 294, 294, 360, 60, 37.4, 38.9),
)
"""On small CPUs: CIFAR-10 of ten classes, flowers of five, CamVid with eleven."""
FEW_IMAGES = 5_000
"""Up to so many images a released encoder is the first advice."""
RELEASED = "beit_base_patch16_224_pt22k"
FETCHED = "0.4 GB, fetched once; on a machine without a network give its file"
"""What having it takes."""


def prospect(task: str | None, images: int, labels: int, side: float, minutes: float) -> str:
    """What a journey may come to: the scores of those whose numbers are within half and twice of these."""
    ours = images, labels, side, minutes
    made = [trial for trial in TRIALS if trial.task == task]
    alike = [x for x in made if all(0.5 <= a / b <= 2 for a, b in zip(ours, x[1:5], strict=True))]
    if not alike:
        return "not known: no journey like it was measured"
    score = "mean IoU" if task == "segmenter" else "right answers"
    lowest, highest = min(x.lowest for x in alike), max(x.highest for x in alike)
    return f"{lowest:g} to {highest:g} % {score}, as measured on other images (docs/results.md)"
