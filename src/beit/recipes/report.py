"""`beit report`: one offline HTML page about one or several runs."""

from __future__ import annotations

from pathlib import Path

from beit.config.use import ReportConfig
from beit.training.run.record import read_standing
from beit.visualize.report import write_report


def report(config: ReportConfig) -> Path:
    """Write the page, say where, and return its path."""
    records = [read_standing(Path(run)) for run in config.runs]
    path = write_report(records, Path(config.out) if config.out else None)
    print(f"wrote {path} (one self-contained page: open it in any browser)")
    return path
