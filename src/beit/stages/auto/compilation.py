"""Whether the passes of a run are compiled: tried where the run is long enough, kept where its steps get faster."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch

from beit.config.errors import require
from beit.presets import Choice
from beit.stages.session import Session
from beit.training.plan import Pace

SECONDS, TIMES = 60.0, 20
"""What compiling usually takes (an encoder of 6 blocks on one core: 68 s of processor time), and how many times that
a run must take for a trial."""
GAIN = 0.97
"""A compiled step must take less than this share of the other's time."""


def require_compiler(device: torch.device) -> None:
    """UserError where torch has nothing to compile with."""
    if device.type == "cuda":
        require(find_spec("triton") is not None, "--compile on needs Triton (pip install triton), or --compile off")
    else:
        found = any(map(which, (os.environ.get("CXX", "g++"), "clang++")))
        require(found, "--compile on needs a C++ compiler, as g++, and there is none: install one, or --compile off")


def settle_compilation(
    session: Session[Any], pace: Pace, seconds: float, rehearse: Callable[[Any], Pace]
) -> Session[Any]:
    """`session` with its pace, and with the choice of `--compile auto` where compiling may pay; a dry run compiles
    nothing.

    pace, seconds: of the run as it is. rehearse: configuration -> pace of its run.
    """
    config, compute = session.config, session.compute
    is_long = compute.from_main(lambda: seconds >= TIMES * SECONDS)
    if config.compile != "auto" or session.dry_run or not is_long:
        return session._replace(pace=pace)
    on = replace(config, compile="on").as_typed(config.typed)
    try:
        trial = rehearse(on)
    except RuntimeError as error:  # among them what torch raises where there is no compiler
        reason = f"this machine cannot compile ({str(error).strip().splitlines()[0]:.80})"
        return _settled(session, pace, "off", reason)
    step, compiled = compute.from_main(lambda: (pace.step, trial.step))
    pays, reason = compiled < GAIN * step, f"a step takes {compiled:.3g} s compiled, and {step:.3g} s else"
    return _settled(session, trial if pays else pace, "on" if pays else "off", reason)


def _settled(session: Session[Any], pace: Pace, choice: str, reason: str) -> Session[Any]:
    config = replace(session.config, compile=choice).as_typed(session.config.typed)
    choices = (*session.choices, Choice({"compile": choice}, reason))
    return session._replace(config=config, pace=pace, choices=choices)
