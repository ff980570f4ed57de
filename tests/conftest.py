"""What every test can count on: torch's random numbers are the same, whichever tests ran before."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
