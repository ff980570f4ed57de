"""How sure a figure is that was measured on a few images: numpy alone, for whoever reads a run without torch."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Z = 1.959964
"""Of the two-sided 95 % of a normal distribution."""

FIGURES: Mapping[str, Callable[..., float]] = {
    "top1": lambda sums: sums[0] / sums[1],
    "f1": lambda sums: 2 * sums[0] / max(1.0, sums[1] + sums[2]),
    "miou": lambda sums: mean_iou(*sums.reshape(3, -1)),
}
"""A figure of many images by the sum of what is kept of each: right and 1; the classes that are both named and true,
named, and true; or of every class the pixels that are both, true, and predicted."""


def wilson(right: float, count: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a share of `right` among `count` > 0 images (Wilson 1927)."""
    share, z2 = right / count, Z**2 / count
    middle, reach = share + z2 / 2, Z * np.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return float(max(0.0, (middle - reach) / (1 + z2))), float(min(1.0, (middle + reach) / (1 + z2)))


def bootstrap(
    figure: Callable[..., float], *rows: NDArray[np.int64], units: NDArray[np.int64], resamples: int = 2000
) -> tuple[float, float]:
    """The same of `figure` of the sums of `rows`, each (N, K) of the same N images: the percentiles over whole units
    drawn with replacement, of which `units` (N,) has a number for every image (Efron and Tibshirani 1993, ch. 13)."""
    _, unit = np.unique(units, return_inverse=True)
    count, rng = int(unit.max()) + 1, np.random.default_rng(0)
    weights = (np.bincount(rng.integers(count, size=count), minlength=count)[unit] for _ in range(resamples))
    tables = [table.astype(float) for table in rows]
    values = [figure(*(weight @ table for table in tables)) for weight in weights]
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def mean_iou(both: NDArray[np.float64], true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Mean intersection over union of the classes that are there or predicted, of their pixels (C,)."""
    union = true + predicted - both
    return float((both[union > 0] / union[union > 0]).mean()) if union.any() else float("nan")
