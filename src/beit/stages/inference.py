"""What the verbs that train nothing have in common: this machine, notes and files, and how images are shown."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, cast, get_args

from beit.checkpoints.preparation import preparation
from beit.config.errors import UserError, require
from beit.config.run import RanksConfig
from beit.data.views.evaluation import EvaluationView
from beit.data.views.geometry import Filter
from beit.stages.batches import Machine, open_machine
from beit.training.device import open_compute
from beit.untrusted import in_lines


@contextmanager
def open_ranks(config: RanksConfig) -> Iterator[Machine]:
    """This machine, for a verb that trains nothing; what ranks print, the main one alone does."""
    machine = open_machine(config, open_compute(config.device))
    with redirect_stdout(sys.stdout if machine.compute.main else io.StringIO()):
        yield machine


def print_notes(notes: Iterable[str]) -> None:
    """What was ignored or decided, each line once, beside the output and not in it."""
    for note in dict.fromkeys(notes) if os.environ.get("RANK", "0") == "0" else ():
        print(in_lines(note), file=sys.stderr, flush=True)


def require_writable_file(out: str, flag: str = "--out") -> None:
    """Make the folder around the file `out`, which `flag` gave. UserError, before any work, where there can be no
    such file."""
    path = Path(out)
    require(not path.is_dir(), f"{flag} {out} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.filename} is in no folder, or is none, or cannot be written ({error.strerror})"
        raise UserError(f"{flag} {out}: {reason}; choose another") from error


def classifier_view(size: tuple[int, int], description: dict[str, Any]) -> EvaluationView:
    """How a classifier of images of `size` (H, W) is shown them, as its description says."""
    interpolation, crop, mode = preparation(description, size)
    filters, modes = get_args(Filter), ("center", "squash")
    if interpolation not in filters or mode not in modes:
        known = f"only {', '.join(filters)} and {', '.join(modes)} are known"
        mend = "beit convert it --to beit and change these in its model.json"
        raise UserError(f"the model wants interpolation {interpolation} and crop_mode {mode}, and {known}; {mend}")
    return EvaluationView(size, crop_share=crop, interpolation=cast(Filter, interpolation), squash=mode == "squash")
