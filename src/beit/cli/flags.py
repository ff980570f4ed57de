"""The words of a command line as a configuration: flags over a file over a preset over defaults."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import typing
from collections.abc import Sequence
from typing import Any

from beit.config.errors import UserError
from beit.config.run import TrainingConfig

Arguments = list[str]


def name_words(config_type: type, fields: Sequence[str], arguments: Arguments) -> Arguments:
    """`arguments` with the words that belong to no flag, wherever they stand, each after the flag of its field."""
    if not fields:
        return arguments
    hints = typing.get_type_hints(config_type)
    words: Arguments = []
    rest: Arguments = []
    room: float = 0  # how many more words the last flag takes
    for argument in arguments:
        if argument.startswith("-"):
            name, value, _ = argument.removeprefix("--").replace("-", "_").partition("=")
            room = 0 if value else _words_of(hints.get(name, bool))
        elif room < 1:
            words.append(argument)
            continue
        else:
            room -= 1
        rest.append(argument)
    named: Arguments = []
    for index, field in enumerate(fields):
        own = words[index:] if index == len(fields) - 1 else words[index : index + 1]
        named += [f"--{field}", *own] if own else []
    return [*named, *rest]


def _words_of(hint: Any) -> float:
    """How many words a flag of this type takes."""
    kinds = [typing.get_origin(kind) for kind in (hint, *typing.get_args(hint))]
    return 0 if hint is bool else math.inf if tuple in kinds else 1


def parse(config_type: type, arguments: Arguments, layers: Sequence[dict[str, Any]], program: str) -> Any:
    """Flags over `layers` over defaults, as a validated `config_type`.

    tyro parses an unvalidated twin of the class, so that a value missing from one layer may come from the
    next; what tyro has to say against the flags is said again in one line.
    """
    import tyro

    from beit.config.files import EXCLUSIVE, layered

    _refuse_repetition(arguments)
    arguments = ["None" if argument == "null" else argument for argument in arguments]
    twin = type(config_type.__name__, (config_type,), {"__post_init__": lambda self: None})
    known = layered(config_type, layers)
    fields = dataclasses.fields(config_type)
    default = twin(**{field.name: known.get(field.name, tyro.MISSING) for field in fields})
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                twin, prog=program, args=arguments, default=default, description=config_type.__doc__
            )
    except SystemExit as leave:
        if leave.code:
            raise UserError(_one_line(complaint.getvalue(), program)) from None
        if issubclass(config_type, TrainingConfig):
            print(_COMMON_HELP, end="")
        raise
    values = {field.name: getattr(parsed, field.name) for field in fields}
    given = {argument.split("=")[0][2:].replace("-", "_") for argument in arguments if argument[:2] == "--"}
    for group in EXCLUSIVE:
        said = [name for name in group if name in given]
        if len(said) == 1:
            values.update({name: None for name in group if name in values and name != said[0]})
    return config_type(**values)


def _refuse_repetition(arguments: Arguments) -> None:
    flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            raise UserError(f"{flag} is given twice; give it once, with all its values behind it")


_COMMON_HELP = """
--preset NAME      start from a recipe of `beit presets`
--config FILE      values from a YAML file, over the preset and under the flags
--print-config     print the resolved configuration and stop
--dry-run          print what would be done and stop
--overwrite        delete the run in --out and start afresh
"""


def take_layers(config_type: type, arguments: Arguments) -> tuple[Arguments, list[dict[str, Any]]]:
    """Take ``--preset NAME`` and ``--config FILE`` out of `arguments`; give the rest and their values."""
    from beit.config.files import read_yaml
    from beit.presets import find

    rest, preset, file = list(arguments), None, None
    for flag in ("--preset", "--config"):
        value = None
        for index, argument in enumerate(rest):
            if argument == flag or argument.startswith(flag + "="):
                used = 1 if "=" in argument else 2
                if len(rest) < index + used:
                    raise UserError(f"{flag} needs a value")
                value = argument.partition("=")[2] if used == 1 else rest[index + 1]
                del rest[index : index + used]
                break
        preset, file = (value, file) if flag == "--preset" else (preset, value)
    layers = []
    if preset is not None:
        layers.append(dict(find(config_type, preset).values))
    if file is not None:
        layers.append(read_yaml(file, config_type))
    return rest, layers


def _one_line(complaint: str, program: str) -> str:
    """tyro's box as one line: what is wrong, and the flags that were perhaps meant."""
    text = re.sub(r"[│╭╮╰╯|+]", " ", complaint)
    parts = [" ".join(part.split()).strip("─- ") for part in re.split(r"[─-]{3,}", text)]
    heading, body, *rest = [part for part in parts if part]
    flags = re.compile(r"(?<![\w`-])--[a-z][\w-]*")
    if heading.startswith("Required"):
        return f"{program} needs {' and '.join(flags.findall(body))}; {program} --help explains"
    if failed := re.search(r"Error parsing (--\S+): .*?(?:\[?'([^']*)'\]?)", body):
        return f"{failed[1]} cannot be {failed[2]!r}; see {program} --help"
    meant = flags.findall(rest[0]) if rest and rest[0].startswith("Perhaps") else []
    hint = f"; did you mean {' or '.join(dict.fromkeys(meant))}?" if meant else f"; see {program} --help"
    return body.rstrip(".") + hint
