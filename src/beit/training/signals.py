"""Asked to stop from outside: the request is noted, and honoured where the run can be saved."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from beit.patience import shorten
from beit.training.device import Compute

STOPPING = tuple(signal.Signals[n] for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, n))
"""SIGHUP is what a terminal sends that is closed, and SIGUSR1 what SLURM is commonly told to send some time before it
kills a job."""
WAIT = 10.0
"""Seconds for which a run that was asked to stop waits for a batch that hangs."""
NOTICE = b"beit: stopping; the state is saved first (Ctrl-C again: leave at once)\n"


class StopRequested(Exception):
    """Raised by :meth:`StopSignals.poll`, to leave an evaluation."""


class StopSignals:
    """While entered, a stopping signal sets `requested`; a second SIGINT leaves at once."""

    def __init__(self, *, distributed: bool) -> None:
        self.requested = False
        self._distributed = distributed
        self._before: dict[int, Any] = {}

    def poll(self) -> None:
        """Leave by :class:`StopRequested` if a stop was asked for."""
        if self.requested:
            raise StopRequested

    def poll_together(self, compute: Compute) -> None:
        """Leave by :class:`StopRequested` on every rank if any of them was asked to; all must call this."""
        self.requested = bool(compute.largest(int(self.requested)))
        self.poll()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
            # What is ignored stays so: under nohup, a closed terminal is nothing to stop for.
            heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._before and self.requested and self._distributed:
            # torchrun's agent sends SIGTERM once more, which would turn a clean exit into a kill.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            with suppress(OSError):  # of a terminal that is closed
                os.write(2, NOTICE)  # print() is not safe in a signal handler
            shorten(WAIT)
        self.requested = True
