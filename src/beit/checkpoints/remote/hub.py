"""The Hugging Face Hub: hf://owner/name wherever a model is wanted, and uploads."""

from __future__ import annotations

import re
from pathlib import Path

from beit.checkpoints.remote.fetch import check
from beit.config.errors import UserError
from beit.presets.released import HUB

_SMALL = ("config.json", "preprocessor_config.json", "model.json")
_WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*.bin"),
)
"""The first kind that a repository has: in one file, or in several with their index."""

_REPOSITORY = r"(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]*\w)?"


def fetched(text: str) -> Path:
    """The folder that the files of hf://owner/name were fetched to (or lie in, when there is no network).

    The Hub names the SHA-256 of every large file, and its cache calls the file so: what has another is refused.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = _repository(text)
    try:
        for patterns in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, *patterns]))
            if files := [file for pattern in patterns[1:] for file in folder.glob(pattern)]:
                break
    except RepositoryNotFoundError:
        raise UserError(f"{text} does not exist, or is private and `hf auth login` has not been run") from None
    except Exception as error:  # whatever a network, its client and the library's checks of names raise
        raise UserError(
            f"{text} cannot be fetched ({_first_line(error)}); download the files by hand and give their folder"
        ) from None
    for file in files:
        called = file.resolve().name
        check(file, called if re.fullmatch("[0-9a-f]{64}", called) else None)
    return folder


def push(folder: Path, destination: str) -> str:
    """Uploads the files of `folder` to owner/name, a private repository unless it exists; gives its address."""
    from huggingface_hub import HfApi

    api, name = HfApi(), _repository(destination)
    try:
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # as above
        raise UserError(
            f"--push {name} failed ({_first_line(error)}); the files are in {folder}. Is `hf auth login` done?"
        ) from None
    return f"{HUB}{name}"


def _repository(text: str) -> str:
    name = text.removeprefix(HUB).strip("/")
    if not re.fullmatch(_REPOSITORY, name, re.ASCII):
        raise UserError(f"{text} is not of the form {HUB}owner/name")
    return name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
