"""What every test can count on, whichever tests ran before and however busy the machine is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The models of tests are too small for two threads, and slow with them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """torch's random numbers; numpy's and Python's are pytest-randomly's affair."""
    torch.manual_seed(0)
