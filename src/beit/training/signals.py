"""Asked to stop from outside: the request is noted, and honoured where the run can be saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

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
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.requested = False

    def poll(self) -> None:
        """Leave by :class:`StopRequested` if a stop was asked for."""
        if self.requested:
            raise StopRequested

    def poll_together(self, compute: Compute) -> None:
        """Leave by :class:`StopRequested` on every rank if any of them was asked to; all must call this."""
        self.requested = bool(compute.largest(int(self.requested)))
        self.poll()

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal has come. A second SIGINT leaves at once."""
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            with suppress(OSError):  # of a terminal that is closed
                os.write(2, NOTICE)  # print() is not safe in a signal handler
            shorten(WAIT)
        self.requested = True


@contextmanager
def stop_signals(*, distributed: bool) -> Iterator[StopSignals]:
    """While inside, a stopping signal is noted, and ends nothing by itself."""
    stop, before = StopSignals(), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
        # What is ignored stays so: under nohup, a closed terminal is nothing to stop for.
        heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, stop.note) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before and stop.requested and distributed:
            # torchrun's agent sends SIGTERM once more, which would turn a clean exit into a kill.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
