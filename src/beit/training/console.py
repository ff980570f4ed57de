"""What a run says: to the terminal or a file of plain lines, and all of it to log.txt. Only the main rank speaks.

A terminal has one live display, at its bottom: a bar for each piece of work under way, and lines below them.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from beit.untrusted import in_lines

TRACKED, QUIET = 1000, 10.0
"""Items that go by before a bar moves; seconds between two lines of training in a pipe."""


class Console:
    """Prints, and repeats what it prints into a log file as soon as there is one."""

    def __init__(self, main: bool = True) -> None:
        self._main = main
        self._log: IO[str] | None = None
        self._unlogged: list[str] = []
        self._quiet_until = 0.0

    def say(self, text: str = "", hang: int = 0) -> None:
        """Print `text`, above the bars where there are any, and log it. Of a terminal's lines that it takes, all but
        the first begin `hang` columns in."""
        if not self._main:
            return
        text = in_lines(text)
        self.log(text)
        if sys.stdout.isatty():
            terminal = Terminal() if _display is None else _display.console
            if not text.startswith("next: "):  # a command may be copied, and stays whole
                lines = Text(text[hang:]).wrap(terminal, terminal.width - hang)
                text = text[:hang] + ("\n" + " " * hang).join(line.plain for line in lines)
            terminal.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def log(self, text: str) -> None:
        """Write `text` to the log file alone, or keep it until there is one, which other ranks do not have."""
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
            for text in self.take_unlogged():
                self.log(text)

    def take_unlogged(self) -> list[str]:
        """What was kept, and is not any more."""
        texts, self._unlogged = self._unlogged, []
        return texts

    def close(self) -> None:
        """Let go of the log file."""
        if self._log is not None:
            with suppress(OSError):
                self._log.close()
            self._log = None

    def report(self, line: str, short: str, printed: str | None = None) -> None:
        """The figures of an evaluation, or, where `printed` is given, of a stretch of training: `short` below the
        bars, where there are any. `line` is said; of training it is for the log alone, and a pipe gets `printed`."""
        if _display is not None:
            _display.figures["judged" if printed is None else "training"] = short
        elif printed is not None and self._main and time.monotonic() > self._quiet_until:
            print(in_lines(printed), flush=True)
            self._quiet_until = time.monotonic() + QUIET
        (self.say if printed is None else self.log)(line)


class Display(Progress):
    """Bars, and below them lines that wrap at the width of the terminal."""

    def __init__(self, *columns: ProgressColumn, **look: Any) -> None:
        self.figures: dict[str, str] = {}
        super().__init__(*columns, **look)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from map(Text, self.figures.values())


_display: Display | None = None
"""What is live on the terminal, of which there is one."""


class Standing(ProgressColumn):
    """How much of a piece of work is done, and how long the rest will take."""

    def render(self, task: Task) -> Text:
        total = f" of {task.total:,.0f}" if task.total is not None else ""
        done = f"{task.completed:,.0f}{total}" if task.completed or total else ""
        left = task.fields.get("left", task.time_remaining)
        return Text(done if left is None or task.finished else f"{done}  {duration(left)} left")


class Notebook(NamedTuple):
    """A bar of tqdm in a notebook, where rich's would swallow lines that are printed while it is drawn."""

    drawn: Any

    def advance(self, _: TaskID, by: int) -> None:
        self.drawn.update(by)

    def update(self, _: TaskID, completed: int, left: float | None) -> None:
        self.drawn.update(completed - self.drawn.n)


class Bar(NamedTuple):
    """A piece of work under way, as a display has it."""

    display: Display | Notebook
    task: TaskID

    def move(self, by: int = 1) -> None:
        """So much more is done."""
        self.display.advance(self.task, by)

    def move_to(self, done: int, left: float | None) -> None:
        """So much is done, and about `left` seconds are left, if anybody knows."""
        self.display.update(self.task, completed=done, left=left)


@contextmanager
def bar(
    title: str, total: int | None, *, done: int = 0, shown: bool = True, file: IO[str] | None = None
) -> Iterator[Bar]:
    """A bar of `total` parts (None: so many as there are) while inside: in a notebook, among those on the terminal,
    else the first, if `file` (by default standard error) is one and the bar is to be `shown`."""
    global _display
    if shown and Terminal().is_jupyter:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, desc=title, initial=done, leave=False) as drawn:
            yield Bar(Notebook(drawn), TaskID(0))
        return
    outer, display, file = _display, _display if shown else None, file or sys.stderr
    if display is None:
        columns = (TextColumn("{task.description}"), BarColumn(None), Standing(Column(no_wrap=True)))
        # Lines for a pipe, printed while the bar is shown, must not end up above it.
        beside, hidden = sys.stdout.isatty(), not (shown and file.isatty())
        look: Any = {"transient": True, "expand": True, "redirect_stdout": beside, "disable": hidden}
        display = Display(*columns, console=Terminal(file=file), **look)
        display.start()
        _display = outer if hidden else display
    task = display.add_task(title, total=total, completed=done)
    try:
        yield Bar(display, task)
    finally:
        display.remove_task(task)
        if not display.tasks and not display.disable:
            display.stop()
            _display = None


def track(items: Iterable[Any], title: str) -> Iterator[Any]:
    """The `items`; a bar on the first rank shows how many went by."""
    with bar(title, None, shown=os.environ.get("RANK", "0") == "0") as progress:
        for number, item in enumerate(items, 1):
            yield item
            if number % TRACKED == 0:
                progress.move(TRACKED)


def duration(seconds: float) -> str:
    """Seconds as people read them: 45 s, 12 min 05 s, 3 h 07 min, 2 d 4 h, 12 years."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days > 999:
        return f"{days / 365:,.0f} years"
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
