"""`beit report`: one offline HTML page about one or several runs."""

from __future__ import annotations

from pathlib import Path

from beit.config.files import read_record
from beit.config.use import ReportConfig, TrainConfig
from beit.presets.trials import seed_spread
from beit.training.console import bar
from beit.training.run.record import read_standing
from beit.untrusted import read_json
from beit.verdicts.comparison import comparisons
from beit.visualize.report import write_report


def report(config: ReportConfig) -> Path:
    """Write the page, say where, and return its path."""
    with bar("drawing", None):
        records = [read_standing(run) for name in config.runs for run in _parts_of(Path(name))]
        lines = comparisons(records, seed_spread)
        path = write_report(records, Path(config.out) if config.out else None, notes=lines)
    print("\n".join(lines), end="\n" * bool(lines))
    print(f"wrote {path} (one self-contained page: open it in any browser)")
    return path


def _parts_of(run: Path) -> list[Path]:
    """The runs that a run of `beit train` is made of; any other itself."""
    if (read_json(run / "status.json") or {}).get("verb") != "train":
        return [run]
    parts = read_record(run / "config.yaml", TrainConfig)[0].get("parts") or {}
    return [run / name for name in parts if (run / name).exists()]
