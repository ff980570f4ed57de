"""How a run ends otherwise than well."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can mend, told in one line that names the flag or file and the remedy.

    The command line prints the message alone and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run that cannot go on, told in one line; exit status 1."""


class Interrupted(RuntimeError):
    """A run that was stopped from outside and saved its state; the same command continues it. Status 75."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


@contextmanager
def given_by(flag: str) -> Iterator[None]:
    """Names `flag` in front of a :class:`UserError` about what it gave, unless that begins with a flag itself."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith("--") else UserError(f"{flag}: {error}") from error


def require_positive(values: Mapping[str, float | None]) -> None:
    """UserError naming the first flag whose value is not a finite number above 0; None passes."""
    for flag, value in values.items():
        require(value is None or 0 < value < math.inf, f"{flag} must be positive, not {value}")


def require_share(values: Mapping[str, float | None], *, below_one: bool = False) -> None:
    """UserError naming the first flag whose value is not between 0 and 1; None passes."""
    for flag, value in values.items():
        fits = value is None or (0 <= value < 1 if below_one else 0 <= value <= 1)
        require(fits, f"{flag} must be at least 0 and {'below' if below_one else 'at most'} 1, not {value}")


def require_not_negative(values: Mapping[str, float | None]) -> None:
    """UserError naming the first flag whose value is below 0 or not finite; None passes."""
    for flag, value in values.items():
        require(value is None or 0 <= value < math.inf, f"{flag} must not be negative, but is {value}")
