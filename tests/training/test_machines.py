"""torchrun around a run: it starts killed ranks again, and two agents, as on two machines, share one run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_loop import assert_same_training, torchrun
from toy_recipe import Toy, train

pytestmark = pytest.mark.slow


def test_a_killed_rank_is_started_again_by_torchrun(tmp_path: Path) -> None:
    """All ranks go on from the newest state; nobody types anything."""
    train(tmp_path / "alone", Toy(batch_norm=False, accumulate=2, nonfinite="skip", poison=(4,)))
    done = torchrun(
        tmp_path / "two", "killed_at=10", f"killed_by={int(signal.SIGKILL)}", options=["--max-restarts=1"]
    )
    assert done.returncode == 0, done.stderr
    assert "continuing after step 9 of 24" in done.stdout
    assert_same_training(tmp_path / "two", tmp_path / "alone", 2e-6)


def test_a_stop_is_for_torchrun_and_not_for_a_rank_alone(tmp_path: Path) -> None:
    """Asked itself, it has all ranks save and leave; of a rank that left it would start all again."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    toy = [str(Path(__file__).with_name("toy_recipe.py")), str(tmp_path / "run"), "sleep=0.2"]
    with subprocess.Popen([*launch, *toy], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        while not (tmp_path / "run" / "checkpoints" / "step-3").exists() and started.poll() is None:
            time.sleep(0.02)
        started.terminate()
        said = started.communicate(timeout=60)[0]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted", said
    assert "continuing" not in said
    script = Path(__file__).parents[2].joinpath("docs", "machines.md").read_text().partition("## SLURM")[2]
    assert "scancel --signal=TERM" in script and "pkill" not in script


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without the second, agents that meet anew hand their ranks the store of the last meeting (docs/machines.md)."""


def agent(run: Path, port: int) -> subprocess.Popen[bytes]:
    """What is typed on each of two machines: two ranks here, and as many there."""
    launch = ["--nnodes=2", "--nproc-per-node=2", "--max-restarts=2", "--rdzv-id=run", "--rdzv-backend=c10d"]
    place = [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    toy = [str(Path(__file__).with_name("toy_recipe.py")), str(run), "accumulate=1", "batch_norm=0", "sleep=0.1"]
    log = open(run.with_suffix(".log"), "ab")  # noqa: SIM115
    with log:
        command = [sys.executable, "-m", "torch.distributed.run", *launch, *place, *toy]
        return subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log)


def children(parent: int) -> list[int]:
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [number for number in numbers if parent_of(number) == parent]


def parent_of(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def wait_for_step(run: Path, step: int, *agents: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / f"step-{step}").exists():
        assert time.monotonic() < deadline and all(process.poll() is None for process in agents), log_of(run)
        time.sleep(0.02)


def log_of(run: Path) -> str:
    return run.with_suffix(".log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the ranks of an agent")
@pytest.mark.timeout(300)
def test_two_agents_train_as_one_and_one_that_is_lost_may_come_back(tmp_path: Path) -> None:
    train(tmp_path / "alone", Toy(batch_norm=False, accumulate=4))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = tmp_path / "run"
    agents = [agent(run, port), agent(run, port)]
    try:
        wait_for_step(run, 6, *agents)
        # A machine is lost: its agent, and its ranks with it. That which hosts the meeting stays.
        lost = next(process for process in agents if not listens(process.pid, port))
        for number in (lost.pid, *children(lost.pid)):
            os.kill(number, signal.SIGKILL)
        lost.wait()
        agents[agents.index(lost)] = agent(run, port)
        assert [process.wait(200) for process in agents] == [0, 0], log_of(run)
    finally:
        for process in agents:
            for number in (process.pid, *children(process.pid)) if process.poll() is None else ():
                os.kill(number, signal.SIGKILL)
            process.wait()
    assert "continuing after step" in log_of(run)
    assert_same_training(run, tmp_path / "alone", 2e-6)


def listens(process: int, port: int) -> bool:
    """Whether it is this process that waits for others at `port`."""
    sockets = {os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[1].endswith(f":{port:04X}") and words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                return True
    return False


def ranks_that_run(script: str, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """Processes of a world of two that open their Compute and then run `script`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", script]
    started = (
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    )
    return list(started)


def test_verbs_that_follow_one_another_meet_the_other_ranks_once() -> None:
    """As the parts of `beit train` do, whatever patience each is given."""
    script = (
        "from beit.training.device import open_compute\n"
        "first, second = open_compute('cpu', 60.0), open_compute('cpu', 70.0)\n"
        "assert first.host_group is second.host_group and second.world == 2\n"
    )
    assert [rank.communicate(timeout=100)[1] for rank in ranks_that_run(script)] == ["", ""]


@pytest.mark.parametrize(
    ("exchange", "fate"),
    [
        ("largest(1)", "os._exit(3)"),
        ("exchange(1)", "os._exit(3)"),
        ("from_main(int)", "os._exit(3)"),
        ("distribute(torch.nn.Linear(1, 1))", "os._exit(3)"),
        ("exchange(1)", "time.sleep(60)"),
    ],
)
def test_a_rank_lost_outside_of_the_steps_is_said(exchange: str, fate: str) -> None:
    """As between two parts of `beit train`, however the others wait for it."""
    script = (
        "import os, time, torch\n"
        "from beit.training.device import open_compute\n"
        "compute = open_compute('cpu', 3.0)\n"
        f"compute.main and {fate}\n"
        f"compute.{exchange}\n"
    )
    ranks = ranks_that_run(script)
    said = ranks[1].communicate(timeout=100)[1].splitlines()[-1]
    assert said.endswith("LostRank: rank 1 lost touch with another rank; start all ranks again")
    ranks[0].kill()
    ranks[0].communicate()


def test_a_rank_that_never_comes_is_said() -> None:
    [alone] = ranks_that_run("from beit.training.device import open_compute; open_compute('cpu', 2.0)", ranks=1)
    assert "LostRank: rank 0 lost touch with another rank" in alone.communicate(timeout=100)[1]
