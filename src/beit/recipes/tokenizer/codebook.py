"""Tokenizers that are computed at once: k-means of patches, or of a teacher's features of them."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from beit.checkpoints.adapt import changes
from beit.checkpoints.store import load_encoder, weights_sha256
from beit.config.architecture import sides
from beit.config.errors import UserError, given_by
from beit.config.tokenizer import PatchKMeansConfig, TokenizerConfig
from beit.pixels import cut_patches, to_unit
from beit.recipes.tokenizer.judging import evaluation, notes
from beit.stages.session import Images, Session
from beit.tokenizers.features import FeatureKMeans
from beit.tokenizers.kmeans import KMeansTokenizer, PatchKMeans
from beit.training.device import Precision, eval_mode, to_device
from beit.training.method import Batches, Learner, Method, Product
from beit.training.signals import StopRequested, StopSignals

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
        raise UserError(f"--teacher-layer {layer} is none of its {depth} blocks; give {-depth} to {depth - 1}")
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
