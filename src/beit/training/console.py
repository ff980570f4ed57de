"""What a run says: to the terminal or a file of plain lines, and all of it to log.txt. Only the main rank speaks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Console:
    """Prints, and repeats what it prints into a log file as soon as there is one."""

    def __init__(self, main: bool = True) -> None:
        self._main = main
        self._log: IO[str] | None = None
        self._unlogged: list[str] = []
        self._progress: Progress | None = None

    def say(self, text: str = "") -> None:
        """Print `text` above the progress bar, and log it."""
        if not self._main:
            return
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)
        self.log(text)

    def log(self, text: str) -> None:
        """Write `text` to the log file alone."""
        if not self._main:
            return
        if self._log is None:
            self._unlogged.append(text)
        else:
            with suppress(OSError):  # of a full disk; what it keeps in memory is tried again
                self._log.write(f"{text}\n")
                self._log.flush()

    def log_to(self, path: Path) -> None:
        """Append to `path` from now on, beginning with what was said before."""
        if self._main:
            self.close()
            self._log = path.open("a", encoding="utf-8", errors="backslashreplace")
            for text in self._unlogged:
                self._log.write(f"{text}\n")
            self._log.flush()
            self._unlogged.clear()

    def close(self) -> None:
        """Let go of the log file."""
        if self._log is not None:
            with suppress(OSError):
                self._log.close()
            self._log = None

    @contextmanager
    def progress(self, steps: int, done: int) -> Iterator[StepProgress]:
        """Follow a run of `steps` steps: a bar on a terminal, plain lines elsewhere."""
        if not (self._main and sys.stdout.isatty()):
            yield StepProgress(self)
            return
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Terminal(file=sys.stdout), transient=True) as bar:
            self._progress = bar
            try:
                yield StepProgress(self, bar, bar.add_task("", total=steps, completed=done))
            finally:
                self._progress = None


class StepProgress:
    """Where a run stands: a bar that moves with every step, or a line with every report."""

    def __init__(self, console: Console, bar: Progress | None = None, task: TaskID | None = None) -> None:
        self._console, self._bar, self._task = console, bar, task

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def report(self, line: str, short: str) -> None:
        """The figures of a stretch of steps: `short` beside the bar, else `line`; the log gets `line`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=short)
            self._console.log(line)
        else:
            self._console.say(line)


def duration(seconds: float) -> str:
    """Seconds as people read them: 45 s, 12 min 05 s, 3 h 07 min, 2 d 4 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
