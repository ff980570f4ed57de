"""A run that is stopped, killed or broken into ends as if nothing had happened, or says what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_recipe import Toy, digest, train

from beit.config.errors import Interrupted, RunFailed
from beit.training.run.checkpoints import checkpoint_steps, read_state
from beit.training.run.directory import RunDirectory
from beit.training.run.saver import Saver
from beit.training.signals import stop_signals
from beit.training.state import TrainingState

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TIMINGS = {"images_per_second", "data_wait", "mfu"}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def outcome(run: Path) -> dict[str, Any]:
    """Everything that an interruption must not change."""
    state = read_state(run / "checkpoints", checkpoint_steps(run / "checkpoints")[-1])
    optimizer = {str(key): value for key, value in flat(state["optimizer"]).items()}
    return {
        "model": digest(state["model"]),
        "average": digest(state["ema"]),
        "optimizer": digest({key: value for key, value in optimizer.items() if torch.is_tensor(value)}),
        "rates": {key: value for key, value in optimizer.items() if not torch.is_tensor(value)},
        "companion": digest(state["companions"]["seen"]),
        "kept": digest(torch.load(run / "model" / "weights.pt")),
        "best kept": digest(torch.load(run / "model-best" / "weights.pt")),
        "its step": json.loads((run / "model-best" / "model.json").read_text())["provenance"]["step"],
        "metrics": metrics_of(run),
        "samples": {path.name: path.read_text() for path in (run / "samples").iterdir()},
        "best": json.loads((run / "results.json").read_text())["best"],
    }


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for part, branch in items for key, leaf in flat(branch, f"{name}.{part}").items()}
    return {name: tree}


class Crash(Exception):
    pass


def crash_at(evaluation: int) -> Callable[[], None]:
    """Raises in the given batch of evaluation, counted over the run; there are three batches in each."""
    left = iter([*[False] * evaluation, True])

    def on_evaluation() -> None:
        if next(left, False):
            raise Crash

    return on_evaluation


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run)
    return outcome(run)


def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "kill_rounds.py"), str(tmp_path), "8", "1"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(report.rsplit("\n", 2)[-2].split()[0]) >= 4, report
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "status.json").read_text())["state"] == "done"


FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def killed_before(operation: int, out: Path, toy: Toy, part: str = "") -> bool:
    """Start the toy in `out` in a process that dies before its file operation of this number, on paths with `part`
    in them; False where it ends before that."""
    process = os.fork()
    if process == 0:
        left = iter(range(operation))

        def die_in_time(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in FILE_OPERATIONS or str(out) not in str(arguments[0]):
                return
            if part in str(arguments[0]) and next(left, None) is None:
                os._exit(9)

        sys.addaudithook(die_in_time)
        try:
            train(out, toy)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def test_killed_at_any_point_of_its_start_it_starts_again(tmp_path: Path) -> None:
    for operation in range(1000):
        out = tmp_path / str(operation) / "run"
        assert killed_before(operation, out, Toy(steps=1))
        is_training = (out / "checkpoints").exists()
        train(out, Toy(steps=1))
        assert json.loads((out / "status.json").read_text())["state"] == "done"
        if is_training:
            break
    assert operation > 10


BETTER_AND_BETTER = Toy(steps=6, evaluations=3, save_every="100", keep=3, monitor="loss")
"""Saved for its evaluations alone, after steps 2, 4 and 6, each the best so far."""


def test_killed_at_any_point_of_keeping_the_best_it_is_found_again(tmp_path: Path) -> None:
    train(tmp_path / "whole", BETTER_AND_BETTER)
    wanted = outcome(tmp_path / "whole")
    assert wanted["its step"] == wanted["best"]["step"] == 6
    assert wanted["best"]["remark"] == "chosen on these images"
    for operation in range(1000):
        out = tmp_path / str(operation)
        if not killed_before(operation, out, BETTER_AND_BETTER, "model-best"):
            break
        train(out, BETTER_AND_BETTER)
        assert outcome(out) == wanted
    assert operation > 20


def test_a_best_model_of_a_later_step_is_forgotten_and_found_again(tmp_path: Path) -> None:
    train(tmp_path / "whole", BETTER_AND_BETTER)
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(run, BETTER_AND_BETTER, on_evaluation=crash_at(6))
    assert (run / "model-best").exists() and checkpoint_steps(run / "checkpoints") == [2, 4, 6]
    for step in (4, 6):
        flip(run / "checkpoints" / f"step-{step}" / "state.pt", 999)
    there = []
    train(run, BETTER_AND_BETTER, on_evaluation=lambda: there.append((run / "model-best").exists()))
    assert there == [False] * 3 + [True] * 6
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_best_model_that_cannot_be_written_is_told_and_borne(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = RunDirectory.replace_model

    def full_disk(self: RunDirectory, write: Any, place: str) -> None:
        if place == "model-best" and (self.path / place).exists():
            raise OSError(28, "No space left on device")
        replace(self, write, place)

    monkeypatch.setattr(RunDirectory, "replace_model", full_disk)
    train(tmp_path / "run", BETTER_AND_BETTER)
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "model-best/ of step 4 could not be saved: [Errno 28]" in said and "of step 2 could" not in said
    found = outcome(tmp_path / "run")
    assert found["its step"] == found["best"]["step"] == 2, "the best is the one that is there"


def test_a_crash_is_on_record_and_the_run_continues(tmp_path: Path, whole: dict[str, Any]) -> None:
    with pytest.raises(Crash):
        train(tmp_path / "run", on_evaluation=crash_at(3))  # after step 16; saved after step 15
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("failed", 15, 24)
    train(tmp_path / "run")
    assert "continuing after step 15 of 24" in (tmp_path / "run" / "log.txt").read_text()
    assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("lost", ["model", "ema", "optimizer", "companions", "window", "best", "place", "random"])
def test_equality_notices_whatever_a_resume_forgets(
    lost: str, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Crash):
        train(tmp_path / "run", on_evaluation=crash_at(3))

    def restore_badly(self: TrainingState, state: dict[str, Any], compute: Any) -> None:
        fresh = self.state_dict(compute)
        restore(self, {**state, **({lost: fresh[lost]} if lost in fresh else {})}, compute)
        self.step -= lost == "place"

    restore = TrainingState.load_state_dict
    monkeypatch.setattr(TrainingState, "load_state_dict", restore_badly)
    if lost == "random":
        monkeypatch.setattr("beit.training.state.reseed", lambda seed, device: None)
    train(tmp_path / "run")
    assert outcome(tmp_path / "run") != whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_a_step_saves_and_leaves(number: signal.Signals, tmp_path: Path, whole: dict[str, Any]) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="saved at step 10 of 24"):
        train(tmp_path / "run", Toy(killed_at=9, killed_by=number))
    assert signal.getsignal(number) == handler
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", 10) and "saved at step 10" in status["reason"]
    train(tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_a_signal_in_an_evaluation_saves_and_leaves(tmp_path: Path, whole: dict[str, Any]) -> None:
    batches = iter(range(100))

    def on_evaluation() -> None:
        if next(batches) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved at step 16 of 24"):
        train(tmp_path / "run", on_evaluation=on_evaluation)
    assert next(batches) == 5, "the evaluation was left at once"
    train(tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_a_second_interrupt_leaves_at_once() -> None:
    with stop_signals(distributed=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "state.pt has 0 bytes": lambda folder: os.truncate(folder / "state.pt", 0),
    "state.pt has": lambda folder: os.truncate(folder / "state.pt", (folder / "state.pt").stat().st_size - 1),
    "state.pt is missing": lambda folder: (folder / "state.pt").unlink(),
    "state.pt does not match its checksum": lambda folder: flip(folder / "state.pt", 5000),
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json is not a manifest": lambda folder: os.truncate(folder / "manifest.json", 100),
}


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    reason: str, tmp_path: Path, whole: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(run, on_evaluation=crash_at(3))
    DAMAGE[reason](run / "checkpoints" / "step-15")
    train(run)
    log = (run / "log.txt").read_text()
    assert f"the checkpoint of step 15 is broken and not used: {reason}" in log
    assert "continuing after step 12 of 24" in log
    assert outcome(run) == whole
    assert checkpoint_steps(run / "checkpoints") == [21, 24]


def test_without_any_good_checkpoint_the_run_refuses(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Crash):
        train(run, on_evaluation=crash_at(3))
    for step in (12, 15):
        flip(run / "checkpoints" / f"step-{step}" / "state.pt", 999)
    with pytest.raises(RunFailed, match=r"no checkpoint .* can be used; --overwrite"):
        train(run)


def failing_saves(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make torch.save raise, as on a full disk, at the given steps."""
    write = torch.save

    def save(state: dict[str, Any], file: Any) -> None:
        if state.get("step") in steps:
            file.write(b"some of it")
            raise OSError(28, "No space left on device")
        write(state, file)

    monkeypatch.setattr("torch.save", save)


def test_failed_saves_are_told_and_borne(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_saves(monkeypatch, {9, 12, 18})
    train(tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(
        r"step 12 could not be saved: \[Errno 28\] No space left on device"
        r" \([\d,.]+ MiB free, about [\d,.]+ needed\); the checkpoint of step 8 is intact",
        log,
    )
    assert outcome(tmp_path / "run") == whole


def test_a_model_that_cannot_be_written_leaves_the_newest_checkpoint(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="checkpoint of step 8 is intact"):
        patch.setattr(RunDirectory, "replace_model", lambda self, write, place: full_disk(self.path))
        train(run, Toy(keep=1))
    assert checkpoint_steps(run / "checkpoints") == [8]  # that of its best evaluation
    assert "model/ of step 3 could not be saved: [Errno 28]" in (run / "log.txt").read_text()
    train(run, Toy(keep=1))
    assert outcome(run) == whole


@pytest.mark.parametrize(("steps", "left"), [({9, 12, 15}, [6, 8]), ({24}, [18, 21])])
def test_a_run_that_cannot_be_saved_fails(
    steps: set[int], left: list[int], tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as full_disk:
        failing_saves(full_disk, steps)
        with pytest.raises(RunFailed, match="No space left"):
            train(run)
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert checkpoint_steps(run / "checkpoints") == left
    assert not list(run.rglob(".tmp-*"))
    train(run)
    assert outcome(run) == whole


def test_nothing_is_done_after_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    first = train(run, Toy(steps=3))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name not in ("log.txt", ".lock")}
    assert train(run, Toy(steps=3)) == first
    assert capsys.readouterr().out.endswith("nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_killed_between_the_last_checkpoint_and_the_end(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_model(saver: Saver) -> None:
        if saver.state.step == 24:
            raise Crash

    with monkeypatch.context() as killed:
        killed.setattr(Saver, "write_model", write_model)
        with pytest.raises(Crash):
            train(tmp_path / "run")
    train(tmp_path / "run")
    assert outcome(tmp_path / "run") == whole
