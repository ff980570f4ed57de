"""`beit probe`: what the layers of a frozen encoder know, by linear classifiers and k-NN (paper appendix D).

images -> frozen encoder -> features of every layer -> one linear classifier for each, trained together
                                                    -> the vote of the nearest training images, without training
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from beit.checkpoints.store import load_encoder, weights_sha256
from beit.config.architecture import default_crop, sides
from beit.config.errors import UserError, given_by, require
from beit.config.probe import ProbeConfig
from beit.config.values import counted
from beit.data.batches import ImageBatch, LabeledBatch
from beit.data.label_file import Labels
from beit.data.sources.subsets import Subset, spread
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.tokenizer import TokenizerViews
from beit.metrics.classification import classification_sums, hits
from beit.metrics.neighbours import knn_votes
from beit.models.encoder import BeitEncoder
from beit.models.heads import LayerProbes, LinearProbe, layer_features
from beit.stages.auto.choices import settle
from beit.stages.batches import open_machine
from beit.stages.scores.features import FeatureSource
from beit.stages.scores.yardsticks import beside_classifier
from beit.stages.session import Feed, Images, Outcome, Session, finished, open_session
from beit.stages.tasks.labels import class_weights, count_labels, open_with_labels
from beit.stages.train import train
from beit.training.device import Precision
from beit.training.method import Batches, Evaluation, Learner, Method, Noise, Notes, Product, StepOutput
from beit.training.metrics import accumulate
from beit.training.signals import StopRequested, StopSignals

CHUNK = 1024
"""Images whose neighbours are sought, or whose features are classified, at once."""


def probe(config: ProbeConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Judge every layer of the encoder of `config.init` on labelled images; the run directory is `config.out`."""
    session = open_session("probe", config, dry_run=dry_run, overwrite=overwrite)
    if session is None:
        return finished(config)
    config = session.config
    images, labels = open_with_labels(config)
    none = "--holdout 0 leaves no image to choose the layer on; drop it, or name some with --eval-data"
    require(len(images.held_back) > 0, none)
    session, config = settle(session, images)
    with given_by("--init"):
        encoder = load_encoder(config.init, sides(config.image_size))
    encoder.to(session.compute.device).requires_grad_(False)
    probing = Probing(config, session, encoder, images, labels)
    return train(session, probing.method(), probing.feed())


class Probing:
    """The encoder, the features it gave, and what the layers scored."""

    def __init__(
        self, config: ProbeConfig, session: Session[ProbeConfig], encoder: BeitEncoder, images: Images, labels: Labels
    ) -> None:
        self.config, self.session, self.encoder, self.images = config, session, encoder, images
        self.labels, self.classes, self.num_classes = labels, labels.classes, len(labels.classes)
        counts = partial(count_labels, images.train, labels)
        self.weights = class_weights(config.class_weights, labels.classes, counts, session.compute.device)
        self.size = encoder.config.image_size
        self.crop_pct = default_crop(self.size) if config.crop_pct is None else config.crop_pct
        self.layers = range(encoder.config.depth)
        shape = (len(self.layers), encoder.config.width * (1 if config.pool == "mean" else 2))
        self.model = LayerProbes(*shape, self.num_classes)
        chosen = images.train
        if config.augment and len(chosen) > config.knn_images:
            chosen = Subset(chosen, spread(len(chosen), config.knn_images))
        self.bank = FeatureSource(chosen, shape)
        """Training images: neighbours to find, and without `augment` all that the classifiers learn from."""
        self.held_back = FeatureSource(images.held_back, shape)
        self.test = FeatureSource(images.test, shape) if images.test else None
        self.neighbours: dict[str, Tensor] = {}
        """Share of right k-NN answers by layer, on held-back images."""
        self.test_neighbours: dict[str, Tensor] = {}
        """The same on `test`."""
        self.scores: dict[str, Tensor] = {}
        """Loss and share of right linear answers by layer, at the last evaluation."""

    def feed(self) -> Feed:
        """Features, or with `augment` images to train on."""
        config = self.config
        crops = TokenizerViews(self.size, crop="random_resized", min_scale=config.min_crop, flip=config.flip)
        view = LabeledView(crops) if config.augment else feature_view
        images = self.images._replace(held_back=self.held_back, test=self.test)
        images = images if config.augment else images._replace(train=self.bank)
        return Feed(images=images, view=view, evaluation_view=feature_view, labeled=True)

    def method(self) -> Method:
        learner = Learner(model=self.model, step=self.step, summarise=best_accuracy)
        evaluation = Evaluation(
            evaluate_batch=self.evaluate,
            summarise=self.summarise,
            summarise_test=self.summarise_test,
            yardsticks=beside_classifier(self.images, self.labels),
            monitor="top1",
            monitor_mode="max",
        )
        said = {"interpolation": "bicubic", "crop_pct": self.crop_pct}
        identity = {"encoder": weights_sha256(self.encoder)}
        given: dict[str, Any] = {"export": self.best_probe, "details": self.details}
        product = Product(classes=self.classes, description=said, facts=identity, **given)
        parts: dict[str, Any] = {"learner": learner, "evaluation": evaluation, "product": product}
        return Method(**parts, notes=self.notes(), prepare=self.prepare)

    def notes(self) -> Notes:
        config = self.config
        sources = [source for source in (self.bank, self.held_back, self.test) if source]
        images, memory = sum(map(len, sources)), sum(source.features.nbytes for source in sources) / 2**30
        bank = min(len(self.bank), config.knn_images)
        return Notes(
            about=[
                f"on each layer of the frozen encoder of {config.init}, {len(self.layers)} in all, "
                f"at {self.size[0]}x{self.size[1]} px",
                f"{counted(config.knn, 'neighbour', 'votes/vote')}, among {counted(bank, 'training image')}",
                f"the features of {counted(images, 'image')} take {memory:.1f} GiB",
            ],
            conclusion=conclusion,
            next_command=f"beit predict --model {config.out} IMAGE...",
        )

    def features(self, batch: ImageBatch | LabeledBatch) -> Tensor:
        with torch.no_grad():
            return layer_features(self.encoder, batch.image, self.layers, self.config.pool)

    def step(self, model: nn.Module, batch: LabeledBatch, index: int, noise: Noise) -> StepOutput:
        """Cross-entropies summed over layers, which learn nothing from one another."""
        features = self.features(batch) if self.config.augment else batch.image
        sums = classification_sums(model(features), self.labels.targets(batch.label), weights=self.weights)
        count = sums.pop("count")
        return StepOutput(sums["loss"].sum() / count, {"top1": sums["top1"] / count})

    def evaluate(self, model: nn.Module, batch: LabeledBatch) -> dict[str, Tensor]:
        return classification_sums(model(batch.image), self.labels.targets(batch.label))

    def summarise(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        self.scores = shares(totals)
        best = best_layer(self.scores)
        figures = {name: float(values[best]) for name, values in self.scores.items()}
        return figures | {"best_layer": float(best), "knn_top1": float(self.neighbours["top1"].max())}

    def summarise_test(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the layers that were best on the held-back images, for either kind of classifier."""
        layer, knn_layer = best_layer(self.scores), self.best_knn_layer()
        figures = {name: float(values[layer]) for name, values in shares(totals).items()}
        knn = self.test_neighbours["top1"][knn_layer]
        return figures | {"best_layer": float(layer), "knn_top1": float(knn)}

    def best_knn_layer(self) -> int:
        top1 = self.neighbours["top1"]
        return best_layer({"top1": top1, "loss": -self.neighbours.get("top5", top1)})

    def prepare(self, batches: Batches, precision: Precision, stop: StopSignals) -> None:
        """One pass of the encoder over the images that stay as they are, and all of k-NN."""
        config, say = self.config, self.session.console.say
        compute = self.session.compute
        machine = open_machine(config, compute, precision)
        view = EvaluationView(self.size, crop_share=self.crop_pct)
        batch_size = max(1, min(256, config.batch_size // compute.world))
        for source, title in ((self.bank, "training"), (self.held_back, "held-back"), (self.test, "test")):
            if source is None:
                continue
            say(f"computing the features of {counted(len(source), f'{title} image')}")
            source.compute(self.features, view, machine, batch_size=batch_size, title=title, stop=stop)
            if not source.whole.any():
                raise UserError(f"--data: none of the {title} images can be read; `beit check` lists them")
        if config.standardize:
            whole = self.bank.features[self.bank.whole]
            self.model.mean.copy_(whole.mean(dim=0))
            self.model.std.copy_(whole.std(dim=0, correction=0).clamp(min=1e-6))
        with suppress(StopRequested):
            self.neighbours = self.score_neighbours(self.held_back, compute.device, stop.poll)
            if self.test:
                self.test_neighbours = self.score_neighbours(self.test, compute.device, stop.poll)
        stop.poll_together(compute)

    def score_neighbours(
        self, judged: FeatureSource, device: torch.device, poll: Callable[[], None]
    ) -> dict[str, Tensor]:
        """Share of `judged` images that k-NN names right, by layer, on features as the classifiers see them."""
        config, counts = self.config, defaultdict[str, Tensor](lambda: torch.zeros(len(self.layers)))
        rows = torch.tensor(spread(len(self.bank), config.knn_images))
        rows = rows[self.bank.whole[rows]]
        labels, answers = self.bank.labels()[rows].to(device), judged.labels()[judged.whole]
        std = self.model.std.cpu()  # k-NN takes the mean off by itself
        for layer in self.layers:
            bank = (self.bank.features[rows, layer] / std[layer]).to(device)
            queries = judged.features[judged.whole, layer] / std[layer]
            for part, answer in zip(torch.split(queries, CHUNK), torch.split(answers, CHUNK), strict=True):
                poll()
                votes = knn_votes(part.to(device), bank, labels, self.num_classes, config.knn, config.knn_temperature)
                for name, right in hits(votes.cpu(), self.labels.targets(answer)).items():
                    counts[name][layer] += right
        return {name: right / len(answers) for name, right in counts.items()}

    def best_probe(self, model: nn.Module) -> LinearProbe:
        """The classifier of the layer that is best on the held-back images as `model` is now."""
        assert isinstance(model, LayerProbes)
        device, totals = model.weight.device, dict[str, Tensor]()
        features, labels = self.held_back.features, self.held_back.labels()
        with torch.no_grad():
            for rows in torch.split(self.held_back.whole.nonzero().squeeze(1), CHUNK):
                batch = LabeledBatch(features[rows].to(device), labels[rows].to(device))
                accumulate(totals, self.evaluate(model, batch))
        return model.probe(self.encoder, best_layer(totals), self.config.pool)

    def details(self) -> dict[str, Any]:
        """Every layer's scores, for results.json; layers count from 0, the first block."""
        columns = {**self.scores, **{f"knn_{name}": value for name, value in self.neighbours.items()}}
        rows = [
            {"layer": layer, **{name: round(float(column[layer]), 6) for name, column in columns.items()}}
            for layer in self.layers
        ]
        return {"best_layer": best_layer(self.scores), "knn_best_layer": self.best_knn_layer(), "layers": rows}


def feature_view(features: Tensor, label: int, rng: np.random.Generator) -> LabeledBatch:
    """What a loader makes of an image's features, float32 (layers, F), which take the place of the image."""
    return LabeledBatch(features, torch.tensor(label))


def shares(totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over a count of images as means."""
    return {name: total / totals["count"] for name, total in totals.items() if name != "count"}


def best_accuracy(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Of the layers, in training."""
    return {"top1": float(means["top1"].max())}


def best_layer(scores: Mapping[str, Tensor]) -> int:
    """The layer with the most right answers; among equals, the one with the least loss."""
    top1, loss = scores["top1"], scores["loss"]
    return int(torch.where(top1 == top1.max(), loss, torch.inf).argmin())


def conclusion(results: Mapping[str, Any]) -> Sequence[str]:
    """The table of the layers."""
    best, knn = results["best_layer"], results["knn_best_layer"]
    headings = {"top1": "linear top-1 ", "top5": "top-5", "knn_top1": "k-NN top-1 ", "knn_top5": "top-5"}
    columns = {name: heading for name, heading in headings.items() if name in results["layers"][0]}
    lines = ["layer  " + "  ".join(f"{heading:>13}" for heading in columns.values()) + "  (0 is the first)"]
    for row in results["layers"]:
        stars = {"top1": row["layer"] == best, "knn_top1": row["layer"] == knn}
        marks = {name: "*" if star else " " for name, star in stars.items()}
        cells = [f"{f'{row[name]:.2%}' + marks.get(name, ''):>13}" for name in columns]
        lines.append(f"{row['layer']:>5}  " + "  ".join(cells))
    lines.append(f"best: layer {best} with a linear classifier, layer {knn} with k-NN")
    if "test/top1" in (last := results["last"]):
        lines.append(f"on test, once: {last['test/top1']:.2%} linear, {last['test/knn_top1']:.2%} k-NN")
    return lines
