"""Failures that torch reports at length, said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from beit.config.errors import Interrupted, RunFailed
from beit.training.device import Compute
from beit.training.run.saver import Saver

LOST_RANK = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe")


def out_of_memory(error: BaseException) -> bool:
    """Whether it is a lack of memory, of the GPU or of the machine (of which torch makes a plain RuntimeError)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error).lower()


@contextmanager
def explained(saver: Saver, compute: Compute) -> Iterator[None]:
    """Turn a lack of memory and the loss of another rank into a RunFailed that says what to do."""
    try:
        yield
    except (RunFailed, Interrupted):
        raise
    except (RuntimeError, MemoryError) as error:
        step, config, text = saver.state.step + 1, saver.plan.config, str(error).lower()
        if out_of_memory(error):
            raise RunFailed(
                f"out of memory in step {step}, with --batch-size {config.batch_size} and --accumulate"
                f" {config.accumulate}: double --accumulate or lower --batch-size; {saver.last_resort}"
            ) from error
        if compute.world > 1 and any(sign in text for sign in LOST_RANK):
            raise RunFailed(
                f"rank {compute.rank} lost touch with another rank in step {step}; {saver.last_resort}"
            ) from error
        raise
