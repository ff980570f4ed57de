"""States to resume from, on disk: written whole or not at all, and never trusted without their checksums.

checkpoints/step-N/state.pt        tensors and primitives only, so that no pickle is ever executed
checkpoints/step-N/manifest.json   what it is, size and sha256 of every file, and a checksum of itself
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from beit.atomic import replace_folder
from beit.config.values import counted
from beit.untrusted import checksum_of, file_hash

FORMAT = 1
STATE, MANIFEST = "state.pt", "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d+)")


class BrokenCheckpoint(Exception):
    """A checkpoint that must not be used, and why."""


def write_checkpoint(root: Path, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write `state` as `root/step-N`; it appears there only when all of it is on disk.

    Raises:
        OSError: it could not be written. Nothing of it is left, and what was there before is untouched.
    """

    def fill(folder: Path) -> None:
        _write_state(folder / STATE, state)
        files = {STATE: {"bytes": (folder / STATE).stat().st_size, "sha256": file_hash(folder / STATE)}}
        content = {"format": FORMAT, "step": step, **facts, "files": files}
        manifest = {"content": content, "sha256": checksum_of(content)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    root.mkdir(exist_ok=True)
    # In the place of a broken one, if any: a good one of this step would have been resumed from.
    replace_folder(root / f"step-{step}", fill)


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's writer hides the OSError of a full disk
            raise OSError(f"{path.name} could not be written: {error}") from error


def newest_checkpoint(root: Path, report: Callable[[str], None]) -> tuple[dict[str, Any] | None, list[int]]:
    """Go down the ladder from the newest checkpoint to the first good one.

    Args:
        report: told in one line about every broken one, with the reason.

    Returns:
        The manifest of the newest good checkpoint (None if there is none), and the steps of broken ones above it.
    """
    broken: list[int] = []
    for step in sorted(checkpoint_steps(root), reverse=True):
        try:
            return read_manifest(root / f"step-{step}"), broken
        except BrokenCheckpoint as reason:
            broken.append(step)
            report(f"the checkpoint of step {step} is broken and not used: {reason}")
    return None, broken


def checkpoint_steps(root: Path) -> list[int]:
    """Steps of all checkpoints in `root`, good or broken, in increasing order."""
    matches = [STEP_FOLDER.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return sorted(int(match[1]) for match in matches if match)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as they were written.

    Raises:
        BrokenCheckpoint: with the reason, when anything is missing, cut short or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content, checksum = manifest["content"], manifest["sha256"]
        if checksum_of(content) != checksum:
            raise BrokenCheckpoint(f"{MANIFEST} does not match its own checksum")
        if content["format"] != FORMAT:
            raise BrokenCheckpoint(f"it has format {content['format']}, and this version reads {FORMAT}")
        for name, expected in content["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                raise BrokenCheckpoint(f"{name} has {counted(size, 'byte')} instead of {expected['bytes']:,}")
            if file_hash(folder / name) != expected["sha256"]:
                raise BrokenCheckpoint(f"{name} does not match its checksum")
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise BrokenCheckpoint(f"it cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenCheckpoint(f"{MANIFEST} is not a manifest") from error
    return dict(content)


def read_state(root: Path, step: int) -> dict[str, Any]:
    """The state in `root/step-N`, tensors on the CPU; its manifest has been checked before."""
    return dict(torch.load(root / f"step-{step}" / STATE, map_location="cpu", weights_only=True))


def prune(
    root: Path, keep: int, broken: Collection[int], report: Callable[[str], None], branch: int | None = None
) -> None:
    """Delete broken checkpoints, and good ones but the `keep` newest and that of step `branch`."""
    good = [step for step in checkpoint_steps(root) if step not in (*broken, branch)]
    for step in [*broken, *good[: -max(1, keep)]]:
        try:
            shutil.rmtree(root / f"step-{step}")
        except FileNotFoundError:
            continue
        except OSError as error:
            report(f"the old checkpoint of step {step} could not be deleted: {error}")
