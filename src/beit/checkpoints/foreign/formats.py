"""Which library wrote a file or folder, told by its configuration and by the names of its weights."""

from pathlib import Path

from beit.checkpoints.foreign import dalle, huggingface, timm, unilm
from beit.checkpoints.foreign.shapes import refuse_strange
from beit.checkpoints.foreign.survey import Foreign, Survey, survey_encoder
from beit.checkpoints.reading.torch_file import INDEX, TensorFile, open_shards, open_tensor_file
from beit.checkpoints.reference import Stated
from beit.config.errors import UserError, require
from beit.untrusted import listed, printable, read_json

WEIGHT_FILES = tuple(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))


def is_foreign(path: Path) -> bool:
    """Whether `path` is a file, or a folder that another library may have written."""
    return path.is_file() or any((path / name).is_file() for name in (*WEIGHT_FILES, *dalle.FILES))


def survey(path: Path, stated: Stated) -> Survey:
    """What the file or folder holds, without reading the weights. Raises :class:`UserError` for no known format."""
    if any((path / name).is_file() for name in dalle.FILES):
        return dalle.survey(path, stated)
    places = [path] if path.is_file() else [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    require(bool(places), f"{path} holds neither {' nor '.join(WEIGHT_FILES)}")
    weights = places[0]
    file = open_shards(weights) if weights.name.endswith(INDEX) else open_tensor_file(weights)
    averaged = stated.weights == "ema"
    holds = isinstance(file.contents, dict) and not file.contents.keys().isdisjoint(unilm.AVERAGES)
    require(holds or not averaged, f"{path} holds no averaged weights; drop weights=ema")
    if foreign := _configured(path, file):
        return survey_encoder(foreign, stated)
    if "blocks.input.w" in dalle.tensors_of(file, "state_dict"):
        if file.path.name not in dalle.FILES:
            raise UserError(f"{path} is one half of OpenAI's tokenizer; name the files {' and '.join(dalle.FILES)}")
        return dalle.survey(file.path.parent, stated)  # where the other half lies
    if "codebook.weight" in dalle.tensors_of(file, "weights"):
        return dalle.survey_plain(file, stated)
    if unilm.reads(file):
        return survey_encoder(unilm.open_file(file, averaged), stated)
    contents = file.contents
    kind = f"a {getattr(contents, 'name', type(contents).__name__)}"
    inside = listed(map(str, contents)) if isinstance(contents, dict) else kind
    known = "give a BEiT or a tokenizer under the names of the released code, timm, Hugging Face or DALL-E"
    raise UserError(f"{path} is of no known format: it holds {inside or 'nothing'}; {known}")


def _configured(path: Path, file: TensorFile) -> Foreign | None:
    """A model of timm or of Hugging Face, with the configuration beside its weights if there is one."""
    names = ("config.json", "preprocessor_config.json") if file.path.name in WEIGHT_FILES else ()
    config, processor = [read_json(file.path.with_name(name)) or {} for name in names] or ({}, {})
    for key, library, its in (("model_type", "Hugging Face", huggingface), ("architecture", "timm", timm)):
        if name := printable(str(config.get(key, "")), 40):
            refuse_strange(path, [*file.tensors(file.contents), name])  # some rotary positions have a name alone
            require(its.is_config(config), f"{path} is a {name} of {library}; give a BEiT or a plain ViT")
    try:
        if timm.is_config(config):
            return timm.open_folder(file, config)
        return huggingface.open_folder(file, config, processor) if huggingface.reads(file) else None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        strange = f"{path}: its config.json is not one of BEiT's ({error})"
        raise (error if isinstance(error, UserError) else UserError(strange)) from None
