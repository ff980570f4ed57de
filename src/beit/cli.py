"""The command line: a table from verb to (configuration, function); parse, import lazily, run.

Exit status: 0 done, 1 failed (without a word where nobody reads the output any more), 2 a user's mistake (one line on
standard error), 75 interrupted and saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import math
import os
import re
import select
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from beit import config as configs
from beit.config import Interrupted, RunFailed, TrainingConfig, UserError
from beit.launch import launch

Arguments = list[str]


@dataclass(frozen=True)
class Verb:
    """One command: the configuration it takes, the module and function that run it."""

    config: type
    run: str
    help: str
    positional: str = ""
    """The fields that take the words without a flag, in order; the last takes all that remain."""


VERBS: dict[str, Verb] = {
    "demo": Verb(configs.DemoConfig, "demo:demo", "the whole story on built-in images, in minutes on a CPU"),
    "check": Verb(configs.CheckConfig, "check:check", "look a data set over before anything is trained"),
    "tokenizer": Verb(configs.TokenizerConfig, "tokenizer:tokenizer", "train the visual tokenizer"),
    "pretrain": Verb(configs.PretrainConfig, "pretrain:pretrain", "masked image modelling"),
    "finetune": Verb(
        configs.FinetuneConfig,
        "finetune:finetune",
        "classification, from a pre-trained model or from scratch",
    ),
    "segment": Verb(
        configs.SegmentConfig,
        "segment:segment",
        "a class for every pixel, from a pre-trained model or from scratch",
    ),
    "probe": Verb(
        configs.ProbeConfig, "probe:probe", "linear classifiers and k-NN on every layer of an encoder"
    ),
    "evaluate": Verb(configs.EvaluateConfig, "evaluate:evaluate", "how good a model is on images"),
    "predict": Verb(
        configs.PredictConfig, "predict:predict", "labels, tokens or features of new images", "images"
    ),
    "info": Verb(configs.InfoConfig, "info:info", "what a run or model is, and where a run stands", "path"),
    "report": Verb(
        configs.ReportConfig, "report:report", "one offline page about one or several runs", "runs"
    ),
    "convert": Verb(
        configs.ConvertConfig,
        "convert:convert",
        "write a model in the format of another library",
        "source destination",
    ),
    "presets": Verb(configs.PresetsConfig, "presets:presets", "recipes and released models by name"),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(_dispatch(arguments))
    except UserError as error:
        _complain(error)
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted at once, without saving")
        sys.exit(1)


def _complain(message: object, everywhere: bool = False) -> None:
    """One line on standard error; of what all ranks find alike only the first speaks, unless `everywhere`."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 or everywhere:
        print(f"beit{f' (rank {rank})' if rank else ''}: {message}", file=sys.stderr)


def _dispatch(arguments: Arguments) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("beit"))
        return 0
    verb = VERBS.get(arguments[0])
    if verb is None:
        import difflib

        near = difflib.get_close_matches(arguments[0], VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(VERBS)}"
        raise UserError(f"there is no command {arguments[0]!r}; {hint}")
    return _run(arguments[0], verb, arguments[1:])


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: beit COMMAND [--flags]",
            "",
            "Learn vision models from unlabelled images (BEiT).",
            "",
            *lines,
            "",
            "beit COMMAND --help lists its flags.",
        ]
    )


def _run(name: str, verb: Verb, arguments: Arguments) -> int:
    given = list(arguments)
    training = issubclass(verb.config, TrainingConfig)
    arguments = _name_words(verb.config, verb.positional.split(), arguments)
    switches = {"--print-config": False, "--dry-run": False, "--overwrite": False}
    layers: list[dict[str, Any]] = []
    if training:
        arguments, layers = _take_layers(verb.config, arguments)
        for switch in switches:
            switches[switch] = switch in arguments
            arguments = [argument for argument in arguments if argument != switch]
    config = parse(verb.config, arguments, layers, f"beit {name}")
    if switches["--print-config"]:
        from beit.config_file import to_yaml

        print(to_yaml(config, f"beit {name} --config THIS-FILE"), end="")
        return 0
    if isinstance(config, TrainingConfig) and (count := _ranks_to_start(config)) > 1:
        return launch(count, [name, *given])
    module, function = verb.run.split(":")
    run = getattr(importlib.import_module(f"beit.recipes.{module}"), function)
    options = {"dry_run": switches["--dry-run"], "overwrite": switches["--overwrite"]} if training else {}
    return _guarded(run, config, options)


def _name_words(config_type: type, fields: Sequence[str], arguments: Arguments) -> Arguments:
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


def _guarded(run: Any, config: object, options: dict[str, bool]) -> int:
    """Call a recipe; an interrupted run that was saved ends with status 75."""
    try:
        run(config, **options)
        sys.stdout.flush()
    except Interrupted as stop:
        _complain(stop)
        return 75
    except RunFailed as stop:
        _complain(stop, everywhere=True)
        return 1
    except OSError as error:
        if not _nobody_reads(error):
            _complain(
                f"{error.filename or 'the operating system'}: {error.strerror or error}", everywhere=True
            )
        return 1
    return 0


def _nobody_reads(error: OSError) -> bool:
    """Whether `error` is that the reader of standard output has left (`beit predict … | head`)."""
    if sys.platform == "win32" or not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):
        return False
    # What is left to write would be tried once more as Python ends, with a complaint.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def parse(config_type: type, arguments: Arguments, layers: Sequence[dict[str, Any]], program: str) -> Any:
    """Flags over `layers` over defaults, as a validated `config_type`.

    tyro parses an unvalidated twin of the class, so that a value missing from one layer may come from the
    next; what tyro has to say against the flags is said again in one line.
    """
    import tyro

    from beit.config_file import EXCLUSIVE, layered

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


def _take_layers(config_type: type, arguments: Arguments) -> tuple[Arguments, list[dict[str, Any]]]:
    """Take ``--preset NAME`` and ``--config FILE`` out of `arguments`; give the rest and their values."""
    from beit.config_file import read_yaml
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


def _ranks_to_start(config: TrainingConfig) -> int:
    """Processes to start for ``--devices``; 1 inside a rank that torchrun or :mod:`beit.launch` has started."""
    if "RANK" in os.environ:
        return 1
    if config.devices != "auto":
        return config.devices
    import torch

    return max(1, torch.cuda.device_count())
