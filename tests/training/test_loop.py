"""What fit() computes, alone and on two ranks, and how it stops when it must not go on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from toy_recipe import Toy, ToyBatches, train

from beit.config.errors import RunFailed, UserError
from beit.training.device import Compute, Precision, choose_device, choose_precision, open_compute, seed_of
from beit.training.method import Evaluation, Learner, Method
from beit.training.metrics import MetricWindow, json_ready, line_of
from beit.training.nonfinite import NonFiniteGuard
from beit.training.optim import adamw
from beit.training.plan import Job, Pace, Plan
from beit.training.signals import StopRequested, StopSignals
from beit.training.state import Evaluator, TrainingState

HERE = Path(__file__).parent
SPLIT = Toy(batch_norm=False, accumulate=2)
"""A toy whose result does not depend on how its batches are split."""


def weights_of(run: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(run / "model" / "weights.pt")
    return weights


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run: Path, other: Path, tolerance: float) -> None:
    weights, others = weights_of(run), weights_of(other)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=tolerance)
    for mine, theirs in zip(records_of(run), records_of(other), strict=True):
        for name in ("step", "epoch", "images", "loss", "lr", "grad_norm", "eval/loss"):
            assert mine.get(name) == pytest.approx(theirs.get(name), abs=tolerance), name


def test_one_pass_or_four_make_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.Dropout.forward", lambda self, inputs: inputs)
    for accumulate in (1, 4):
        train(tmp_path / str(accumulate), dataclasses.replace(SPLIT, accumulate=accumulate))
    assert_same_training(tmp_path / "1", tmp_path / "4", 1e-6)


def torchrun(out: Path, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    toy = [
        str(HERE / "toy_recipe.py"),
        str(out),
        "accumulate=1",
        "batch_norm=0",
        "nonfinite=skip",
        "poison=4",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, *toy, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_two_ranks_train_stop_and_go_on_as_one(tmp_path: Path) -> None:
    """Dropout included: what a pass draws depends on its place in the batch, wherever it runs.

    Rank 1 alone has a loss that is not finite, which both must skip, and rank 1 alone is sent SIGTERM.
    """
    toy = dataclasses.replace(SPLIT, nonfinite="skip", poison=(4,))
    assert train(tmp_path / "alone", toy)["skipped_steps"] == 1
    stopped = torchrun(tmp_path / "two", "killed_at=9")
    assert stopped.stderr.count("interrupted and saved at step 10 of 24") == 2, stopped.stderr
    status = json.loads((tmp_path / "two" / "status.json").read_text())
    assert (status["state"], status["step"], status["machine"]["processes"]) == ("interrupted", 10, 2)

    shutil.copytree(tmp_path / "two", tmp_path / "then-one")
    train(tmp_path / "then-one", toy)
    assert (
        "a step has 1 x 2 passes instead of 2 x 1: sums are rounded otherwise"
        in (tmp_path / "then-one" / "log.txt").read_text()
    )
    assert_same_training(tmp_path / "then-one", tmp_path / "alone", 2e-6)
    stored = yaml.safe_load((tmp_path / "then-one" / "config.yaml").read_text())
    assert stored["accumulate"] == 2

    done = torchrun(tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("continuing after step 10") == 1, "only the main rank speaks"
    assert_same_training(tmp_path / "two", tmp_path / "alone", 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_or_silent_ends_the_other(number: signal.Signals, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    mishap = ["accumulate=1", "batch_norm=0", "timeout=10s", "killed_at=9", f"killed_by={int(number)}"]
    command = [sys.executable, str(HERE / "toy_recipe.py"), str(tmp_path / "run"), *mishap]
    main, other = (
        subprocess.Popen(command, env={**os.environ, **place, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    )
    try:
        said = main.communicate(timeout=120)[1]
    finally:
        main.kill()
        other.kill()
        other.communicate()
    assert main.returncode == 1
    assert "rank 0 lost touch with another rank in step 10; the checkpoint of step 9 is intact" in said


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_nothing_is_updated_from_a_step_that_is_not_finite(fused: bool, policy: Any) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
    guard = NonFiniteGuard(policy)

    def step(gradient: float, bad: bool) -> Tensor:
        parameter.grad = torch.full((3,), gradient)
        guard.update(optimizer, torch.tensor(bad))
        return parameter.detach().clone()

    first = step(1.0, False)
    moments = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    assert torch.equal(step(float("nan"), True), first)
    assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in moments.items())
    # A host that has not noticed yet goes on; when it is to stop, nothing more may change.
    assert torch.equal(step(1.0, False), first) == (policy == "stop")


def test_a_run_stops_at_the_step_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed,
        match=r"^step 14: the loss \(nan on this rank\) .*not finite, and nothing was.*--overwrite to start",
    ):
        train(tmp_path / "run", Toy(poison=(13,)))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 12) and "step 14" in status["reason"]


def test_a_run_skips_steps_that_are_not_finite_until_there_are_too_many(tmp_path: Path) -> None:
    results = train(tmp_path / "skip", Toy(poison=(5, 13), nonfinite="skip"))
    assert results["skipped_steps"] == 2
    assert all(record["loss"] > 0 for record in records_of(tmp_path / "skip") if "loss" in record)
    with pytest.raises(RunFailed, match=r"step 22: .*20 times on end"):
        train(tmp_path / "many", Toy(poison=tuple(range(2, 24)), nonfinite="skip"))


def test_a_lack_of_memory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(loss: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("torch.autograd.backward", backward)
    with pytest.raises(RunFailed, match=r"out of memory in step 1, .*--accumulate 2: double --accumulate"):
        train(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("asked", [True, False])
def test_ranks_leave_a_measurement_together(asked: bool) -> None:
    """One of two that was asked to stop, and leaves at once, and the other, which comes to the end."""

    class Ranks(Compute):
        def largest(self, value: int) -> int:
            questions.append(value)
            return 1

    def measure(model: nn.Module, precision: Precision, stop: StopSignals) -> dict[str, float]:
        stop.poll()
        return {}

    questions: list[int] = []
    compute, stop = Ranks(torch.device("cpu"), world=2), StopSignals()
    stop.requested = asked
    state = TrainingState(nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)]), {}, None, "stop")
    evaluation = Evaluation(evaluate_batch=lambda model, batch: {})
    method = Method(learner=Learner(model=state.model), evaluation=evaluation)
    job = Job(method, ToyBatches(SPLIT, compute, lambda: None), Plan(SPLIT, 8), compute, "float32")
    evaluator = Evaluator(job, state, stop)
    with pytest.raises(StopRequested):
        evaluator.measure(measure)
    assert questions == [asked]
    assert state.model.training, "as it was"


def test_gradients_are_clipped_and_reported_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    update = NonFiniteGuard.update

    def watch(guard: NonFiniteGuard, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters])))
        update(guard, optimizer, bad)

    monkeypatch.setattr(NonFiniteGuard, "update", watch)
    train(tmp_path / "run", Toy(clip_grad=0.01, steps=4, log_every=1))
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    assert all(record["grad_norm"] > 0.1 for record in records_of(tmp_path / "run") if "grad_norm" in record)


def test_results_name_the_best_evaluation(tmp_path: Path) -> None:
    results = train(tmp_path / "run", Toy(ema_decay=None))
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    evaluations = [record for record in records_of(tmp_path / "run") if "eval/size" in record]
    assert [record["step"] for record in evaluations] == [8, 16, 24]
    best = min(evaluations, key=lambda record: record["eval/size"])
    assert results["best"]["step"] == best["step"] == 8
    assert results["last"]["eval/loss"] == evaluations[-1]["eval/loss"]
    assert (results["steps"], results["epochs"], results["images"]) == (24, 4.0, 192)
    assert results["parameters"] == 6 * 32 + 32 + 64 + 32 * 4 + 4


def test_ema_follows_its_closed_form() -> None:
    model = nn.BatchNorm1d(2)
    optimizer = adamw([{"params": list(model.parameters())}], lr=1.0)
    state = TrainingState(model, optimizer, {}, ema_decay=0.4, nonfinite="stop")
    assert state.ema is not None
    expected = 1.0
    for step in range(6):
        state.step = step
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(step)  # type: ignore[union-attr]
            model.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        state.update_ema()
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(state.ema.weight, torch.full((2,), expected))
    assert state.ema.num_batches_tracked == 5
    assert not state.ema.training and not state.ema.weight.requires_grad


@pytest.fixture
def alone() -> Compute:
    return open_compute("cpu")


def test_a_window_averages_tensors_over_the_steps_that_count(alone: Compute) -> None:
    window = MetricWindow()
    for value, counts in ((1.0, True), (float("nan"), False), (3.0, True)):
        window.add({"loss": torch.tensor(value), "used": torch.tensor([value, 2 * value])}, torch.tensor(counts))
    means = window.means(alone)
    assert [float(means["loss"]), *means["used"].tolist()] == pytest.approx([2, 2, 4])


def test_what_is_written_is_json_and_readable() -> None:
    assert json_ready({"loss": float("nan"), "step": 3}) == {"loss": None, "step": 3}
    line = line_of(1200, 5000, 1.5, {"images_per_second": 12345.6, "loss": 6.2994, "lr": 1.5e-5})
    assert line == "step 1,200 of 5,000, epoch 1.50: loss 6.299, learning rate 1.50e-05, 12,346 images/s"
    figures = {"eval/reconstruction_mae": 0.058, "eval/cell_mean_mae": 0.049, "eval/knn_chance": 0.1}
    line = line_of(7, 9, 1, figures, figures)
    assert line.endswith("held-back images: reconstruction error 0.05800, mean colour of each cell 0.04900")
    assert "chance 10.0 %" in line_of(7, 9, 1, figures, {}), "a constant is said once"


@pytest.mark.parametrize(("steps", "evaluations"), [(24, 3), (25, 4), (7, 7), (1, 10), (10, 1)])
def test_what_is_left_counts_the_evaluations_that_follow(steps: int, evaluations: int) -> None:
    plan = Plan(Toy(steps=steps, evaluations=evaluations, save_every="5"), images=48)
    for step in range(steps):
        follow = sum(plan.should_evaluate(later) for later in range(step, steps + 1))
        assert plan.evaluations_after(step) == follow
        left = Pace(step=2.0, evaluation=10.0, save=1.0, test=5.0).left(plan, step)
        assert left == (2 * (steps - step), 10 * follow + 5, 1 + (steps - step) // 5)


def test_a_pace_goes_halfway_towards_what_is_measured() -> None:
    assert Pace().after(step=4.0).after(step=2.0, save=1.0) == Pace(step=3.0, save=1.0)


def test_the_time_of_a_run_counts_its_evaluations(tmp_path: Path) -> None:
    started = time.monotonic()
    results = train(tmp_path / "run", on_evaluation=lambda: time.sleep(0.05))
    assert 3 * 3 * 0.05 < results["seconds"] <= time.monotonic() - started
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seconds"] == results["seconds"]


def test_random_numbers_of_different_places_are_unrelated() -> None:
    seeds = {seed_of(seed, step, place) for seed in range(3) for step in range(30) for place in range(30)}
    assert len(seeds) == 3 * 30 * 30
    assert seed_of(0, 1, 2) == seed_of(0, 1, 2)


def test_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert choose_precision("auto", cpu) == "float32"
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    assert choose_precision("auto", cpu) == "bf16"
    assert choose_precision("float32", cpu) == "float32"
    with pytest.raises(UserError, match="--precision fp16 is unknown"):
        choose_precision("fp16", cpu)
    assert choose_device("cpu") == cpu
    with pytest.raises(UserError, match="--device gpu"):
        choose_device("gpu")


def test_bf16_training_keeps_float32_weights(tmp_path: Path) -> None:
    outputs = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: outputs.append(output.dtype) if isinstance(module, nn.Linear) else None
    )
    try:
        train(tmp_path / "run", Toy(steps=2, precision="bf16"))
    finally:
        hook.remove()
    assert set(outputs) == {torch.bfloat16}
    assert {value.dtype for value in weights_of(tmp_path / "run").values()} <= {torch.float32, torch.int64}
