"""The training verbs end to end on a CPU: what they leave on disk, their ablations, and their refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import log, metrics, same_weights, stopped_in_step
from tiny_runs import finetune_config, pretrain_config, probe_config, tokenizer_config

import beit
from beit.config.errors import UserError
from beit.config.files import to_yaml
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import InfoConfig
from beit.config.values import counted
from beit.recipes.finetune import finetune
from beit.recipes.info import info
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.tokenizer.run import tokenizer
from beit.stages.auto.rehearsal import Pace

pytestmark = pytest.mark.slow


def unfinish(run: Path) -> None:
    """As if the run had been killed after its last checkpoint."""
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running"}))


def test_a_tokenizer_run_leaves_what_it_promises(trained_tokenizer: Path) -> None:
    run = trained_tokenizer
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    training = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in training] == [2, 4]
    wanted = {"lr", "grad_norm", "images_per_second", "data_wait", "kl", "perplexity", "codes_used"}
    assert wanted <= training[-1].keys()
    evaluation = metrics(run)[-1]
    assert {"eval/reconstruction_mae", "eval/cell_mean_mae", "eval/kl"} <= evaluation.keys()
    assert list((run / "samples").glob("step-000004-reconstructions.*"))
    assert "skipped" in (run / "log.txt").read_text()
    model = beit.load_tokenizer(run)
    tokens = model.encode(torch.rand(2, 3, 16, 16))
    assert tokens.shape == (2, 4, 4)
    assert model.decode(tokens).shape == (2, 3, 16, 16)


def test_pretraining_logs_its_baselines_and_names_its_tokenizer(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(pretrain_config(images, run, tokenizer=str(trained_tokenizer)))
    last = metrics(run)[-1]
    figures = {"loss", "token_accuracy", "unigram_loss", "position_unigram_loss", "copy_neighbour_loss"}
    assert {f"eval/{name}" for name in figures} <= last.keys()
    assert last["eval/loss"] == pytest.approx(math.log(16), abs=1)
    # A mixture can always fall back on the unigram distribution.
    assert last["eval/copy_neighbour_loss"] <= last["eval/unigram_loss"] + 1e-6
    identity = json.loads((trained_tokenizer / "model/model.json").read_text())["weights_sha256"]
    assert json.loads((run / "model/model.json").read_text())["tokenizer"] == identity
    assert beit.load_encoder(run)(torch.rand(1, 3, 32, 32)).shape == (1, 17, 16)
    assert list((run / "samples").glob("step-000004-masked.*"))


@pytest.mark.parametrize(
    "ablation",
    [
        {"masking": "random"},
        {"masking": "none", "predict": "all"},
        {"predict": "all"},
        {"target": "pixels"},
        {"target": "pixels", "masking": "random"},
        {"position": "absolute", "layer_scale_init": None, "normalization": "imagenet"},
        {"views": "exact", "mask_count": "at_most"},
        {"encoder_sees": "visible", "masking": "random", "num_masked": "75%"},
        {"encoder_sees": "visible", "predict": "all", "bias": "block", "position": "absolute"},
    ],
    ids=str,
)
def test_every_ablation_of_table_4_trains(
    ablation: dict[str, Any], images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    target = {} if ablation.get("target") == "pixels" else {"tokenizer": str(trained_tokenizer)}
    pretrain(pretrain_config(images, run, steps=2, **target, **ablation))
    assert math.isfinite(metrics(run)[-1]["eval/loss"])


def test_a_stopped_run_continues_to_the_same_weights(images: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    values = {"tokenizer": str(trained_tokenizer), "save_every": "1", "ema_decay": 0.9, "drop_path_rate": 0.5}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain(pretrain_config(images, whole, **values))

    with stopped_in_step(3):
        pretrain(pretrain_config(images, stopped, **values))
    pretrain(pretrain_config(images, stopped, **values))
    assert same_weights(whole, stopped)
    losses = [[line.get("loss") for line in metrics(run)] for run in (whole, stopped)]
    assert losses[0] == losses[1]


def test_a_finished_run_is_left_alone_and_another_configuration_refused(
    images: Path, trained_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained_tokenizer / "metrics.jsonl").read_bytes()
    tokenizer(tokenizer_config(images, trained_tokenizer))
    assert "nothing to do" in capsys.readouterr().out
    assert (trained_tokenizer / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"vocab_size was 16 and is now 32"):
        tokenizer(tokenizer_config(images, trained_tokenizer, vocab_size=32))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_finished_run_whose_model_is_lost_makes_it_again(
    damage: str, images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    run, model = tmp_path / "run", tmp_path / "run" / "model"
    shutil.copytree(trained_tokenizer, run)
    if damage == "gone":
        shutil.rmtree(model)
    else:
        (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])
    tokenizer(tokenizer_config(images, run))
    assert same_weights(run, trained_tokenizer) and "continuing after step 4 of 4" in log(run)


def test_a_run_and_its_images_may_move(images: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    here, run = tmp_path / "here", tmp_path / "run"
    shutil.copytree(images, here)
    with stopped_in_step(3):
        tokenizer(tokenizer_config(here, run, save_every="1"))
    there, moved = here.rename(tmp_path / "there"), run.rename(tmp_path / "moved")
    command = info(InfoConfig(path=str(moved))).results["run"]["to continue"].split()
    assert command[-2:] == ["--out", str(moved)]
    content = (there / "00.jpg").read_bytes()
    (there / "00.jpg").write_bytes((there / "01.jpg").read_bytes())
    with pytest.raises(UserError, match="began with other images"):
        tokenizer(tokenizer_config(there, moved, save_every="1"))
    (there / "00.jpg").write_bytes(content)
    tokenizer(tokenizer_config(there, moved, save_every="1"))
    assert same_weights(moved, trained_tokenizer)
    assert tokenizer(tokenizer_config(there, moved, save_every="1")).config.out == str(moved), "finished before"


def test_a_stored_value_that_is_none_is_refused(images: Path, tmp_path: Path) -> None:
    with stopped_in_step(3):
        tokenizer(tokenizer_config(images, tmp_path / "run", precision="auto"))
    file = tmp_path / "run" / "config.yaml"
    file.write_text(re.sub(r"precision: \w+", "precision: float31", file.read_text()))
    with pytest.raises(UserError, match="precision is 'float31'"):
        tokenizer(tokenizer_config(images, tmp_path / "run", precision="auto"))


def test_a_finished_run_needs_its_images_no_more(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, copy)
    tokenizer(tokenizer_config(copy, run, steps=1))
    shutil.rmtree(copy)
    tokenizer(tokenizer_config(copy, run, steps=1))
    assert "nothing to do" in capsys.readouterr().out


def test_a_tokenizer_that_changed_since_the_run_began_is_noticed(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    other, run = tmp_path / "tokenizer", tmp_path / "run"
    shutil.copytree(trained_tokenizer, other)
    pretrain(pretrain_config(images, run, tokenizer=str(other), steps=1))
    unfinish(run)
    shutil.rmtree(other)
    tokenizer(tokenizer_config(images, other, seed=1, steps=1))
    with pytest.raises(UserError, match="other tokenizer"):
        pretrain(pretrain_config(images, run, tokenizer=str(other), steps=1))


def test_held_back_images_that_are_all_damaged_do_not_end_the_run(images: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, folder / "train")
    (folder / "val").mkdir()
    (folder / "val" / "broken.jpg").write_bytes((images / "broken.jpg").read_bytes())
    tokenizer(tokenizer_config(folder, run, steps=1))
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert not any(name.startswith("eval/") for record in metrics(run) for name in record)
    assert "step 1: no held-back image can be read" in log(run)


def test_two_ranks_learn_what_one_learns(images: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    """`--devices 2` on a CPU: two processes of half the batch each."""
    one, two = tmp_path / "one", tmp_path / "two"
    values = {"tokenizer": str(trained_tokenizer), "steps": 2, "drop_path_rate": 0.0}
    pretrain(pretrain_config(images, one, **values))
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(pretrain_config(images, two, **values)))
    command = [sys.executable, "-m", "beit", "pretrain", "--config", str(file), "--devices", "2"]
    subprocess.run(command, check=True, timeout=200, stdout=subprocess.DEVNULL)
    first, second = metrics(one)[-1], metrics(two)[-1]
    for name in ("eval/loss", "eval/token_accuracy", "eval/copy_neighbour_loss", "eval/effective_rank"):
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_a_run_told_to_stop_saves_and_leaves_with_status_75(images: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "config.yaml"
    file.write_text(to_yaml(tokenizer_config(images, run, steps=100_000, log_every=1, evaluations=1)))
    command = [sys.executable, "-m", "beit", "tokenizer", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        message = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert f"step {status['step']}" in message
    assert (run / "checkpoints" / f"step-{status['step']}").is_dir()


def test_a_dry_run_writes_nothing(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer(tokenizer_config(images, tmp_path / "run"), dry_run=True)
    text = capsys.readouterr().out
    assert "4 steps of 8 images" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("length", "warmup"), [({"steps": 10}, 2), ({"steps": None, "epochs": 2}, 1)])
def test_a_run_is_never_all_warm_up(
    length: dict[str, Any], warmup: int, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"warmup_epochs": None, "warmup_steps": 10, **length}
    tokenizer(tokenizer_config(images, tmp_path / "run", **values), dry_run=True)
    told = f"after {counted(warmup, 'step')} of warm-up, not the 10 that the run would end in"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "config"), [(finetune, finetune_config), (probe, probe_config), (pretrain, pretrain_config)]
)
def test_a_batch_larger_than_the_data_is_told(
    recipe: Any, config: Any, colours: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {"target": "pixels"} if recipe is pretrain else {"init": str(pretrained)}
    recipe(config(colours, tmp_path / "run", **start), dry_run=True)
    assert "more than once" not in capsys.readouterr().out
    recipe(config(colours, tmp_path / "run", **{**start, "batch_size": 1024}), dry_run=True)
    assert "a batch of 1,024 shows some images more than once\n" in capsys.readouterr().out


def test_a_tokenizer_of_another_grid_is_refused_with_the_remedy(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    config = {"tokenizer": str(trained_tokenizer), "image_size": 64}
    with pytest.raises(UserError, match=r"4x4 tokens.*8x8 patches.*--token-image-size 32 32"):
        pretrain(pretrain_config(images, tmp_path / "run", **config))
    pretrain(pretrain_config(images, tmp_path / "run", **config, token_image_size=32, steps=1))


def test_images_that_changed_since_the_run_began_are_noticed(images: Path, tmp_path: Path) -> None:
    copy, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, copy)
    tokenizer(tokenizer_config(copy, run, steps=1))
    unfinish(run)
    (copy / "01.jpg").rename(copy / "another.jpg")
    with pytest.raises(UserError, match="other images"):
        tokenizer(tokenizer_config(copy, run, steps=1))


def test_damage_that_a_start_has_met_is_counted_at_the_end_of_the_next(images: Path, tmp_path: Path) -> None:
    """The fifth step ends the first epoch; the seventh, of the next start, does not show the damaged file again."""
    config = pretrain_config(images, tmp_path / "run", target="pixels", save_every="1", steps=7, holdout=0.1, seed=1)
    with stopped_in_step(7):
        pretrain(config)
    met = log(tmp_path / "run")
    assert met.count("skipped ") == 1 and "damaged files" not in met
    pretrain(config)
    again = log(tmp_path / "run")[len(met) :]
    assert again.count("skipped") == 1 and "damaged files skipped: 1\n" in again


def test_a_run_that_nobody_waits_for_has_to_be_meant(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beit.stages.train.measure", lambda *arguments, **options: Pace(1e5, 1.0, 0.0))
    config = TokenizerConfig(data=str(images), out=str(tmp_path / "run"), preset="tiny", workers=0)
    with pytest.raises(UserError, match=r"about .* on this machine; --budget 1h .* --steps \d+ says that"):
        tokenizer(config)
    assert not (tmp_path / "run").exists()
    assert tokenizer(config, dry_run=True).seconds > 1e6  # which only says so


def test_a_run_that_has_begun_was_meant(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tokenizer_config(images, tmp_path / "run").typed
    config = TokenizerConfig(**{key: value for key, value in small.items() if key != "steps"} | {"preset": "tiny"})
    with stopped_in_step(2):
        tokenizer(config)
    monkeypatch.setattr("beit.stages.train.measure", lambda *arguments, **options: Pace(1e5, 1.0, 0.0))
    with stopped_in_step(3):
        tokenizer(config)
