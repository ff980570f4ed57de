"""How a run ends otherwise than well."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can mend, told in one line that names the flag or file and the remedy.

    The command line prints the message alone and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that cannot go on, told in one line; exit status 1."""


class LostRank(RunFailed):
    """Another process of a distributed run is gone, or was waited for in vain."""


class Interrupted(RuntimeError):
    """A run that was stopped from outside and saved its state; the same command continues it. Status 75."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def out_of_memory(error: BaseException) -> bool:
    """Whether it is a lack of memory, of the GPU or of the machine (of which torch makes a plain RuntimeError)."""
    said = re.search("out of memory|not enough memory|allocate memory", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said is not None)


@contextmanager
def given_by(flag: str, instead_of: str = "") -> Iterator[None]:
    """Names `flag` in front of a :class:`UserError` about what it gave, unless that begins with a flag itself, other
    than the one that it stands for here."""
    try:
        yield
    except UserError as error:
        text = re.sub(rf"^{instead_of or flag}\b", flag, str(error))
        raise UserError(text if text.startswith("--") else f"{flag}: {text}") from error
