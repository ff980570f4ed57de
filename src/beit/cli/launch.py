"""Several processes on this machine, one for each device, without torchrun: for ``--devices N``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_GRACE = 40.0  # seconds in which the other ranks may save and leave after one has failed


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run ``beit ARGUMENTS`` in `count` ranks and wait; the exit status is 0, or the first that was not.

    Ctrl-C reaches the ranks by itself, as members of the terminal's foreground group; SIGTERM and SIGUSR1 are
    passed on, so that every rank saves the same step.
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
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]

    def pass_on(number: int, frame: object) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    status, deadline = 0, float("inf")
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
        failed = [rank.returncode for rank in ranks if rank.returncode]
        if failed and not status:
            # A rank that was killed counts as a failure; a shell would say 128 + signal.
            status = failed[0] if failed[0] > 0 else 128 - failed[0]
            deadline = time.monotonic() + _GRACE
    return status or next((abs(rank.returncode) for rank in ranks if rank.returncode), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
