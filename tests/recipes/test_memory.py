"""The memory that training takes is measured, and activations are computed again where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import finetune_config, tokenizer_config
from torch import nn

import beit
from beit import UserError
from beit.data.batches import ImageBatch
from beit.recipes.finetune import finetune
from beit.recipes.tokenizer.run import tokenizer
from beit.stages.auto import memory
from beit.training.device import Compute
from beit.training.method import Evaluation, Learner, Method, Noise, StepOutput

CPU = Compute(torch.device("cpu"))


def test_what_a_pass_keeps_is_counted_and_the_model_left_as_it_was() -> None:
    """The square of 4 outputs keeps them, and the product 3 x 8 x 8 inputs and no weight that is there anyway."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192, affine=False), nn.Linear(192, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def step(model: nn.Module, batch: ImageBatch, index: int, noise: Noise) -> StepOutput:
        return StepOutput(model(batch.image.float()).square().sum(), {})

    method = Method(learner=Learner(model=model, step=step), evaluation=Evaluation(evaluate_batch=lambda m, b: {}))
    batch = ImageBatch(torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8))
    # The norm's input has no gradient, so that the norm keeps nothing.
    assert memory.bytes_for_an_image(method, batch, CPU, "float32") == 4 * (192 + 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["dvae", "fsq"])
def test_recomputed_activations_of_a_tokenizer_change_no_gradient(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 25, "width": 8, "stride": 4, "blocks_per_group": 1, "code_width": 8}
    config = tokenizer_config(Path("images"), Path("run"), kind=kind, **sizes).architecture()
    model = (beit.tokenizers.dvae.DiscreteVAE if kind == "dvae" else beit.tokenizers.fsq.FiniteScalarVAE)(config)
    images, uniform = torch.rand(2, 3, 16, 16), torch.rand(2, 4, 4, 25)

    def gradients(recompute: bool) -> list[torch.Tensor]:
        model.zero_grad()
        model.encoder.checkpoint_activations = model.decoder.checkpoint_activations = recompute
        torch.manual_seed(1)
        outputs = model(images, 1.0, uniform) if kind == "dvae" else model(images)
        outputs[1].square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    for ours, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("verb", ["tokenizer", "finetune"])
def test_activations_are_computed_again_where_they_do_not_fit_and_the_run_is_the_same(
    verb: str,
    images: Path,
    colours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, make, data = {
        "tokenizer": (tokenizer, tokenizer_config, images),
        "finetune": (finetune, finetune_config, colours),
    }[verb]
    run(make(data, tmp_path / "roomy"))
    assert "checkpoint_activations" not in capsys.readouterr().out
    monkeypatch.setattr(memory, "SPARE", 1.0)
    run(make(data, tmp_path / "tight"))
    assert "checkpoint_activations on: passes of 8 images take" in capsys.readouterr().out
    words = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("roomy", "tight")]
    assert [values["checkpoint_activations"] for values in words] == ["off", "on"]
    roomy, tight = (beit.load_model(tmp_path / name).state_dict() for name in ("roomy", "tight"))
    assert all(torch.equal(roomy[name], tight[name]) for name in roomy)


def test_what_takes_more_memory_than_there_is_is_refused_before_it_begins(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finetune_config(colours, tmp_path / "run", batch_size=32, checkpoint_activations="off")
    finetune(config, dry_run=True)
    gib = float(capsys.readouterr().out.partition(", about ")[2].partition(" GiB")[0])
    monkeypatch.setattr(memory, "memory_of", lambda device: 0.8 * gib * 2**30)
    with pytest.raises(UserError, match=r"takes about .* GiB of memory, .*; --accumulate (2|4|8) takes fewer"):
        finetune(config)
    assert not (tmp_path / "run").exists() and "will be refused" not in capsys.readouterr().out
    finetune(config, dry_run=True)
    told = capsys.readouterr().out
    assert told.count("here it will be refused: this run takes about") == 1 and "--accumulate" in told
    finetune(finetune_config(colours, tmp_path / "run", batch_size=2 * (10**9 + 7)), dry_run=True)  # of a prime
    assert "there are 0.0 GiB; " in capsys.readouterr().out
    monkeypatch.setattr(memory, "memory_of", lambda device: 1)
    with pytest.raises(UserError, match="choose a smaller network"):
        finetune(config)


def test_auto_makes_the_fewest_passes_that_fit_once(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what fits less than all 32 images at once; a restart where there is more memory goes on as it began."""
    run, config_of = tmp_path / "run", {"batch_size": 32, "accumulate": "auto", "checkpoint_activations": "off"}
    config = finetune_config(colours, run, **config_of)
    finetune(config, dry_run=True)
    said = capsys.readouterr().out
    assert "accumulate 1: passes of 32 images take" in said
    gib = float(said.partition(", about ")[2].partition(" GiB")[0])
    monkeypatch.setattr(memory, "memory_of", lambda device: 0.9 * gib * 2**30 / (1 - memory.SPARE))
    with monkeypatch.context() as patch:
        patch.setattr("beit.training.loop.Loop.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert (
        f"accumulate {values['accumulate']}: passes of {32 // values['accumulate']} images take"
        in (run / "log.txt").read_text()
    )
    assert values["accumulate"] in (2, 4, 8, 16)
    monkeypatch.setattr(memory, "memory_of", lambda device: 2**40)
    finetune(config)
    assert yaml.safe_load((run / "config.yaml").read_text())["accumulate"] == values["accumulate"]
    assert "continuing after step" in (run / "log.txt").read_text()


@pytest.mark.parametrize(("repeats", "share", "splits"), [(1, 12, [1, 2, 3, 6]), (2, 16, [1, 2, 4]), (1, 5, [1])])
def test_a_pass_has_whole_pairs_of_images(repeats: int, share: int, splits: list[int], tmp_path: Path) -> None:
    config = finetune_config(tmp_path, tmp_path / "run", repeats=repeats)
    assert memory._splits(config, share) == splits


@pytest.mark.parametrize("recompute", ["on", "off"])
def test_the_share_of_the_machines_rate_is_in_the_log(
    recompute: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate of one multiply-add a second it is those of an image times the images of a second; what is computed
    again to save memory is no work."""
    monkeypatch.setattr("beit.stages.train.rate_of", lambda compute, precision: 1.0)
    finetune(finetune_config(colours, tmp_path / "run", steps=10, checkpoint_activations=recompute))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    works = [line["mfu"] / line["images_per_second"] for line in lines if "mfu" in line]
    # A block of width D on T tokens, forward: 12 D^2 T in its layers and 2 D T^2 in attention; twice that backward,
    # but for the patches' projection, whose pixels need no gradient.
    width, tokens, depth, classes = 16, 17, 2, len(beit.load_model(tmp_path / "run").head.bias)
    block = 12 * width**2 * tokens + 2 * width * tokens**2
    assert works == pytest.approx([3 * (depth * block + width * classes) + 2 * 16 * width * 3 * 8**2] * 5)
