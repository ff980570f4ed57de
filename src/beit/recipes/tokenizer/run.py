"""`beit tokenizer`: make a visual tokenizer (paper section 2.1)."""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit.checkpoints.adapt import changes
from beit.checkpoints.store import load_encoder, load_tokenizer, weights_sha256
from beit.config.architecture import DiscreteVAEConfig, sides
from beit.config.errors import UserError, given_by
from beit.config.tokenizer import IDLE, FiniteScalarVAEConfig, PatchKMeansConfig, TokenizerConfig
from beit.data.batches import ImageBatch
from beit.data.views.evaluation import EvaluationView
from beit.data.views.tokenizer import TokenizerViews
from beit.pixels import cut_patches, to_unit
from beit.recipes.tokenizer.judging import evaluation, notes
from beit.stages.auto.choices import settle
from beit.stages.network import TOKENIZER_KNOBS, require_equal
from beit.stages.session import Feed, Images, Outcome, Session, finished, open_images, open_session
from beit.stages.train import set_steps, train
from beit.tokenizers import objective
from beit.tokenizers.dvae import DiscreteVAE
from beit.tokenizers.fsq import FiniteScalarVAE
from beit.tokenizers.kmeans import FeatureKMeans, KMeansTokenizer, PatchKMeans
from beit.tokenizers.plain_dvae import PlainDVAE
from beit.training.device import Precision, eval_mode, to_device
from beit.training.method import Batches, Learner, Method, Noise, Product, Step, StepOutput
from beit.training.signals import StopRequested, StopSignals
from beit.verdicts.rules import collapse


def tokenizer(config: TokenizerConfig, *, dry_run: bool = False, overwrite: bool = False) -> Outcome:
    """Make a tokenizer from the images of `config.data`; the run directory is `config.out`."""
    opened = open_session("tokenizer", config, dry_run=dry_run, overwrite=overwrite)
    if opened is None:
        return finished(config)
    images = open_images(opened.config)
    session, config = settle(opened, images)
    size = (config.image_size, config.image_size)
    views = TokenizerViews(size, crop=config.crop, min_scale=config.min_crop)
    feed = Feed(images=images._replace(test=None), view=views, evaluation_view=EvaluationView(size))

    def method(config: TokenizerConfig) -> Method:  # whose schedules hang on the steps
        make = reconstruction_method if config.is_trained else codebook_method
        return make(config, session, images)

    if config.is_trained:
        session = set_steps(session, method, feed)
    else:  # a codebook takes the time that it takes
        at_once = dataclasses.replace(config, steps=1, epochs=None, budget=None).as_typed(config.typed)
        session = session._replace(config=at_once)
    return train(session, method(session.config), feed)


# ------------------------------------------------------------------------------------------------------------
# Trained to reconstruct images


Trainable = DiscreteVAE | FiniteScalarVAE | PlainDVAE


def reconstruction_method(config: TokenizerConfig, session: Session[Any], images: Images) -> Method:
    """Learn to reconstruct images from tokens; a collapse is said on the console."""

    def summarise(means: Mapping[str, Tensor]) -> dict[str, float]:
        figures = objective.with_codebook_usage(means)
        # Few codes win the argmax while the KL divergence gains its weight and the temperature is high.
        is_cool = figures.get("temperature", 0) <= (config.temperature + config.final_temperature) / 2
        counts = figures["perplexity"], figures["codes_used"], config.vocab_size
        if is_cool and (collapsed := collapse(*counts)):
            session.console.say(f"WARNING: {collapsed.text} Try {collapsed.mend}")
        return figures

    model, about = starting_tokenizer(config)
    if isinstance(model, FiniteScalarVAE):
        step = quantization_step(config)
        about.append(f"finite scalar quantisation to levels {' x '.join(map(str, model.config.levels))}")
    else:
        step = reconstruction_step(config, images.plan(config).first_steps, model)
    return Method(
        learner=Learner(model=model, step=step, summarise=summarise),
        evaluation=replace(evaluation(config, session, images), at_start=config.init is not None),
        notes=notes(config, model, *about),
    )


def starting_tokenizer(config: TokenizerConfig) -> tuple[Trainable, list[str]]:
    """The tokenizer before its first step, and a line where it goes on from another."""
    if config.init is None:
        architecture = config.architecture()
        assert isinstance(architecture, DiscreteVAEConfig)
        if isinstance(architecture, FiniteScalarVAEConfig):
            return FiniteScalarVAE(architecture), []
        return DiscreteVAE(architecture), []
    with given_by("--init"):
        start: Any = load_tokenizer(config.init)
    require_equal(config, "kind", config.kind, start.kind)
    for knob in TOKENIZER_KNOBS:
        if knob not in IDLE[config.kind]:
            require_equal(config, knob, getattr(config, knob), getattr(start.config, knob))
    model: Trainable = type(start)(replace(start.config, image_size=(config.image_size, config.image_size)))
    model.load_state_dict(start.state_dict())
    return model, [f"from {config.init} ({start.kind}), whose weights are all kept"]


def reconstruction_step(config: TokenizerConfig, steps: int, network: DiscreteVAE | PlainDVAE) -> Step:
    """The evidence lower bound of a batch, with the temperature and the weight of the KL divergence of the step; of a
    plain network the squared error of normalised pixels alone (DALLE-pytorch)."""
    cooling = config.in_steps(config.temperature_steps, steps)
    temperature = objective.Anneal(config.temperature, config.final_temperature, cooling)
    kl_weight = objective.Anneal(0.0, config.kl_weight, config.in_steps(config.kl_steps, steps))

    def step(model: nn.Module, batch: ImageBatch, index: int, noise: Noise) -> StepOutput:
        height, width = (side // config.stride for side in batch.image.shape[-2:])
        uniform = noise.uniform(height, width, config.vocab_size)
        heat = torch.tensor(temperature(index))  # as a number it would be compiled anew at every step
        logits, statistics = model(batch.image, heat, uniform)
        tokens = logits.argmax(dim=1)
        if isinstance(network, PlainDVAE):
            figures = reconstruction_metrics(config, batch, tokens, network.images_of(statistics.detach()))
            return StepOutput(F.mse_loss(statistics, network.normalize(batch.image)), figures | {"temperature": heat})
        loss, nll, kl = objective.elbo_loss(batch.image, logits, statistics, kl_weight(index))
        metrics = {
            "nll": nll / batch.image[0].numel(),
            "kl": kl / logits[0, 0].numel(),
            **reconstruction_metrics(config, batch, tokens, objective.median_images(statistics.detach())),
            "temperature": heat,
            "kl_weight": torch.tensor(kl_weight(index)),
        }
        return StepOutput(loss, metrics)

    return step


def quantization_step(config: TokenizerConfig) -> Step:
    """The negative log-likelihood of a batch's pixels alone: there is no distribution of tokens to keep even."""

    def step(model: nn.Module, batch: ImageBatch, index: int, noise: Noise) -> StepOutput:
        tokens, statistics = model(batch.image)
        nll = objective.reconstruction_nll(batch.image, statistics) / batch.image[0].numel()
        figures = reconstruction_metrics(config, batch, tokens, objective.median_images(statistics.detach()))
        return StepOutput(nll, {"nll": nll, **figures})

    return step


def reconstruction_metrics(
    config: TokenizerConfig, batch: ImageBatch, tokens: Tensor, images: Tensor
) -> dict[str, Tensor]:
    """How far the reconstruction of a batch is off, and the tokens that it used."""
    return {
        "reconstruction_mae": objective.reconstruction_mae(batch.image, images),
        "cell_mean_mae": objective.cell_mean_mae(batch.image, config.stride),
        "codes": objective.count_codes(tokens, config.vocab_size).float(),
    }


# ------------------------------------------------------------------------------------------------------------
# Computed at once


VIEWS = 2048
"""Views of training images that the sample is taken of, at least."""
PER_VIEW = 32
"""Patches of each, drawn at random. 65,536 patches bound memory and time, and are eight for each of 8,192 codes."""
PASS = 64
"""Views that a teacher sees at once."""


def codebook_method(config: TokenizerConfig, session: Session[Any], images: Images) -> Method:
    """Compute a codebook from a sample of patches of the training views; the run has no steps."""
    model, about, facts = (feature_kmeans if config.kind == "features" else patch_kmeans)(config)
    model.requires_grad_(False).eval()

    def prepare(batches: Batches, precision: Precision, stop: StopSignals) -> None:
        rng = torch.Generator().manual_seed(config.seed)
        vectors, patches = sample(model, batches, session, precision, rng, stop)
        session.console.say(f"k-means of {len(vectors):,} patches to {model.vocab_size:,} centres")
        with suppress(StopRequested):
            model.cpu().fit(vectors, patches, rng, stop.poll)
        stop.poll_together(session.compute)

    return Method(
        learner=Learner(model=model),
        evaluation=evaluation(config, session, images),
        product=Product(facts=facts),
        notes=notes(config, model, *about),
        prepare=prepare,
    )


def patch_kmeans(config: TokenizerConfig) -> tuple[KMeansTokenizer, list[str], dict[str, str]]:
    """k-means of pixels, a line about it, and nothing that the run depends on besides."""
    architecture = config.architecture()
    assert isinstance(architecture, PatchKMeansConfig)
    compared = "normalised each by itself" if config.pixel_norm == "patch" else "as they are"
    return PatchKMeans(architecture), [f"k-means of patches, {compared}"], {}


def feature_kmeans(config: TokenizerConfig) -> tuple[KMeansTokenizer, list[str], dict[str, str]]:
    """k-means of the features of the teacher, lines about it, and the teacher's identity."""
    assert config.teacher is not None
    with given_by("--teacher"), changes() as adapting:
        encoder = load_encoder(config.teacher, sides(config.image_size))
    depth = encoder.config.depth
    layer = -(-2 * depth // 3) - 1 if config.teacher_layer is None else config.teacher_layer
    if not -depth <= layer < depth:
        raise UserError(f"--teacher-layer {layer} is none of its blocks; give {-depth} to {depth - 1}")
    model = FeatureKMeans(encoder, config.vocab_size, layer % depth)
    about = f"k-means of the features after block {layer % depth} of {depth} of {config.teacher}"
    return model, [about, *adapting], {"teacher": weights_sha256(encoder)}


def sample(
    model: KMeansTokenizer,
    batches: Batches,
    session: Session[Any],
    precision: Precision,
    rng: torch.Generator,
    stop: StopSignals,
) -> tuple[Tensor, Tensor]:
    """Patches of the first training views, drawn at random: what `model` compares of them, (M, D), and the patches
    themselves, (M, 3, stride, stride); those of all ranks, on the host of each."""
    compute, device = session.compute, session.compute.device
    model.to(device)
    steps = -(-VIEWS // session.config.batch_size)
    parts: list[tuple[Tensor, Tensor]] = []
    with suppress(StopRequested):
        for batch in batches.train(0, steps):
            for images in to_device(batch, device).image.split(PASS):
                stop.poll()
                with eval_mode(device, precision):
                    both = model.read(images).float(), cut_patches(to_unit(images), model.stride)
                count, cells = both[0].shape[:2]
                rows = torch.rand(count, cells, generator=rng).argsort(dim=1)[:, :PER_VIEW].to(device)
                image = torch.arange(count, device=device)[:, None]
                parts.append((both[0][image, rows].flatten(0, 1), both[1][image, rows].flatten(0, 1)))
    stop.poll_together(compute)
    vectors, patches = (torch.cat(compute.exchange(torch.cat(part).cpu())) for part in zip(*parts, strict=True))
    return vectors, patches
