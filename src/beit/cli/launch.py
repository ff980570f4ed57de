"""Several processes on this machine, one for each device, without torchrun: for ``--devices N``."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

_PASSED_ON = [signal.Signals[n] for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if n in dir(signal)]
_GRACE = 40.0  # seconds in which the other ranks may save and leave after one has failed


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run ``beit ARGUMENTS`` in `count` ranks and wait; the exit status is 0, or the first that was not.

    The ranks are a process group of their own, which hears nothing from the terminal: what stops a run is passed on
    to each of them once, so that all save the same step. Where this process is killed, Linux sends them SIGTERM.
    """
    common = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    # Each rank would otherwise start a thread for every core.
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-m", "beit", *arguments]
    start = partial(subprocess.Popen, command, process_group=0, preexec_fn=_die_with_parent)
    ranks = [start(env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]

    def pass_on(number: int, frame: object) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    # What is ignored stays so, as a closed terminal is under nohup.
    before = {n: signal.signal(n, pass_on) for n in _PASSED_ON if signal.getsignal(n) != signal.SIG_IGN}
    try:
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for place, rank in enumerate(ranks):
            if rank.poll() is None:
                print(f"beit: rank {place} gave no sign of life, and is killed", file=sys.stderr)
                rank.kill()


def _wait(ranks: Sequence[subprocess.Popen[str]]) -> int:
    status, deadline = 0, float("inf")
    while None in [rank.poll() for rank in ranks] and time.monotonic() < deadline:
        time.sleep(0.1)
        failed = [rank.returncode for rank in ranks if rank.returncode]
        if failed and not status:
            # A rank that was killed counts as a failure; a shell would say 128 + signal.
            status = failed[0] if failed[0] > 0 else 128 - failed[0]
            if killed := [number for number, rank in enumerate(ranks) if (rank.returncode or 0) < 0]:
                print(f"beit: rank {killed[0]} was killed, most often for want of memory", file=sys.stderr)
            deadline = time.monotonic() + _GRACE
    return status or next((abs(rank.returncode) for rank in ranks if rank.returncode), 0)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
