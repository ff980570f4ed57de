"""`beit report`: one offline HTML page about one or several runs."""

from pathlib import Path

from beit.config.use import Outcome, ReportConfig
from beit.presets.trials import seed_spread
from beit.training.console import bar
from beit.training.run.record import RunRecord, read_standing
from beit.verdicts.comparison import comparisons
from beit.visualize.report import write_report


def report(config: ReportConfig) -> Outcome:
    """Write the page, say where, and return the place as `page`."""
    with bar("drawing", None):
        records = [record for name in config.runs for record in _records_of(Path(name))]
        lines = comparisons(records, seed_spread)
        path = write_report(records, Path(config.out) if config.out else None, notes=lines)
    print("\n".join(lines), end="\n" * bool(lines))
    print(f"wrote {path} (one self-contained page: open it in any browser)")
    return Outcome(config, {"page": path})


def _records_of(run: Path) -> list[RunRecord]:
    """Those of the runs that a run of `beit train` is made of; of any other its own."""
    record = read_standing(run)
    if record.verb != "train":
        return [record]
    return [read_standing(run / name) for name in record.config.get("parts") or {} if (run / name).exists()]
