"""Every knob of a training verb arrives where it works: runs whose every knob is away from its default, as far as the
first step."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import knob_tables as knobs
import pytest
import torch
import torch.nn.functional as F
from arrivals import Arrived, arrive
from tiny_runs import finetune_config, pretrain_config, probe_config, segment_config, tokenizer_config
from torch import Tensor

from beit import presets
from beit.cli import main as cli
from beit.config.errors import UserError
from beit.data.batches import LabeledBatch
from beit.data.views.mixing import BatchMixing, smoothed
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.segment import segment
from beit.recipes.tokenizer.run import tokenizer
from beit.training.device import open_compute
from beit.training.method import Noise
from beit.training.run.trackers import open_trackers

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------------------------
# The runs, each with the knobs that its table leaves out; names of fixtures stand for their folders

VERBS: Mapping[str, tuple[Callable[[Any], None], Callable[..., Any], str]] = {
    "tokenizer": (tokenizer, tokenizer_config, "images"),
    "pretrain": (pretrain, pretrain_config, "images"),
    "finetune": (finetune, finetune_config, "colours"),
    "probe": (probe, probe_config, "colours"),
    "segment": (segment, segment_config, "regions"),
}
RUNS: Mapping[str, tuple[str, knobs.Knobs, Mapping[str, Any]]] = {
    "shared": ("tokenizer", knobs.SHARED, {"warmup_epochs": None, "eval_images": 100}),
    "length": ("tokenizer", knobs.LENGTH, {}),
    "tokenizer": ("tokenizer", knobs.TOKENIZER, {}),
    "kmeans": ("tokenizer", knobs.KMEANS, {}),
    "features": ("tokenizer", knobs.FEATURES, {"teacher": "pretrained", "image_size": 32}),
    "pretrain": ("pretrain", knobs.PRETRAIN, {"tokenizer": "trained_tokenizer"}),
    "going_on": ("pretrain", knobs.GOING_ON, {"init": "pretrained", "tokenizer": "trained_tokenizer"}),
    "pixels": ("pretrain", knobs.PIXELS, {}),
    "bare": ("pretrain", knobs.BARE, {}),
    "finetune": ("finetune", knobs.FINETUNE, {}),
    "from_encoder": ("finetune", knobs.FROM_ENCODER, {"init": "pretrained"}),
    "frozen": ("finetune", knobs.FROZEN, {"init": "pretrained"}),
    "probe": ("probe", knobs.PROBE, {"init": "pretrained"}),
    "kept": ("probe", knobs.KEPT, {"init": "pretrained"}),
    "segment": ("segment", knobs.SEGMENT, {}),
    "pup": ("segment", knobs.PUP, {"init": "pretrained", "layers": (0, 1)}),
    "frozen_segmenter": ("segment", knobs.FROZEN, {"init": "pretrained"}),
}


@pytest.fixture(scope="module")
def arrived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Arrived]:
    """The run of that name in RUNS, made once."""

    @cache
    def run(name: str) -> Arrived:
        verb, table, others = RUNS[name]
        recipe, config, data = VERBS[verb]
        values = {**others, **{name: knob.value for name, knob in table.items()}}
        for name in {"init", "tokenizer", "teacher"} & values.keys():
            values[name] = str(request.getfixturevalue(values[name]))
        out = tmp_path_factory.mktemp("runs") / "run"
        return arrive(recipe, config(request.getfixturevalue(data), out, **values))

    return run


@pytest.mark.parametrize(("run", "name"), [(run, name) for run, (_, table, _) in RUNS.items() for name in table])
def test_a_knob_arrives(run: str, name: str, arrived: Callable[[str], Arrived]) -> None:
    knob = RUNS[run][1][name]
    value, expected = knob.place(arrived(run)), knob.value if knob.expected is None else knob.expected
    assert value == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "cutmix_share", "label_smoothing"),
    [(0, 0, 0.5, 0.2), (0.3, 0, 0.5, 0), (0, 0.3, 0.5, 0), (0.3, 0.4, 0.0, 0.1), (0.3, 0.4, 1.0, 0.1)],
)
def test_a_step_smooths_and_then_mixes(
    mixup: float, cutmix: float, cutmix_share: float, label_smoothing: float, colours: Path, tmp_path: Path
) -> None:
    values = {
        "mixup": mixup,
        "cutmix": cutmix,
        "cutmix_share": cutmix_share,
        "label_smoothing": label_smoothing,
    }
    run = arrive(finetune, finetune_config(colours, tmp_path / "run", **values))
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 2, 1, 2])

    def model(images: Tensor) -> Tensor:
        """Logits that differ from class to class and image to image."""
        return torch.stack([images[:, :, :16].sum((1, 2, 3)), images.square().sum((1, 2, 3))], 1) @ weights

    weights = torch.linspace(-0.01, 0.02, 6).reshape(2, 3)
    loss = run.step(model, LabeledBatch(images, labels)).loss
    targets, rng = smoothed(F.one_hot(labels, 3), label_smoothing), Noise(0, 0, range(4), images.device).of_batch()
    images, targets = BatchMixing(mixup, cutmix, cutmix_share)(images, targets, rng)
    torch.testing.assert_close(loss, F.cross_entropy(model(images), targets))


def test_figures_go_where_they_are_asked_for(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    tracked = SimpleNamespace(log=lambda figures, step: logged.append((step, figures)), finish=logged.clear)
    wandb = SimpleNamespace(init=lambda project, **options: logged.append(project) or tracked)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = tokenizer_config(images, tmp_path / "run", tensorboard=True, wandb="flowers")
    run: Any = SimpleNamespace(path=tmp_path, identity="id", config={})
    with open_trackers(config, run, 0, open_compute("cpu")) as trackers:
        for track in trackers:
            track(3, {"loss": 0.5})
        assert logged == ["flowers", (3, {"loss": 0.5})]
    assert logged == [] and len(list((tmp_path / "tensorboard").glob("events*"))) == 1


def test_a_device_is_where_a_run_computes(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device mps is not available on this machine; choose auto"):
        tokenizer(tokenizer_config(images, tmp_path / "run", device="mps"))
    assert not (tmp_path / "run").exists()
    tokenizer(tokenizer_config(images, tmp_path / "run", device="cpu", steps=1))
    machine = json.loads((tmp_path / "run" / "status.json").read_text())["machine"]
    assert machine["device"] == "cpu"


ELSEWHERE = {
    *("preset", "budget", "extend_to"),  # in tests of their own
    *("data", "eval_data", "out", "devices", "init", "tokenizer", "teacher"),  # in runs to the end
    *("labels", "label_maps", "multilabel", "classes", "class_weights"),  # likewise
    *("pixels", "ends"),  # found, and never typed; in the tests of other images and of runs that are extended
    "layout",  # in the tests of layouts
    *("mixup", "cutmix", "cutmix_share", "label_smoothing", "tensorboard", "wandb"),  # above
    "device",  # above
    *("clip_grad", "keep"),  # in the tests of the loop
    *(
        "max_megapixels",
        "max_gibibytes",
        "value_range",
    ),  # handed on with the holdout; seen in finetune's table
}


@pytest.mark.parametrize("verb", presets.VERBS)
def test_no_knob_is_left_out(verb: str) -> None:
    config_type = cli.VERBS[verb].config
    tables = [table for name, table, _ in RUNS.values() if name == verb]
    seen = ELSEWHERE.union(knobs.SHARED, knobs.LENGTH, *tables)
    assert {field.name for field in dataclasses.fields(config_type)} <= seen


@pytest.mark.parametrize(
    ("make", "wrong", "words"),
    [
        (pretrain_config, {"masking": "blocks"}, "--masking must be one of 'block', 'random', 'none', not 'blocks'"),
        (segment_config, {"decoder": "UPerNet"}, "--decoder must be one of 'upernet', 'pup', not 'UPerNet'"),
    ],
)
def test_a_word_that_is_none_is_refused_in_python_too(
    make: Callable[..., Any], wrong: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path, tmp_path / "run", **wrong)
    assert str(error.value) == words
