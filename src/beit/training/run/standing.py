"""Where a run stands: what it says itself, and whether its process still lives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from beit.training.run.lock import RunLock
from beit.training.run.record import RunRecord, read_run

GONE = "its process is gone without a word: killed, out of memory, or a power cut"


def read_standing(folder: Path) -> RunRecord:
    """The record of a run, whose state is "killed" where it says "running" and no process runs it.

    UserError for a folder that is no run.
    """
    record = read_run(folder)
    # None where nobody can tell: then the run is believed.
    if record.state == "running" and RunLock.is_held(folder) is False:
        return replace(record, status={**record.status, "state": "killed", "reason": GONE})
    return record
