"""`--extend-to`: a finished run goes on, from its end with a new warm-up, or without a seam from before its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_results import log, metrics, same_weights, stopped_in_step
from tiny_runs import pretrain_config

from beit.config.errors import UserError
from beit.config.pretrain import PretrainConfig
from beit.recipes.pretrain import pretrain
from beit.training.optim import Rates, constant_schedule, cosine_schedule
from beit.training.plan import Plan

pytestmark = pytest.mark.slow

PIXELS: dict[str, Any] = {"target": "pixels", "warmup_epochs": None, "log_every": 1, "save_every": "1000", "keep": 1}


def train(images: Path, out: Path, **values: Any) -> None:
    pretrain(pretrain_config(images, out, **{**PIXELS, **values}))


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def rates(run: Path) -> list[float]:
    return [record["lr"] for record in metrics(run) if "lr" in record]


def states(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "checkpoints").iterdir())


def test_a_constant_run_that_is_extended_ends_as_if_it_had_been_as_long_from_the_start(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    constant = {"schedule": "constant", "warmup_steps": 5, "ema_decay": 0.9}
    constant |= {"target": "tokens", "tokenizer": str(trained_tokenizer)}
    train(images, tmp_path / "once", steps=200, **constant)
    train(images, tmp_path / "run", steps=100, **constant)
    assert states(tmp_path / "run") == ["step-100", "step-90"]
    longer = {**constant, "steps": 100, "extend_to": "200"}
    with stopped_in_step(150):
        train(images, tmp_path / "run", **longer)
    assert status(tmp_path / "run")["state"] == "interrupted" and states(tmp_path / "run") == ["step-90"]
    train(images, tmp_path / "run", **longer)
    assert "continuing after step 90 of 200" in log(tmp_path / "run")
    assert same_weights(tmp_path / "once", tmp_path / "run")
    assert rates(tmp_path / "once") == rates(tmp_path / "run")
    assert states(tmp_path / "run") == ["step-180", "step-200"]
    done = status(tmp_path / "run")
    assert (done["state"], done["step"], done["steps"]) == ("done", 200, 200)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 200


def test_a_run_whose_rate_has_fallen_is_warmed_up_again(images: Path, tmp_path: Path) -> None:
    short = {"epochs": 2.0, "steps": None, "warmup_steps": 2}  # 32 images, so 8 steps
    train(images, tmp_path / "run", **short)
    before = rates(tmp_path / "run")
    train(images, tmp_path / "run", **short, extend_to="4e")
    after = rates(tmp_path / "run")
    # The same warm-up and cosine once more, over the steps that were added.
    assert len(before) == 8 and after == pytest.approx([*before, *before])
    assert "continuing after step 8 of 16" in log(tmp_path / "run")
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    train(images, tmp_path / "run", **short, extend_to="4e")  # there is nothing left to do
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == size
    train(images, tmp_path / "run", **short, extend_to="20")  # and from there, on
    assert rates(tmp_path / "run")[:16] == after and len(rates(tmp_path / "run")) == 20
    assert status(tmp_path / "run")["step"] == 20
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (values["steps"], values["ends"]) == (8, [8, 16])
    # Whichever state a restart falls back on, every step has the rate that it had.
    twice = Plan(PretrainConfig(**values), 32)
    assert [twice.learning_rate(cosine_schedule, step) for step in range(20)] == rates(tmp_path / "run")
    with pytest.raises(UserError, match="--extend-to 18 is 18 steps, and the run has 20; ask for more"):
        train(images, tmp_path / "run", **short, extend_to="18")


def test_what_cannot_be_extended_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--extend-to goes on with a finished run, and --out .* holds none"):
        train(images, tmp_path / "run", extend_to="8")
    with stopped_in_step(3):
        train(images, tmp_path / "run", save_every="1")
    with pytest.raises(UserError, match="--extend-to is for a finished run"):
        train(images, tmp_path / "run", save_every="1", extend_to="8")
    train(images, tmp_path / "run")
    with pytest.raises(UserError, match="--extend-to 4 is 4 steps, and the run has 4; ask for more"):
        train(images, tmp_path / "run", extend_to="4")
    with pytest.raises(UserError, match=r"lr was 0\.0015 and is now 0\.5"):
        train(images, tmp_path / "run", extend_to="8", lr=0.5)
    with pytest.raises(UserError, match=r"neither steps \(2000\) nor epochs"):
        train(images, tmp_path / "run", extend_to="1h")
    before = status(tmp_path / "run")
    assert (before["state"], before["step"]) == ("done", 4)
    train(images, tmp_path / "run", extend_to="8")
    with pytest.raises(UserError, match=r"extend_to was .* and is now left out"):
        train(images, tmp_path / "run")


def test_the_rate_of_a_constant_schedule() -> None:
    found = [constant_schedule(step, Rates(1.0, 0.0, 3, 20)) for step in range(20)]
    assert found == pytest.approx([0, 0.5, *[1.0] * 17, 0.5])
