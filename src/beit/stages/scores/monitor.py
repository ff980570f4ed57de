"""What an encoder's features are worth while it learns: how often neighbours name the class, what rank they have."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from beit.config.architecture import EncoderConfig, default_crop
from beit.config.pretrain import PretrainConfig
from beit.config.values import counted
from beit.data.batches import ImageBatch
from beit.data.sources.subsets import Subset, labels_per_class, seeded_choice
from beit.data.views.evaluation import EvaluationView
from beit.metrics.neighbours import effective_rank, knn_accuracy
from beit.models.heads import MaskedImageModel, layer_features
from beit.stages.batches import open_machine
from beit.stages.scores.features import FeatureSource
from beit.stages.session import Images, Session
from beit.stages.tasks.labels import labels_for_figures
from beit.training.device import Precision
from beit.training.method import Method
from beit.training.plan import Plan
from beit.training.signals import StopSignals

BANK = 2000
"""Training images whose features are looked at, at most."""
LEAST, SHARE = 200, 50
"""At most one image for `SHARE` that are trained on between two evaluations, but `LEAST` at any rate."""


class FeatureMonitor:
    """Measures an encoder by its features of training images, the bank, and of held-back ones that have labels."""

    def __init__(self, session: Session[Any], config: PretrainConfig, encoder: EncoderConfig, images: Images) -> None:
        self._session, self._encoder = session, encoder
        most = _images_at_once(images.plan(config))
        shape = (encoder.depth, encoder.width)
        labeled = labels_for_figures(config, images) if images.held_back else None
        self._classes = len(labeled.train.classes or ()) if labeled else 0
        bank, count = (labeled or images).train, min(BANK, most)
        if labeled:  # whose choice takes a hash of every name
            few, facts = (bank, max(1, count // self._classes), config.seed), (bank.fingerprint, count, config.seed)
            [chosen] = images.holdout.cache.recall(("bank", *facts), lambda: [labels_per_class(*few).indices])
            bank = Subset(bank, chosen.tolist())
        self._bank = FeatureSource(Subset(bank, seeded_choice(bank, count, config.seed)), shape)
        held_back = labeled.held_back if labeled else Subset(images.held_back, [])
        self._queries = FeatureSource(Subset(held_back, seeded_choice(held_back, most, config.seed)), shape)
        self._origin = config.labels or "the data"

    def watch(self, method: Method) -> Method:
        """The method with this among its evaluations; k-NN, where there are labels, says which was best."""
        evaluation = replace(method.evaluation, measure=self.measure, keep_best=False)
        product, notes = method.product, method.notes
        if self._classes:
            evaluation = replace(evaluation, monitor="knn_top1", monitor_mode="max", keep_best=True)
            labels = f"{self._bank.fingerprint} and {self._queries.fingerprint}"
            facts = {**product.facts, "labels": labels}
            product = replace(product, facts=facts, details=lambda: {"knn_images": int(self._queries.whole.sum())})
        notes = replace(notes, about=[*notes.about, self._about()])
        return replace(method, evaluation=evaluation, product=product, notes=notes)

    def measure(self, model: nn.Module, precision: Precision, stop: StopSignals) -> Mapping[str, float]:
        """One pass of the encoder of `model` over bank and held-back images, all patches visible."""
        assert isinstance(model, MaskedImageModel)
        config, compute = self._session.config, self._session.compute
        machine = open_machine(config, compute, precision)
        view = EvaluationView(self._encoder.image_size, crop_share=default_crop(self._encoder.image_size))

        def features(batch: ImageBatch) -> Tensor:
            return layer_features(model.encoder, batch.image, range(self._encoder.depth), "mean")

        batch_size = max(1, min(256, config.batch_size // (compute.world * config.passes)))
        for source in (self._bank, self._queries):
            source.compute(features, view, machine, batch_size=batch_size, title="features", stop=stop)
        return compute.from_main(self._figures)

    def _about(self) -> str:
        bank, queries = counted(len(self._bank), "training image"), counted(len(self._queries), "held-back one")
        if not self._classes:
            needs = "held-back images, each of one class by its folder or --labels"
            return f"each evaluation takes the effective rank of the features of {bank} (k-NN needs {needs})"
        figure = f"each evaluation names {queries} by k-NN, after the nearest of {bank}"
        return f"{figure}; labels ({self._origin}) are used for that alone, and model-best/ is chosen by it"

    def _figures(self) -> dict[str, float]:
        bank, queries = self._bank, self._queries
        rows = bank.whole
        if int(rows.sum()) < 2:
            return {}
        last = bank.features[rows, -1]
        ceiling = float(min(len(last) - 1, self._encoder.width))
        figures = {"effective_rank": effective_rank(last), "effective_rank_ceiling": ceiling}
        if not queries.whole.any():
            return figures
        labels, answers = bank.labels()[rows], queries.labels()[queries.whole]
        layers = zip(bank.features[rows].unbind(1), queries.features[queries.whole].unbind(1), strict=True)
        scores = [knn_accuracy(near, labels, asked, answers, self._classes) for near, asked in layers]
        best = max(scores)
        return {
            "knn_top1": best,
            "knn_last_block": scores[-1],
            "knn_best_block": float(scores.index(best)),
            "knn_chance": 1 / self._classes,
            **figures,
        }


def _images_at_once(plan: Plan) -> int:
    """How many images an evaluation may take for a bank, and as many for its queries: so few that one pass over both
    costs about 1 % of the steps between two evaluations, where every image takes three passes, and one of the
    tokenizer. (More where the encoder sees the visible patches alone in training, for then a step is cheaper.)"""
    between = plan.steps * plan.config.batch_size / plan.config.evaluations
    return max(LEAST, int(between / SHARE))
