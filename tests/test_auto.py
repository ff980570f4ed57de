"""`--preset auto`: what is chosen from facts, that what is typed binds it, and how a budget becomes steps."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from beit import presets
from beit.cli.flags import parse
from beit.cli.main import VERBS
from beit.config.errors import UserError
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.segment import SegmentConfig
from beit.config.start import StartConfig
from beit.config.tokenizer import IDLE, TokenizerConfig
from beit.presets import Facts, auto, configure, recipes_of, resolve
from beit.stages.auto.rehearsal import Pace, fit_into

NEEDED: dict[str, dict[str, str]] = {"tokenizer": {}, "pretrain": {"tokenizer": "t"}}


def pretraining(**typed: Any) -> PretrainConfig:
    return PretrainConfig(data="x", out="y", tokenizer="t", **typed)


@pytest.mark.parametrize("side", [20, 32, 64, 100, 224, 2000])
@pytest.mark.parametrize("work", [1e12, 1e15, 1e18, 1e21])
@pytest.mark.parametrize("images", [1, 30, 50_000])
@pytest.mark.parametrize("verb", presets.VERBS)
def test_every_choice_is_a_valid_configuration(verb: str, images: int, work: float, side: float) -> None:
    config = VERBS[verb].config(data="x", out="y", **NEEDED.get(verb, {"init": "i"}))
    resolved, choices = resolve(config, Facts(side=side, images=images, work=work, width=192))
    assert resolved.preset is None and all(choice.reason for choice in choices)
    if verb in ("pretrain", "finetune", "segment"):
        assert (resolved.budget, resolved.steps, resolved.epochs) == ("1h", None, None)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"width": 200}, {"width": 200, "num_heads": 4}),
        ({}, {"encoder_sees": "visible", "masking": "random", "num_masked": "75%", "position": "sincos"}),
        ({"encoder_sees": "all"}, {"masking": "block", "num_masked": None, "bias": "none"}),
        ({"mask_count": "at_most"}, {"encoder_sees": "all", "masking": "block"}),
        ({"masking": "none", "predict": "all"}, {"encoder_sees": "all"}),
        ({"masking": "block"}, {"encoder_sees": "visible", "num_masked": None}),
        ({"min_block": 4}, {"encoder_sees": "visible", "masking": "block", "num_masked": None}),
        ({"position": "shared_bias"}, {"position": "shared_bias", "bias": None}),
        ({"image_size": 48}, {"image_size": 48, "patch_size": 6}),
        ({"image_size": (64, 96)}, {"patch_size": 8}),
        ({"patch_size": 8}, {"image_size": 64}),
        ({"steps": 7}, {"steps": 7, "epochs": None, "budget": None}),
        ({"epochs": 2.0}, {"steps": None, "epochs": 2.0, "budget": None}),
        ({"budget": "20m"}, {"steps": None, "epochs": None, "budget": "20m"}),
        ({"steps": None, "lr": 3e-3}, {"budget": "1h", "lr": 3e-3}),
        ({"clip_grad": None}, {"clip_grad": None}),
        ({"preset": "tiny", "budget": "2h"}, {"depth": 12, "epochs": None, "budget": "2h"}),
    ],
    ids=str,
)
def test_what_is_typed_binds_auto(typed: dict[str, Any], expected: dict[str, Any]) -> None:
    resolved, choices = resolve(pretraining(**typed), Facts(side=32))
    assert {name: getattr(resolved, name) for name in expected} == expected
    assert not {name for choice in choices for name in choice.values} & typed.keys()
    assert resolved.typed.keys() >= {"data", "out", "tokenizer"}


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ({}, "kmeans"),
        ({"kind": "auto", "pixel_norm": "patch"}, "kmeans"),
        ({"budget": "20m", "vocab_size": 99}, "kmeans"),
        ({"width": 64}, "dvae"),
        ({"steps": 7}, "dvae"),
        ({"kind": "fsq"}, "fsq"),
        ({"kind": "dvae"}, "dvae"),
        ({"teacher": "t"}, "features"),
        ({"preset": "tiny", "kind": "auto"}, "dvae"),
    ],
    ids=str,
)
def test_the_kind_of_tokenizer_follows_what_is_typed(typed: dict[str, Any], kind: str) -> None:
    for facts in (Facts(side=32), Facts(side=500)):
        resolved, choices = resolve(TokenizerConfig(data="x", out="y", **typed), facts)
        assert resolved.kind == kind and resolved.typed.get("kind") != "auto"
        assert not {name for choice in choices for name in choice.values} & IDLE[kind]
        assert resolved.image_size % resolved.stride == 0


def test_the_kind_is_not_left_open() -> None:
    with pytest.raises(UserError, match="--kind auto needs a preset"):
        TokenizerConfig(data="x", out="y", preset=None, kind="auto")


@pytest.mark.parametrize("config_type", [FinetuneConfig, SegmentConfig])
@pytest.mark.parametrize("preset", ["auto", "tiny", "base", "base-paper"])
def test_from_scratch_is_the_network_of_pretraining(config_type: type[StartConfig], preset: str) -> None:
    facts = Facts(side=32, width=None)
    task, _ = resolve(config_type(data="x", out="y", preset=preset, from_scratch=True), facts)
    pretrained, _ = resolve(pretraining(preset=preset), facts)
    ours, theirs = task.architecture(), pretrained.architecture()
    for name in ("patch_size", "width", "depth", "num_heads", "position", "layer_scale_init", "pixel_mean"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert task.init_scheme == pretrained.init_scheme
    assert (ours.bias == "none") == (theirs.bias == "none")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"init": "i", "from_scratch": True}, "--from-scratch and --init i exclude each other"),
        ({"from_scratch": True, "preset": "small-data"}, "--patch-size, --width, --depth, --num-heads"),
        ({}, "give --init a trained model, or --from-scratch"),
        ({"preset": "tiny"}, "give --init a trained model, or --from-scratch"),
    ],
    ids=str,
)
def test_a_start_is_one_of_two(typed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(FinetuneConfig(data="x", out="y", **typed))


@pytest.mark.parametrize(("mixing", "passes"), [({"mixup": 0.0, "cutmix": 0.0}, 100), ({"mixup": 0.8}, 400)])
def test_few_labels_are_not_shown_for_the_whole_budget(mixing: dict[str, float], passes: int) -> None:
    """The more often, the more they are mixed."""
    config = FinetuneConfig(data="x", out="y", init="i", batch_size=128, **mixing)
    steps, remark = auto.within_epochs("finetune", config, 4500, 10**6)
    assert steps == round(4500 * passes / 128) and remark == f"; stops at {passes} epochs: 4,500 labelled images"
    assert auto.within_epochs("finetune", config, 4500, 300) == (300, "")
    assert auto.within_epochs("finetune", dataclasses.replace(config, batch_size=1024), 2, 300)[0] == 1
    assert auto.within_epochs("pretrain", config, 10, 10**6) == (10**6, "")


@pytest.mark.parametrize(("side", "mixing"), [(32, (0.8, 1.0, 0.1)), (224, (0.0, 0.0, 0.05))])
def test_small_images_are_mixed(side: int, mixing: tuple[float, float, float]) -> None:
    facts = Facts(side=side, width=192, labels_per_class=45)
    config, _ = resolve(FinetuneConfig(data="x", out="y", init="i", steps=1000), facts)
    assert (config.mixup, config.cutmix, config.drop_path_rate) == mixing
    assert config.num_warmup_steps(1000, 450) == 100, "a share of the run"


def test_pretraining_takes_the_grid_of_its_tokenizer() -> None:
    config, _ = resolve(pretraining(), Facts(side=500, grid=(14, 14)))
    assert config.architecture().grid == (14, 14)
    config, _ = resolve(pretraining(), Facts(side=500, grid=(6, 9)))
    assert config.architecture().grid == (6, 9)


@pytest.mark.parametrize("facts", [Facts(side=side, work=work) for side in (32, 96, 300) for work in (1e14, 1e19)])
def test_what_auto_chooses_for_the_verbs_fits_together(facts: Facts) -> None:
    tokenizer, _ = resolve(TokenizerConfig(data="x", out="y"), facts)
    grid = tokenizer.image_size // tokenizer.stride
    encoder, _ = resolve(pretraining(), facts)
    scratch, _ = resolve(FinetuneConfig(data="x", out="y", depth=encoder.depth), facts)
    assert encoder.architecture().grid == (grid, grid)
    for name in ("image_size", "patch_size", "width", "depth", "num_heads"):
        assert getattr(scratch, name) == getattr(encoder, name)


def test_presets_of_one_name_fit_each_other() -> None:
    """The tokenizer of a name has a token for each patch of the encoder of that name."""
    for name in recipes_of("tokenizer").keys() & recipes_of("pretrain").keys():
        tokenizer = configure(TokenizerConfig, name, data="x", out="y")
        encoder = configure(PretrainConfig, name, data="x", out="y", tokenizer="t")
        grid = tokenizer.image_size // tokenizer.stride
        assert encoder.architecture().grid == (grid, grid), name
    for name in recipes_of("pretrain").keys() & recipes_of("finetune").keys():
        size = configure(FinetuneConfig, name, data="x", out="y", init="i").image_size
        patch = configure(PretrainConfig, name, data="x", out="y", tokenizer="t").patch_size
        assert size is None or (isinstance(size, int) and size % patch == 0), name
    for name in recipes_of("pretrain").keys() & recipes_of("segment").keys():
        patch = configure(PretrainConfig, name, data="x", out="y", tokenizer="t").patch_size
        segmenter = configure(SegmentConfig, name, data="x", out="y", init="i")
        segmenter.require_whole_patches(patch)


def test_a_configuration_in_python_is_a_command_line() -> None:
    words = ["--data", "x", "--out", "y", "--tokenizer", "t", "--width", "96"]
    for preset in ("auto", "tiny"):
        typed, _ = parse(PretrainConfig, "beit pretrain", [*words, "--preset", preset])
        same = pretraining(width=96, preset=preset)
        assert resolve(typed) == resolve(same) and typed.typed == same.typed
    for double in (copy.copy(same), pickle.loads(pickle.dumps(same))):
        assert (double, double.typed) == (same, same.typed)


def test_values_that_do_not_fit_are_refused_whatever_is_chosen() -> None:
    with pytest.raises(UserError, match="--patch-size 5"):
        resolve(pretraining(image_size=32, patch_size=5))
    with pytest.raises(UserError, match="--depth must be positive"):
        pretraining(depth=0)


def test_a_budget_is_filled_with_steps() -> None:
    config, _ = resolve(pretraining(budget="100s", evaluations=4, save_every="1m"))
    pace = Pace(step=0.1, evaluation=2.0, save=1.0)
    steps, evaluations = fit_into(100, pace, config)
    total = steps * pace.step + evaluations * pace.evaluation + 2 * pace.save
    assert evaluations == 4 and 94 < total <= 95
    assert fit_into(100, pace._replace(evaluation=9.0), config)[1] == 2, "a fifth of the time at most"
    assert fit_into(-5, pace, config) == (1, 1)


@pytest.mark.parametrize(
    ("side", "size", "crop"),
    [
        (360, (224, 224), (224, 224)),
        (360, (112, 112), (224, 224)),
        (32, (32, 32), (32, 32)),
        (180, (112, 96), (112, 112)),
    ],
)
def test_a_segmenter_has_crops_of_most_of_an_image(side: float, size: Any, crop: Any) -> None:
    facts = Facts(side=side, width=192, size=size, patch=16 if size[0] > 32 else 4)
    config, _ = resolve(SegmentConfig(data="x", out="y", init="i"), facts)
    assert config.crop == crop
    assert resolve(SegmentConfig(data="x", out="y", init="i", crop=64), facts)[0].crop == 64


def test_where_there_is_little_time_a_segmenter_sees_smaller_images() -> None:
    facts = Facts(side=360, width=192, size=(112, 112), patch=14, work=5e12)
    config, _ = resolve(SegmentConfig(data="x", out="y", init="i"), facts)
    assert (config.crop, config.resize) == ((112, 112), 180)
    whole, _ = resolve(SegmentConfig(data="x", out="y", init="i"), dataclasses.replace(facts, work=5e13))
    assert (whole.crop, whole.resize) == ((224, 224), None)
    small, _ = resolve(SegmentConfig(data="x", out="y", init="i"), dataclasses.replace(facts, side=112))
    assert (small.crop, small.resize) == ((112, 112), None), "no detail to spare"


@pytest.mark.parametrize(
    ("verb", "batch", "steps", "smaller"),
    [
        ("pretrain", 128, 800, 128),
        ("pretrain", 128, 799, 64),
        ("pretrain", 128, 372, 32),
        ("pretrain", 128, 1, 32),
        ("pretrain", 16, 1, 16),
        ("finetune", 32, 172, 32),
        ("segment", 8, 78, 2),
        ("tokenizer", 32, 5, 32),
    ],
)
def test_few_steps_are_of_few_images(verb: str, batch: int, steps: int, smaller: int) -> None:
    assert auto.batch_of_few_steps(verb, batch, steps) == smaller
