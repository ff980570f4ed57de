"""The masked image model that pre-training starts with, and what it keeps of another."""

from dataclasses import replace

from torch import nn

from beit.checkpoints.adapt import changes, drop_norm, replace_rates, resize_encoder, take_over
from beit.checkpoints.store import describe
from beit.config.architecture import sides
from beit.config.pretrain import PretrainConfig
from beit.models.encoder import init_weights
from beit.models.heads import MaskedImageModel
from beit.stages.network import KNOBS, require_equal
from beit.stages.start.encoder import encoder_facts, load_start
from beit.stages.tasks.masked_modelling import masked_image_model
from beit.training.method import Method


def starting_masked_model(
    config: PretrainConfig, vocab_size: int, tokenizer: str | None
) -> tuple[MaskedImageModel, list[str]]:
    """The masked image model that goes on from `config.init`, and a line for everything that was taken over, changed
    or drawn. `tokenizer` is the hash of the one whose tokens it predicts; None for pixels."""
    assert config.init is not None
    start, encoder, notes = load_start(config, config.init)
    for name in (*KNOBS, *(() if config.normalization is None else ("pixel_mean", "pixel_std"))):
        require_equal(config, name, getattr(config.architecture(), name), getattr(encoder.config, name))
    with changes() as adapting:
        encoder = resize_encoder(encoder, sides(config.image_size))
        encoder = replace_rates(encoder, drop_path_rate=config.drop_path_rate, dropout=config.dropout)
    norm = drop_norm(encoder)
    model = masked_image_model(config, encoder, vocab_size)
    init_weights(model, config.init_scheme, keep=encoder)
    if norm is not None:
        model.norm.load_state_dict(norm.state_dict())
        notes.append("its final norm is kept")
    return model, [*notes, *adapting, _take_over(model, start, config, tokenizer)]


def going_on(config: PretrainConfig, model: MaskedImageModel, method: Method, about: list[str]) -> Method:
    """`method` for a `model` that has learned before: it is judged before its first step, and its lower layers may
    learn more slowly."""
    learner = replace(method.learner, layer_decay=config.layer_decay, layer_groups=model.layer_groups())
    facts = {**method.product.facts, **encoder_facts(model.encoder.config)}
    return replace(
        method,
        learner=learner,
        evaluation=replace(method.evaluation, at_start=True),
        product=replace(method.product, facts=facts),
        notes=replace(method.notes, about=[*about, *method.notes.about]),
    )


def _take_over(model: MaskedImageModel, start: nn.Module, config: PretrainConfig, tokenizer: str | None) -> str:
    """Keep what a masked image model needs to predict hidden patches, and its head if that predicts the same."""
    if not isinstance(start, MaskedImageModel):
        return "new mask token, head and norm, as far as --init has none"
    kept, words = ["norm."], "norm kept, new mask token and head, for --init predicts in another way"
    shape = ("encoder_sees", "decoder_depth", "decoder_width")
    if all(getattr(start, name) == getattr(model, name) for name in shape):
        kept += ["mask_token", "decoder."]
        words = "norm and mask token kept, new head: --init predicted other tokens or pixels"
        if start.vocab_size == model.vocab_size and _same_targets(config, tokenizer):
            kept, words = [*kept, "token_head."], "norm, mask token and head kept: they predict the same"
    take_over(model, start, tuple(kept))
    return words


def _same_targets(config: PretrainConfig, tokenizer: str | None) -> bool:
    about = describe(str(config.init))
    pixels = config.pixel_norm if config.target == "pixels" else None
    if pixels or about.get("pixel_norm") or about.get("tokenizer"):
        return [about.get(name) for name in ("pixel_norm", "tokenizer")] == [pixels, tokenizer]
    # Files of other libraries do not name their tokenizer: that of all released models is OpenAI's.
    return str(describe(str(config.tokenizer))["format"]) != "beit"
