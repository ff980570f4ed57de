"""Two classifiers on the same images."""

from __future__ import annotations

from torch import Tensor, cat

from beit.checkpoints.store import describe, load_model
from beit.data.base import Source
from beit.data.views.evaluation import LabeledView
from beit.metrics.comparison import Difference, paired_bootstrap
from beit.models.heads import ImageClassifier
from beit.stages.batches import Machine, each_batch
from beit.stages.inference import classifier_view


def compare_classifiers(first: str, second: str, source: Source, machine: Machine) -> Difference:
    """How much more often the model at `first` names the class of an image of `source` than that at `second`; both
    have the classes of `source`, in its order, and one for each image."""
    return paired_bootstrap(_right(first, source, machine), _right(second, source, machine))


def _right(path: str, source: Source, machine: Machine) -> Tensor:
    """Of which images, bool (N,), the model at `path` names the class."""
    model = load_model(path).to(machine.compute.device)
    assert isinstance(model, ImageClassifier)
    view = LabeledView(classifier_view(model.encoder.config.image_size, describe(path)))
    batches = each_batch(
        lambda batch: model(batch.image).argmax(1) == batch.label,
        source,
        view,
        machine,
        batch_size=64,
        labeled=True,
        title="comparing",
    )
    return cat([right.cpu() for _, right in batches])
