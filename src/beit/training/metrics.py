"""Figures on their way from a step to metrics.jsonl."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from beit.training.device import Compute

Summary = Callable[[Mapping[str, Tensor]], dict[str, float]]
"""Turns tensors, averaged or summed element by element, into the figures people read."""

MEASURED = ("loss", "grad_norm")
"""Figures that the loop measures itself; a step's own metrics have other names."""


def scalars(means: Mapping[str, Tensor]) -> dict[str, float]:
    """The summary of metrics that are single numbers already."""
    return {name: float(value) for name, value in means.items()}


def over_count(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The summary of an evaluation whose totals are sums over `count` images."""
    count = float(totals["count"])
    return scalars({name: total / count for name, total in totals.items() if name != "count"})


def accumulate(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add `sums` to `totals`, name by name."""
    for name, value in sums.items():
        totals[name] = totals[name] + value if name in totals else value


class MetricWindow:
    """Means over the steps since the last report, of numbers and of whole tensors, kept on the device.

    Nothing here makes the host wait for the device until :meth:`means` is called.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a new window."""
        self._sums: dict[str, Tensor] = {}
        self.steps = 0
        self.seconds = self.waited = 0.0
        """What the steps took, and what of that they waited for data."""

    def add(self, values: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add one step's `values`; nothing of them where `counts`, a bool scalar, is False."""
        values = {**values, "count": torch.ones((), device=counts.device)}
        accumulate(self._sums, {name: torch.where(counts, x.detach().float(), 0.0) for name, x in values.items()})
        self.steps += 1

    def means(self, compute: Compute) -> dict[str, Tensor]:
        """The mean of everything added, over steps and ranks, on the host."""
        sums = compute.sums(self._sums)
        count = sums.pop("count")
        return {name: total / count for name, total in sums.items()}

    def state_dict(self, compute: Compute) -> dict[str, Any]:
        """The window with the sums of all ranks, stacked; every rank must call this."""
        sums = {name: torch.stack(compute.exchange(value.cpu())) for name, value in sorted(self._sums.items())}
        return {"sums": sums, "steps": self.steps, "seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any], compute: Compute) -> None:
        """Go on with a saved window, on any number of ranks."""
        self.clear()
        for name, stacked in state["sums"].items():
            same_ranks = len(stacked) == compute.world
            share = stacked[compute.rank] if same_ranks else stacked.mean(0)
            self._sums[name] = share.to(compute.device)
        self.steps, self.seconds, self.waited = state["steps"], state["seconds"], state["waited"]


def line_of(
    step: int, steps: int, epoch: float, figures: Mapping[str, float], last: Mapping[str, Any] | None = None
) -> str:
    """Figures as a line to read, without constants that are among the `last` ones."""
    from beit.figures import CONSTANT, in_words, plain  # the words are no part of a step

    of = {"eval": ", held-back images", "test": ", test images"}.get(next(iter(figures), "").partition("/")[0], "")
    constants = {name for name in figures if last and name in last and plain(name) in CONSTANT}
    news = {name: value for name, value in figures.items() if name not in constants}
    return f"{f'step {step:,} of {steps:,}, epoch {epoch:.2f}' if steps else 'at once'}{of}: {in_words(news)}"


def brief_line(figures: Mapping[str, float]) -> str:
    """The figures that matter most."""
    from beit.figures import headlines, in_words

    return in_words(headlines(figures))


def short_number(value: float) -> str:
    """Four significant digits, without an exponent where there is no need of one."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def json_ready(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with null for what is not finite, which JSON cannot say."""
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}
