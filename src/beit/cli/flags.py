"""The words of a command line as a configuration: flags over a file over a preset over defaults."""

import contextlib
import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from beit.cli.help import explain
from beit.config.errors import UserError, require
from beit.config.files import layered, overlaid, read_yaml
from beit.config.run import TrainingConfig
from beit.config.start import StartConfig
from beit.config.use import TrainConfig
from beit.config.values import FILE_ONLY, alternatives, as_type, flag_of, in_words
from beit.presets import AUTO, Values, find, resolve

TRAINED = (TrainingConfig, TrainConfig)
"""Configurations of the verbs that leave runs, which take the flags of :class:`CommonFlags`."""

ALIASES = {"channels": "image_channels"}
"""Shorter names of flags, for the verbs that have no other knob of that name."""
NULL = ("none", "null", "None")
"""What says that a knob has no value."""

Arguments = list[str]
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """The flags of every training verb that are no knobs."""

    config: str | None = None
    """Values from a YAML file, over the preset and under the flags."""
    print_config: bool = False
    """Print the resolved configuration and stop."""
    dry_run: bool = False
    """Print what would be done and stop."""
    overwrite: bool = False
    """Delete the run in --out and start afresh."""


def parse(
    config_type: type[Config], program: str, arguments: Arguments, positional: Sequence[str] = ()
) -> tuple[Config, CommonFlags]:
    """Flags over a file over a preset over defaults, as a validated `config_type`; and the flags that are no knobs.
    Words without a flag are for the fields in `positional`."""
    knobs, common_type = typing.get_type_hints(config_type), typing.get_type_hints(CommonFlags)
    hints = {**knobs, **common_type} if issubclass(config_type, TRAINED) else knobs
    words = [argument for argument in arguments if argument not in ("-h", "--help")]
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
        if field.metadata == FILE_ONLY:
            del hints[field.name]
    values = _values(words, hints, positional, program)
    common = CommonFlags(**{name: values.pop(name) for name in (hints.keys() - knobs.keys()) & values.keys()})
    file = {} if common.config is None else read_yaml(common.config, config_type)
    typed, layers = overlaid([file, values]), list[Values]()
    # None below a file that has every value, as those that runs write.
    preset = values.get("preset", None if {"steps", "epochs"} <= file.keys() else file.get("preset", AUTO))
    if issubclass(config_type, TrainingConfig) and preset not in (AUTO, None):
        layers.append(find(config_type, preset).values)
    below = layered(config_type, layers)
    if words != arguments:
        bases = (config_type, CommonFlags) if issubclass(config_type, TRAINED) else (config_type,)
        explain(bases, positional, below, program)
        raise SystemExit(0)
    spelling = {name: name.upper() for name in positional}
    missing = [spelling.get(name, flag_of(name)) for name in knobs if name not in below | typed]
    require(not missing, f"{program} needs {' and '.join(missing)}; {program} --help explains")
    if not issubclass(config_type, TrainingConfig):
        return config_type(**typed), common
    config = config_type(**{**typed, "preset": preset}).as_typed(typed)
    # What hangs on the network of a model that a run goes on from is seen when that is read.
    goes_on = "init" in typed and not issubclass(config_type, StartConfig)
    try:
        resolved, _ = resolve(config)  # of auto, to see what does not fit before anything is opened
    except UserError:
        if not goes_on:
            raise
        return config, common
    resolved.refuse_idle(values)
    return config if preset == AUTO or goes_on else resolved, common


def _values(
    arguments: Arguments, hints: Mapping[str, object], positional: Sequence[str], program: str
) -> dict[str, Any]:
    """What the arguments say, by field. Words that no flag takes, wherever they stand, are for `positional`."""
    values: dict[str, Any] = {}
    free: Arguments = []
    unknown = [argument for argument in arguments if argument == "--"]
    valued = {argument[: argument.find("=") + 1] for argument in arguments if argument.startswith("--")}
    for name, words in words_by_flag(arguments).items():
        name = name if name in hints else ALIASES.get(name, name)
        switch = name.removeprefix("no_")
        if hints.get(switch) is bool and f"{flag_of(name)}=" not in valued:
            values[switch] = switch == name
        elif name in hints and hints.get(switch) is not bool:
            values[name], words = _read(name, words, hints[name])
        elif name:
            unknown.append(flag_of(name))
        free += words
    for name in positional:
        if free and name not in values:
            values[name], free = _read(name, free, hints[name])
    unknown += free
    if unknown:
        near = difflib.get_close_matches(unknown[0], map(flag_of, hints), n=1)
        hint = f"did you mean {near[0]}?" if near else f"see {program} --help"
        raise UserError(f"Unrecognized options: {', '.join(unknown)}; {hint}")
    return values


def words_by_flag(arguments: Arguments) -> dict[str, Arguments]:
    """The words behind each flag, under the name of its field; those before the first under no name."""
    words: Arguments = []
    flags = {"": words}
    for argument in arguments:
        if argument.startswith("--") and argument != "--":
            flag, equals, value = argument.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            require(name not in flags, f"{flag} is given twice; give it once, with all its values behind it")
            words = flags[name] = [value] if equals else []
        else:
            words.append(argument)
    return flags


def _read(name: str, words: Arguments, hint: object) -> tuple[object, Arguments]:
    """What the words behind a flag say, as many of them as its type takes, and the others."""
    options = alternatives(hint)
    if words and words[0] in NULL and types.NoneType in options and repr(words[0]) not in str(hint):
        return None, words[1:]
    for count in sorted({count for count in (len(words), 2, 1) if count <= len(words)}, reverse=True):
        row, numbers = tuple(words[:count]), tuple(map(_number, words[:count]))
        readings = [row, numbers] if count > 1 else [*row, *numbers, row, numbers]
        for option, reading in itertools.product(options, readings):
            with contextlib.suppress(TypeError):
                return as_type(reading, option), words[count:]
    text = " ".join(words if "tuple" in str(hint) else words[:1])
    problem = f"cannot be {text!r}, but must be {in_words(hint)}" if words else "needs a value"
    raise UserError(f"{flag_of(name)} {problem}")


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word
