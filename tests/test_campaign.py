"""The campaign's short form: each of what it does to runs, once, to the quickest verb."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks what has threads")]


def test_what_happens_to_runs_ends_well() -> None:
    program = [sys.executable, str(Path(__file__).with_name("campaign.py"))]
    options = ["--once", "--verbs", "tokenizer", "--timeout", "8s"]
    campaign = subprocess.run([*program, *options], capture_output=True, text=True, timeout=250)
    assert campaign.returncode == 0, campaign.stdout[-2000:] + campaign.stderr[-2000:]
    outcomes = re.findall(r"^tokenizer +\S.*?  +(equal|ended|refused in words) +1$", campaign.stdout, re.M)
    assert len(outcomes) == 5, campaign.stdout[-2000:]
