"""What a recipe brings to a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from beit.stages.batches import Machine
from beit.training.metrics import Summary, over_count, scalars
from beit.training.optim import cosine_schedule
from beit.training.plan import Step
from beit.training.signals import StopSignals

View = Callable[..., Any]


class Schedule(Protocol):
    """The learning rate of a step, from 0; see :func:`beit.training.optim.cosine_schedule`."""

    def __call__(
        self, step: int, *, peak: float, final: float, warmup_steps: int, total_steps: int
    ) -> float: ...


@dataclass(kw_only=True)
class Method:
    """What a recipe brings: a network, its step, its views, and how it is judged and drawn."""

    model: nn.Module
    step: Step
    """One micro-batch -> loss and metrics; see :func:`beit.training.loop.fit`."""
    view: View
    """An image, its label if the method is `labeled`, and a generator -> a training sample."""
    evaluation_view: View
    """The same -> a sample of the evaluation."""
    evaluate: Callable[[nn.Module, Any], dict[str, Tensor]]
    """The model and a batch on the device -> sums over it, `count` among them."""
    draw: Callable[[nn.Module, Sequence[Any], Path, int], None] | None = None
    """The model, a few evaluation samples in batches (one, unless `evaluation_batch_size` is small), the folder for
    pictures, the step."""
    summarise: Summary = scalars
    summarise_evaluation: Summary = over_count
    monitor: str = "loss"
    """The evaluation's figure that says which was best."""
    monitor_mode: Literal["min", "max"] = "min"
    labeled: bool = False
    """Whether the views take labels."""
    evaluation_batch_size: int | None = None
    """Images that are judged together: 1 where they differ in size; None for as many as a training pass has."""
    schedule: Schedule = cosine_schedule
    repeats: int = 1
    """Views of an image that stand together in a batch."""
    layer_decay: float = 1.0
    layer_groups: Sequence[Sequence[nn.Parameter]] | None = None
    """The model's parameters by depth, lowest first; with them `layer_decay` slows the lower ones down."""
    prepare: Callable[[Machine, StopSignals], None] | None = None
    """What must be computed before the first step, on this machine; done again when a run continues. It polls the
    signals, and leaves on all ranks together."""
    to_keep: Callable[[nn.Module], nn.Module] = lambda model: model
    """The trained network -> the model to write."""
    details: Callable[[], Mapping[str, Any]] = dict
    """What results.json says besides the last and best figures; asked after the last evaluation."""
    conclusion: Callable[[Mapping[str, Any]], Sequence[str]] = lambda results: ()
    """results.json in words, to end with."""
    input_shape: tuple[int, ...] = (3, 64, 64)
    """What the views take: an image of any size, or the features that stand in its place."""
    blank_label: Any = 0
    """A label of such an image, where the method is `labeled`."""
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    tokenizer_hash: str | None = None
    """Identity of the tokenizer whose tokens the model predicts."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else every start of the run depends on, by name; a run that began with other facts is refused. Weights
    that a checkpoint replaces, as those that fine-tuning starts from, are none."""
    classes: Sequence[str] | None = None
    """Names of a classifier's outputs, in order."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What else model.json should say."""
    about: Sequence[str] = ()
    """Lines for the announcement."""
    activations: float = 0
    """Bytes of activations for each image of a pass, roughly."""
    next_command: str = ""
    """What to type after this, with {out} for the run."""
