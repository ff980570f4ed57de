"""Passes that are compiled: one graph, the same curve, the same bits after a stop, and only where that pays."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import log, metrics, same_weights, stopped_in_step
from tiny_runs import pretrain_config

from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.models.encoder import BeitEncoder
from beit.models.heads import MaskedImageModel
from beit.recipes.pretrain import pretrain
from beit.stages.auto.compilation import SECONDS, TIMES, require_compiler, settle_compilation
from beit.stages.session import Session
from beit.training.device import Compute
from beit.training.plan import Pace


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """`test` in a process of its own: autograd has threads after compiling, and no child of the process may train."""

    @functools.wraps(test)
    def run(*arguments: Any, **values: Any) -> None:
        process = os.fork()
        if process == 0:
            try:
                test(*arguments, **values)
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=open(os.dup(2), "w"))  # noqa: SIM115
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0

    return run


@pytest.mark.parametrize("sees", ["all", "visible"])
@pytest.mark.parametrize(("position", "bias"), [("sincos", "none"), ("none", "shared"), ("absolute", "block")])
@apart
def test_a_pass_is_one_graph(sees: Any, position: Any, bias: Any) -> None:
    config = EncoderConfig(
        image_size=(32, 32), patch_size=8, width=16, depth=2, num_heads=2,
        position=position, bias=bias, drop_path_rate=0.2, layer_scale_init=0.1,
    )  # fmt: skip
    model = MaskedImageModel(BeitEncoder(config), 8, sees, num_masked=8 if sees == "visible" else None)
    mask = torch.arange(16).view(1, 4, 4).expand(2, -1, -1) % 2 == 0
    images, tokens = torch.rand(2, 3, 32, 32), torch.randint(0, 8, (2, 4, 4))
    torch._dynamo.reset()
    graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.manual_seed(0)
    loss, _ = graph(images, mask, None, tokens, 8)
    torch.manual_seed(0)
    assert torch.equal(loss, model(images, mask, None, tokens, 8)[0])


def session(**values: Any) -> Session[Any]:
    config = pretrain_config(Path("images"), Path("run"), tokenizer="tokens", **values)
    made = Session("pretrain", config, Compute(torch.device("cpu")), None, False, False, 0.0)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("seconds", "compiled", "typed", "dry_run", "choice"),
    [
        (TIMES * SECONDS, 0.5, "auto", False, "on"),
        (TIMES * SECONDS, 0.99, "auto", False, "off"),
        (TIMES * SECONDS, None, "auto", False, "off"),
        (TIMES * SECONDS - 1, 0.5, "auto", False, "auto"),
        (TIMES * SECONDS, 0.5, "auto", True, "auto"),
        (TIMES * SECONDS, 0.5, "off", False, "off"),
    ],
)
def test_it_is_compiled_where_that_pays(
    seconds: float, compiled: float | None, typed: Any, dry_run: bool, choice: str
) -> None:
    def rehearse(config: Any) -> Pace:
        assert config.compile == "on"
        if compiled is None:
            raise RuntimeError("no compiler\nof any kind")
        return Pace(step=compiled)

    start = session(compile=typed)._replace(dry_run=dry_run)
    settled = settle_compilation(start, Pace(step=1.0), seconds, rehearse)
    assert settled.config.compile == choice
    assert settled.pace == Pace(step=0.5 if choice == "on" else 1.0)
    reasons = [choice.reason for choice in settled.choices]
    tried = seconds >= TIMES * SECONDS and typed == "auto" and not dry_run
    assert len(reasons) == tried
    if tried and compiled is None:
        assert "(no compiler)" in reasons[0]


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"--compile on needs a C\+\+ compiler"):
        require_compiler(torch.device("cpu"))


@pytest.mark.slow
@apart
def test_compiled_it_learns_the_same_and_goes_on_to_the_same_bits(
    images: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    values = {"tokenizer": str(trained_tokenizer), "drop_path_rate": 0.3, "save_every": "2", "log_every": 1}
    plain, whole, stopped = tmp_path / "plain", tmp_path / "whole", tmp_path / "stopped"
    pretrain(pretrain_config(images, plain, **values))
    values["compile"] = "on"
    pretrain(pretrain_config(images, whole, **values))
    with stopped_in_step(4):
        pretrain(pretrain_config(images, stopped, **values))
    pretrain(pretrain_config(images, stopped, **values))
    assert "continuing after step 2" in log(stopped)
    assert same_weights(whole, stopped)
    losses, compiled = ([line["loss"] for line in metrics(run) if "loss" in line] for run in (plain, whole))
    assert len(losses) == 4 and compiled == pytest.approx(losses, rel=1e-4)
    assert not same_weights(plain, whole), "nothing was compiled"
