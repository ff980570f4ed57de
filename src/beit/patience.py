"""How long a wait for others may last: a file system, a loader process. The alarm that ends it is the process's."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from beit.config.errors import RunFailed

DEFAULT = 300.0
"""Seconds, where nothing is said."""


class Silence(RunFailed):
    """Somebody was waited for in vain."""


class OutOfPatience(BaseException):
    """A wait has taken too long. No Exception, so that nobody on its way takes it for a fault of his own."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """:class:`OutOfPatience` inside, once it has taken `seconds`. In the main thread, which alone hears alarms."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    handler = signal.signal(signal.SIGALRM, _lose)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


def shorten(seconds: float) -> None:
    """Whoever is being patient now has `seconds` left at most. May be called by a signal's handler."""
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _lose:
        signal.setitimer(signal.ITIMER_REAL, min(seconds, signal.getitimer(signal.ITIMER_REAL)[0]))


def _lose(number: int, frame: object) -> None:
    raise OutOfPatience
