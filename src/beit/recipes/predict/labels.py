"""Predicted labels for people on a terminal, and as lines for other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from beit.recipes.predict.output import Record

SHOWN = 20
"""Images in a table on a terminal; the first ones alone when a file has them all."""


@contextmanager
def shown_labels(out: str | None) -> Iterator[Callable[[Record], None]]:
    """Takes records with `top`: tables on a terminal; elsewhere, unless the file `out` has it all, a line for each
    image with tabs between columns."""
    terminal = Console()
    waiting: list[Record] = []
    count = 0

    def show(record: Record) -> None:
        nonlocal count
        count += 1
        if not terminal.is_terminal:
            if out is None:
                print(as_line(record))
        elif out is None or count <= SHOWN:
            waiting.append(record)
            if len(waiting) == SHOWN:
                flush()

    def flush() -> None:
        with terminal.capture() as captured:
            terminal.print(table_of(waiting, first=count <= SHOWN))
        print(captured.get(), end="")  # the way around a progress bar
        waiting.clear()

    yield show
    if waiting:
        flush()
    if terminal.is_terminal and out is not None and count > SHOWN:
        terminal.print(f"... and {count - SHOWN:,} more in {escape(out)}", highlight=False)


def as_line(record: Record) -> str:
    cells = [f"{entry['label']}\t{entry['probability']:.4f}" for entry in record["top"]]
    return "\t".join([record["image"], *cells])


def table_of(records: Sequence[Record], *, first: bool) -> Table:
    """A row for each image, under headings in the `first` of several tables."""
    table = Table(box=None, show_header=first)
    table.add_column("image", overflow="fold")
    table.add_column("label")
    table.add_column("probability", justify="right")
    table.add_column("then", style="dim", no_wrap=True)
    for record in records:
        best, *others = record["top"]
        then = ", ".join(f"{escape(o['label'])} {o['probability']:.1%}" for o in others[:2])
        share = f"{best['probability']:.1%}"
        table.add_row(escape(record["image"]), f"[bold]{escape(best['label'])}[/]", share, then)
    return table
