"""What surrounds a run fails: its directory, its disk, its facts, its terminal. It goes on, or says what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_recipe import Toy, ToyBatches, train

from beit.cli.main import _outlast_readers
from beit.config.errors import Interrupted, RunFailed, UserError
from beit.patience import OutOfPatience, Silence, patience
from beit.training import signals
from beit.training.console import Console
from beit.training.device import open_compute
from beit.training.nonfinite import NonFiniteGuard
from beit.training.run.checkpoints import checkpoint_steps
from beit.training.run.directory import Request, RunDirectory
from beit.training.run.opening import open_run
from beit.training.signals import stop_signals

SHORT = Toy(steps=4, accumulate=1, evaluations=1, save_every="2", log_every=1)


@pytest.fixture(autouse=True)
def hang_ups() -> Iterator[None]:
    """A closed terminal is heard of, even where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def opened(path: Path, facts: dict[str, str] | None = None, **config: Any) -> RunDirectory:
    request = Request("toy", {"lr": 0.1, "data": "photos", **config}, facts=facts or {})
    return open_run(path, request, compute=open_compute("cpu"), console=Console())


def status_of(run: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((run / "status.json").read_text())
    return status


def saved(path: Path, **arguments: Any) -> Path:
    """A run with a state of its first step."""
    with opened(path, **arguments) as run:
        run.write_metrics({"step": 1, "loss": 0.5})
        run.save(1, {"step": 1}, keep=2)
    return path


# ------------------------------------------------------------------------------------------------------------
# Whose run it is


def test_a_state_of_another_run_is_not_gone_on_from(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other")
    (one / "checkpoints").rename(tmp_path / "aside")
    (other / "checkpoints").rename(one / "checkpoints")
    with opened(one) as run, pytest.raises(RunFailed, match=r"is of another run \(id '"):
        run.restore()
    assert checkpoint_steps(one / "checkpoints") == [1], "nothing is lost"


@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_what_a_run_is_cannot_change_under_its_states(name: str, tmp_path: Path) -> None:
    """Neither by hand nor by a flipped bit in the name of a fact, which hides it from the comparison."""
    run = saved(tmp_path, facts={"images": "old"})
    text = (run / name).read_text()
    (run / name).write_text(text.replace("lr: 0.1", "lr: 0.2").replace('"images"', '"imagec"'))
    now = {"lr": 0.2} if name == "config.yaml" else {}
    facts = {"images": "old" if name == "config.yaml" else "new"}
    with opened(run, facts=facts, **now) as again, pytest.raises(RunFailed, match=r"\((lr|images) "):
        again.restore()


def test_a_run_whose_directory_is_begun_anew_writes_no_more(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="deleted, moved or begun anew"), opened(tmp_path / "run") as run:
        run.write_metrics({"step": 1})
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(RunFailed):
            run.write_status(step=1)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".lock").write_text("{}")
        (tmp_path / "run" / "status.json").write_text('{"state": "another"}')
        for write in (
            lambda: run.write_metrics({"step": 2}),
            lambda: run.replace_model(Path.mkdir),
            lambda: run.finish({}),
        ):
            with pytest.raises(RunFailed, match="begun anew"):
                write()
        run.save(2, {"step": 2}, keep=1)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "status.json"]
    assert status_of(tmp_path / "run") == {"state": "another"}


@pytest.mark.parametrize("damage", ["{", '{"step": "three"}', "[]", "\0"])
def test_a_broken_status_is_refused_and_a_run_goes_on_without_it(damage: str, tmp_path: Path) -> None:
    run = saved(tmp_path)
    identity = status_of(run)["id"]
    (run / "status.json").write_text(damage)
    with pytest.raises(UserError, match=r"status\.json is damaged: delete it"):
        opened(run)
    (run / "status.json").unlink()
    with opened(run) as again:
        assert again.restore() == {"step": 1} and again.identity == identity


def test_every_changed_bit_of_past_figures_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(tmp_path)
    figures = (run / "metrics.jsonl").read_bytes()
    for bit in range(0, 8 * len(figures), 5):
        changed = bytearray(figures)
        changed[bit // 8] ^= 1 << bit % 8
        (run / "metrics.jsonl").write_bytes(changed)
        with opened(run) as again:
            again.restore()
        assert "metrics.jsonl is not as the checkpoint knows it" in capsys.readouterr().out


def test_the_same_images_may_lie_elsewhere_until_the_run_is_done(tmp_path: Path) -> None:
    run = saved(tmp_path, facts={"images": "same"})
    with opened(run, facts={"images": "same"}, data="moved") as again:
        assert again.restore() == {"step": 1} and again.config["data"] == "moved"
        again.finish({})
    with pytest.raises(UserError, match="data was 'moved' and is now 'photos'"):
        opened(run, facts={"images": "same"})


# ------------------------------------------------------------------------------------------------------------
# A disk that is full


def test_figures_and_status_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", SHORT)
    left = iter(range(1000))

    def full(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(self: Any, *arguments: Any, **options: Any) -> Any:
            is_ours = str(self).endswith(("metrics.jsonl", ".tmp-status.json")) and "run" in str(self)
            if is_ours and (tmp_path / "run" / "samples").exists() and next(left) in range(1, 8):
                raise OSError(28, "No space left on device")
            return real(self, *arguments, **options)

        return write

    monkeypatch.setattr(Path, "open", full(Path.open))
    monkeypatch.setattr(Path, "write_text", full(Path.write_text))
    train(tmp_path / "run", SHORT)
    figures = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "run")]
    steps = [[json.loads(line)["step"] for line in text.splitlines()] for text in figures]
    assert steps[0] == steps[1] and next(left) > 8
    assert status_of(tmp_path / "run")["state"] == "done"
    assert "metrics.jsonl could not be written: [Errno 28]" in (tmp_path / "run" / "log.txt").read_text()


def test_a_line_of_figures_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "say", lambda self, text="": None)  # to a file as well, here
    with opened(tmp_path) as run:
        run.write_metrics({"step": 1})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            run.write_metrics({"step": 2})
            half = (tmp_path / "metrics.jsonl").read_text()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        run.write_metrics({"step": 3})
    assert half == '{"step": 1}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_pictures_that_cannot_be_written_end_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an average of the weights the model that learns is drawn: it has dropout again after that."""

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.parent.name == "samples":
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)

    write = Path.write_text
    plain = dataclasses.replace(SHORT, evaluations=2, ema_decay=None)
    train(tmp_path / "whole", plain)
    monkeypatch.setattr(Path, "write_text", full)
    train(tmp_path / "run", plain)
    assert "samples could not be written: [Errno 28]" in (tmp_path / "run" / "log.txt").read_text()
    assert status_of(tmp_path / "run")["state"] == "done"
    ours, theirs = (torch.load(tmp_path / name / "model" / "weights.pt") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ------------------------------------------------------------------------------------------------------------
# Asked to stop, and who waits


def test_a_closed_terminal_saves_and_leaves_but_not_under_nohup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(number: int, text: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", closed)
    hung_up = dataclasses.replace(SHORT, killed_at=1, killed_by=signal.SIGHUP)
    with pytest.raises(Interrupted, match="saved at step 2 of 4"):
        train(tmp_path / "run", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tmp_path / "nohup", hung_up)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert status_of(tmp_path / "nohup")["state"] == "done"


def test_whoever_waits_when_a_stop_is_asked_for_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "WAIT", 0.2)
    timer = signal.getitimer(signal.ITIMER_REAL)[0]
    started = time.monotonic()
    with stop_signals(distributed=False), pytest.raises(OutOfPatience), patience(60):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert time.monotonic() - started < 10
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(timer, abs=1), "others have alarms, too"
    with stop_signals(distributed=False):
        os.kill(os.getpid(), signal.SIGTERM)  # nobody waits: no alarm of others is touched
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(timer, abs=12)


def hanging(is_asked: bool) -> Callable[[ToyBatches, int, int], Iterator[Any]]:
    """Batches that hang at the third, and are given up."""
    batches = ToyBatches.train

    def hang(self: ToyBatches, start: int, stop: int) -> Iterator[Any]:
        for index, batch in enumerate(batches(self, start, stop)):
            if index == 2:
                if is_asked:
                    os.kill(os.getpid(), signal.SIGTERM)
                raise Silence("loader process 7 is silent")
            yield batch

    return hang


def test_asked_to_stop_while_a_batch_hangs_a_run_keeps_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", SHORT)
    run, toy = tmp_path / "run", dataclasses.replace(SHORT, save_every="100")
    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="process 7 is silent"):
        patch.setattr(ToyBatches, "train", hanging(is_asked=False))
        train(run, toy)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="saved at step 2 of 4"):
        patch.setattr(ToyBatches, "train", hanging(is_asked=True))
        train(run, toy)
    train(run, toy)
    ends = [torch.load(tmp_path / name / "model" / "weights.pt") for name in ("whole", "run")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_reader_that_leaves_ends_no_training(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(reading)
            for number in (1, 2):
                os.dup2(writing, number)
            os.close(writing)
            sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
            _outlast_readers()
            train(tmp_path / "run", dataclasses.replace(SHORT, steps=40, sleep=0.01))
            sys.stdout.flush()
            status = 0
        os._exit(status)
    os.close(writing)
    os.read(reading, 1)  # as `head` does
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert status_of(tmp_path / "run")["state"] == "done"
    assert "step 40 of 40" in (tmp_path / "run" / "log.txt").read_text()


# ------------------------------------------------------------------------------------------------------------
# Several ranks

LAUNCH = """
import sys
sys.executable = sys.argv[1]
from beit.cli import launch as module
module._GRACE = 1.0
from beit.cli.launch import launch
sys.exit(launch(2, []))
"""
RANK = """#!{python}
import os, signal, sys, time
heard = []
def note(number, frame):
    open("{folder}/" + os.environ["RANK"], "a").write(signal.Signals(number).name + " ")
    heard.append(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, note)
place = "{folder}/ready-" + os.environ["RANK"]
with open(place + ".part", "w") as file:  # whole when it is there
    file.write(str(os.getpid()))
os.rename(place + ".part", place)
while not heard:
    time.sleep(0.02)
time.sleep(0.5)
sys.exit(75)
"""


@contextlib.contextmanager
def launcher(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`--devices 2` whose ranks note the signals that they hear, and leave after the first."""
    rank = folder / "rank.py"
    rank.write_text(RANK.format(python=sys.executable, folder=folder))
    rank.chmod(0o755)
    command = [sys.executable, "-c", LAUNCH, str(rank)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for(lambda: all((folder / f"ready-{rank}").exists() for rank in "01"))
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_what_stops_the_launcher_stops_each_rank_once(
    send: Callable[[int, int], None], number: signal.Signals, tmp_path: Path
) -> None:
    """Sent to it alone, or to its whole group, as a terminal does."""
    with launcher(tmp_path) as process:
        send(process.pid, number)
        assert process.wait(60) == 75
    assert [(tmp_path / rank).read_text() for rank in "01"] == [f"{number.name} "] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the children")
def test_ranks_stop_when_their_launcher_is_killed(tmp_path: Path) -> None:
    with launcher(tmp_path) as process:
        process.kill()
        wait_for(lambda: all((tmp_path / rank).exists() for rank in "01"), seconds=10)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["SIGTERM "] * 2


def test_a_killed_rank_and_a_silent_one_are_named(tmp_path: Path) -> None:
    with launcher(tmp_path) as process:
        os.kill(int((tmp_path / "ready-1").read_text()), signal.SIGKILL)
        assert process.wait(60) == 128 + signal.SIGKILL
        assert process.stderr is not None
        said = process.stderr.read()
    assert "rank 1 was killed" in said and "rank 0 gave no sign of life, and is killed" in said


def test_a_rank_whose_figures_are_finite_does_not_blame_them() -> None:
    guard = NonFiniteGuard("stop")
    with pytest.raises(RunFailed, match="step 3: the loss of another rank is not finite"):
        guard.watch(3, torch.tensor(True), torch.tensor(2.5), torch.tensor(1.0))
