"""Opening a run directory, what is refused, and what a failing disk leaves behind."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from beit.config.errors import Interrupted, UserError
from beit.training.console import Console, Notebook, bar, duration
from beit.training.device import open_compute
from beit.training.run.checkpoints import (
    BrokenCheckpoint,
    checkpoint_steps,
    newest_checkpoint,
    prune,
    read_manifest,
    read_state,
    write_checkpoint,
)
from beit.training.run.directory import Request, RunDirectory
from beit.training.run.opening import RELEASES, RNG_VERSION, open_run, stored_run

CONFIG = {"lr": 1e-5, "image_size": (32, 32), "data": Path("photos"), "precision": "auto", "workers": "auto"}


def opened(path: Path, verb: str = "toy", overwrite: bool = False, **changes: Any) -> RunDirectory:
    config = CONFIG | changes
    console = Console()
    return open_run(path, Request(verb, config), compute=open_compute("cpu"), console=console, overwrite=overwrite)


def write_old(folder: Path) -> None:
    (folder / "weights").write_text("old")


def status_of(path: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((path / "status.json").read_text())
    return status


def test_a_new_run_records_what_it_is(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b") as run:
        assert run.restore() is None
        assert status_of(run.path)["state"] == "running"
    stored = yaml.safe_load((run.path / "config.yaml").read_text())
    assert stored == {
        "lr": 1e-5,
        "image_size": [32, 32],
        "data": "photos",
        "precision": "auto",
        "workers": "auto",
    }
    assert {"verb", "step", "steps", "reason", "command", "versions", "machine"} <= status_of(run.path).keys()


def test_the_same_run_continues_with_what_was_chosen_before(tmp_path: Path) -> None:
    with opened(tmp_path, precision="float32") as run:
        identity = run.identity
    with opened(tmp_path, workers=3) as run:
        assert (run.config["precision"], run.config["workers"]) == ("float32", 3)
        assert run.identity == identity


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    opened(tmp_path, precision="float32").__exit__(None, None, None)
    with pytest.raises(UserError) as refusal:
        opened(tmp_path, lr=2e-5, precision="bf16", depth=3)
    for difference in (
        "lr was 1e-05 and is now 2e-05",
        "precision was 'float32' and is now 'bf16'",
        "depth was None",
    ):
        assert difference in str(refusal.value)
    with pytest.raises(UserError, match="holds a toy run, not a pretrain run"):
        opened(tmp_path, verb="pretrain")
    opened(tmp_path).__exit__(None, None, None)  # a refusal gives the lock back


def test_a_run_of_an_older_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert status_of(run.path)["rng_version"] == RNG_VERSION
    status = status_of(tmp_path)
    del status["rng_version"]  # as a run of the first release
    (tmp_path / "status.json").write_text(json.dumps(status))
    with pytest.raises(UserError, match=r"finish it with beit 0\.1, or begin a new run in another --out$"):
        opened(tmp_path)
    (tmp_path / "config.yaml").write_text((tmp_path / "config.yaml").read_text() + "init: null\n")
    with pytest.raises(UserError, match=f"or begin a new run from its model with --init {tmp_path}$"):
        opened(tmp_path, init=None)
    with opened(tmp_path, overwrite=True):
        assert status_of(tmp_path)["rng_version"] == RNG_VERSION
    assert RELEASES.keys() == set(range(1, RNG_VERSION))


def asked_for(typed: dict[str, Any], **chosen: Any) -> Request:
    """A run of which only `typed` was given, and the rest is chosen."""
    defaults = {"lr": 0.1, "steps": None, "epochs": 5, "workers": "auto", "data": "photos"}
    config = {**defaults, **chosen, **typed, "preset": typed.get("preset")}
    return Request("toy", config, defaults, typed=typed, budget=typed.get("budget"))


def typed(path: Path, typed: dict[str, Any], **chosen: Any) -> RunDirectory:
    """That run, opened."""
    return open_run(path, asked_for(typed, **chosen), compute=open_compute("cpu"), console=Console())


def test_a_restart_compares_what_is_typed_and_takes_the_rest_as_stored(tmp_path: Path) -> None:
    with typed(tmp_path, {"lr": 1e-3, "workers": 0}, steps=40, epochs=None) as run:
        first = dict(run.config)
    with typed(tmp_path, {"lr": 1e-3, "workers": 2}, steps=99, epochs=None) as run:
        assert run.config == first | {"workers": 2}
    with typed(tmp_path, {"lr": 1e-3, "steps": 40}) as run:  # the stored value, typed
        assert run.config == first | {"workers": "auto"}
    for now, difference in (
        ({}, "lr was 0.001 and is now left out"),
        ({"lr": 2e-3}, "lr was 0.001 and is now 0.002"),
        ({"lr": 1e-3, "steps": 41}, "steps was 40 and is now 41"),
        ({"lr": 1e-3, "preset": "tiny"}, "preset was None and is now 'tiny'"),
        ({"lr": 1e-3, "budget": "2h"}, "budget was None and is now '2h'"),
    ):
        with pytest.raises(UserError, match=difference):
            typed(tmp_path, now)
    whole = yaml.safe_load((tmp_path / "config.yaml").read_text())
    with typed(tmp_path, whole) as run:
        assert run.config == whole
    assert status_of(tmp_path)["typed"] == {"lr": 1e-3, "workers": 0}


def test_a_run_of_a_release_before_what_is_typed_was_stored_is_compared_by_value(tmp_path: Path) -> None:
    old = {"lr": 0.1, "steps": None, "epochs": 5, "workers": 2, "data": "photos"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(UserError, match=r"lr was 0\.1 and is now 0\.2"):
        typed(tmp_path, {"lr": 0.2})
    finished = {"state": "done", "verb": "toy"}
    (tmp_path / "status.json").write_text(json.dumps(finished))
    found = stored_run(tmp_path, asked_for({"preset": "tiny", "epochs": 5}, lr=0.7))  # of what tiny is now
    assert found is not None and found.status["state"] == "done"
    with pytest.raises(UserError, match="epochs was 5 and is now 6"):
        stored_run(tmp_path, asked_for({"epochs": 6}))
    (tmp_path / "status.json").write_text(json.dumps(finished | {"state": "interrupted"}))
    with pytest.raises(UserError, match=r"finish it with beit 0\.1"):  # before all that is compared
        typed(tmp_path, {"lr": 0.2})
    (tmp_path / "status.json").unlink()
    with typed(tmp_path, {}, lr=0.7, steps=9, epochs=None) as run:  # auto did not exist
        assert (run.config["lr"], run.config["epochs"]) == (0.1, 5)
    assert status_of(tmp_path)["typed"] == {}


def test_a_start_that_was_killed_before_its_choices_were_stored_is_a_first_start(tmp_path: Path) -> None:
    with typed(tmp_path, {"budget": "1h"}, steps=40) as run:
        assert run.noted("budget") == "1h"
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "samples").rmdir()
    with typed(tmp_path, {"lr": 0.3}, steps=50) as run:
        assert (run.config["steps"], run.noted("budget")) == (50, None)


def test_time_stopped_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    for start, seconds in ((100.0, 30), (5000.0, 12)):
        clock[0] = start
        with opened(tmp_path) as run:
            clock[0] += seconds
            run.write_status(step=1)
    assert run.elapsed == 42


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    (tmp_path / "photos" / "samples").mkdir(parents=True)
    (tmp_path / "photos" / "samples" / "mine.png").write_text("a picture of my own")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        opened(tmp_path / "photos")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no run"):
            opened(tmp_path, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "thesis.tex"]
    with pytest.raises(UserError, match="cannot be used: "):
        opened(tmp_path / "thesis.tex")


def test_overwrite_names_the_run_and_deletes_no_more_than_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path) as run:
        run.save(7, {"step": 7}, keep=2)
        run.write_status(step=7)
    (tmp_path / "notes.txt").write_text("mine")
    with opened(tmp_path, overwrite=True, lr=1.0) as run:
        assert run.restore() is None
    assert f"deleting the toy run in {tmp_path} (running, step 7)" in capsys.readouterr().out
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert "deleting the toy run" in (tmp_path / "log.txt").read_text()


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from beit.training.run.lock import RunLock
RunLock.take(Path({str(tmp_path)!r}))
"""

    def try_elsewhere() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr

    with opened(tmp_path):
        assert f"--out {tmp_path} is in use by process {os.getpid()} on " in try_elsewhere()
        with pytest.raises(UserError, match="is in use"):
            opened(tmp_path)
    assert try_elsewhere() == "", "a lock ends with its run"
    with opened(tmp_path):
        pass  # the lock file of a process that is gone is no lock


@pytest.mark.parametrize(
    ("error", "state"),
    [(Interrupted("saved"), "interrupted"), (KeyboardInterrupt(), "interrupted"), (OSError("x"), "failed")],
)
def test_how_a_run_ends_is_on_record(error: BaseException, state: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), opened(tmp_path):
        raise error
    assert status_of(tmp_path)["state"] == state and status_of(tmp_path)["reason"]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.write_metrics({"step": 1, "loss": float("inf")})
        run.save(1, {"step": 1}, keep=2)
        run.write_metrics({"step": 2, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    with opened(tmp_path) as run:
        assert run.restore() == {"step": 1}
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_litter_of_a_killed_session_is_cleared(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.replace_model(write_old)
        run.save(1, {"step": 1}, keep=1)
    (tmp_path / "checkpoints" / ".tmp-step-2").mkdir()
    (tmp_path / ".tmp-status.json").write_text("{")
    (tmp_path / "model").rename(tmp_path / ".old-model")  # killed between two renames
    with opened(tmp_path):
        assert (tmp_path / "model" / "weights").read_text() == "old"
        assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with opened(tmp_path) as run:
        run.replace_model(write_old)
        with pytest.raises(OSError, match="disk full"):
            run.replace_model(fail)
        assert (tmp_path / "model" / "weights").read_text() == "old"
        assert not (tmp_path / ".tmp-model").exists()


STATE = {"step": 3, "weights": torch.arange(6000.0), "name": "x", "nested": [{"a": (1, None, True)}]}


def written(root: Path, *steps: int) -> Path:
    for step in steps:
        write_checkpoint(root, step, STATE | {"step": step}, {"world_size": 1})
    return root


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = read_state(written(tmp_path / "checkpoints", 3), 3)
    assert torch.equal(state.pop("weights"), STATE["weights"])  # type: ignore[arg-type]
    assert state == {key: value for key, value in STATE.items() if key != "weights"}


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = written(tmp_path, 3) / "step-3"
    manifest = read_manifest(folder)
    chance = random.Random(0)
    for name in ["state.pt"] * 200 + ["manifest.json"] * 200:
        intact = (folder / name).read_bytes()
        damaged = bytearray(intact)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(damaged)
        with contextlib.suppress(BrokenCheckpoint):
            unnoticed = read_manifest(folder)
            assert unnoticed == manifest and name == "manifest.json", "only white space may differ"
        (folder / name).write_bytes(intact)


class Disk:
    """Lets `calls` operations through and fails at the next one."""

    OPERATIONS = (
        "os.fsync",
        "os.open",
        "pathlib.Path.rename",
        "pathlib.Path.mkdir",
        "pathlib.Path.replace",
        "torch.save",
    )

    def __init__(self, patch: pytest.MonkeyPatch, calls: int) -> None:
        self.left, self.failed = calls, False
        for name in self.OPERATIONS:
            module, _, attribute = name.rpartition(".")
            owner = {"os": os, "torch": torch, "pathlib.Path": Path}[module]
            patch.setattr(owner, attribute, self.guarded(getattr(owner, attribute)))

    def guarded(self, operation: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                self.failed = True
                raise OSError(errno.ENOSPC, "No space left on device")
            return operation(*arguments, **options)

        return call


def test_a_save_that_fails_anywhere_leaves_the_one_before_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for calls in range(100):
        root = written(tmp_path / str(calls), 3)
        with monkeypatch.context() as patch:
            disk = Disk(patch, calls)
            try:
                written(root, 4)
            except OSError:
                assert disk.failed
        manifest, broken = newest_checkpoint(root, lambda line: None)
        assert manifest is not None and manifest["step"] in (3, 4) and broken == []
        assert not list(root.glob(".tmp-*"))
        if not disk.failed:
            assert manifest["step"] == 4 and calls > 6
            return
    raise AssertionError("never got through")


def test_a_disk_that_is_full_is_an_oserror(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError):
            written(tmp_path, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_pruning_keeps_the_newest_good_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1, 2, 3, 4, 5)
    prune(tmp_path, keep=2, broken=[4], report=pytest.fail)
    assert checkpoint_steps(tmp_path) == [3, 5]
    prune(tmp_path, keep=0, broken=[], report=pytest.fail)
    assert checkpoint_steps(tmp_path) == [5]
    written(tmp_path, 6)
    reports: list[str] = []

    def rmtree(path: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr("shutil.rmtree", rmtree)
    prune(tmp_path, keep=1, broken=[], report=reports.append)
    assert checkpoint_steps(tmp_path) == [5, 6]
    assert reports == ["the old checkpoint of step 5 could not be deleted: not yours"]


def test_the_console_logs_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("found 3 images [bold]")
    console.log_to(tmp_path / "log.txt")
    with bar("steps", 10, file=sys.stdout) as progress:
        progress.move_to(1, 9.0)
        console.report("step 1/10  loss 2", "loss 2")
    Console(main=False).say("nobody hears")
    assert capsys.readouterr().out == (tmp_path / "log.txt").read_text()
    assert (tmp_path / "log.txt").read_text() == "found 3 images [bold]\nstep 1/10  loss 2\n"
    console.close()


def test_a_notebook_has_a_bar_and_every_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with bar("steps", 4) as progress:
        for step in (1, 2, 3):
            Console().say(f"line {step}")
            progress.move()
        progress.move_to(4, left=0.0)
        assert isinstance(progress.display, Notebook) and progress.display.drawn.n == 4
    said = capsys.readouterr()
    assert said.out.splitlines() == ["line 1", "line 2", "line 3"] and "steps:" in said.err


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_a_display_of_its_width_and_the_log_gets_lines(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    figures = "masked-token loss 5.123, masked-token accuracy 12.3 %, by copying a neighbour 5.2, 340 images/s"
    console = Console()
    console.log_to(tmp_path / "log.txt")
    with bar("steps", 5000, file=sys.stdout) as progress:
        progress.move_to(1250, 725.0)
        console.report("step 1,250 of 5,000: loss 2", figures, printed="never")
        with bar("evaluating", 2048) as judging:
            judging.move(512)
            judging.display.refresh()
            console.say("evaluated [all]")
            console.say(
                "data       2,048 built-in scenes of 64x64 pixels, of which 1,024 are to be looked at", hang=11
            )
            console.report("held-back images: loss 3", "held-back: loss 3")
    console.close()
    assert (tmp_path / "log.txt").read_text().splitlines() == [
        "step 1,250 of 5,000: loss 2",
        "evaluated [all]",
        "data       2,048 built-in scenes of 64x64 pixels, of which 1,024 are to be looked at",
        "held-back images: loss 3",
    ]
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split("[\r\n]", terminal.getvalue())]
    assert max(map(len, lines)) <= width
    below = lines[next(i for i, line in enumerate(lines) if line.startswith("data")) + 1 :]
    assert any(line.startswith(" " * 11) and line.endswith("looked at") for line in below) == (width < 84)
    shown = " ".join(" ".join(lines).split())
    assert (
        "1,250 of 5,000 12 min 05 s left" in shown
        and "512 of 2,048" in shown
        and figures in shown
        and "held-back: loss 3" in shown
        and "never" not in shown
    )


def test_a_pipe_gets_short_lines_and_the_log_gets_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.log_to(tmp_path / "log.txt")
    console.report("step 50: loss 2, rate 1, norm 3", "loss 2", "step 50: loss 2")
    console.report("step 60: loss 1, rate 1, norm 3", "loss 1", "step 60: loss 1")  # too soon after it
    console.report("held-back images: loss 3", "loss 3")
    console.close()
    assert capsys.readouterr().out.splitlines() == ["step 50: loss 2", "held-back images: loss 3"]
    first, second, judged = (tmp_path / "log.txt").read_text().splitlines()
    assert (first, second) == ("step 50: loss 2, rate 1, norm 3", "step 60: loss 1, rate 1, norm 3")
    assert judged == "held-back images: loss 3"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (725, "12 min 05 s"), (11220, "3 h 07 min"), (187_200, "2 d 4 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_beginning_cut_short_anywhere_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that is gone at once, as a killed one is, with its lock."""
    for calls in range(100):
        process = os.fork()
        if process == 0:
            disk = Disk(monkeypatch, calls)
            try:
                opened(tmp_path / str(calls))
            finally:
                os._exit(disk.failed)
        failed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with opened(tmp_path / str(calls)):
            assert status_of(tmp_path / str(calls))["state"] == "running"
        if not failed:
            assert calls > 4
            return
    raise AssertionError("never got through")
