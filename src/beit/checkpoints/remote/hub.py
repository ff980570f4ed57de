"""The Hugging Face Hub: hf://owner/name wherever a model is wanted."""

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


def fetched(text: str) -> Path:
    """The folder that the files of hf://owner/name were fetched to (or lie in, when there is no network).

    The Hub names the SHA-256 of every large file, and its cache calls the file so: what has another is refused.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = text.removeprefix(HUB)
    try:
        for patterns in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, *patterns]))
            if files := [file for pattern in patterns[1:] for file in folder.glob(pattern)]:
                break
    except RepositoryNotFoundError:
        raise UserError(f"{text} does not exist, or is private and `hf auth login` has not been run") from None
    except Exception as error:  # whatever a network, its client and the library's checks of names raise
        reason = f"{error}".strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{text} cannot be fetched ({reason}); download its files, give their folder") from None
    for file in files:
        called = file.resolve().name
        check(file, called if re.fullmatch("[0-9a-f]{64}", called) else None)
    return folder
