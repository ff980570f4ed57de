"""The command line: a table from verb to (configuration, function); parse, import lazily, run.

Exit status: 0 done, 1 failed (without a word where nobody reads the output any more), 2 a user's mistake (one line on
standard error), 75 interrupted and saved.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from beit.cli.flags import Arguments, name_words, parse, take_layers
from beit.cli.launch import launch
from beit.config.errors import Interrupted, RunFailed, UserError
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.run import TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import TokenizerConfig
from beit.config.use import (
    CheckConfig,
    ConvertConfig,
    DemoConfig,
    EvaluateConfig,
    InfoConfig,
    PredictConfig,
    PresetsConfig,
    ReportConfig,
)


@dataclass(frozen=True)
class Verb:
    """One command: the configuration it takes, the module and function that run it."""

    config: type
    run: str
    help: str
    positional: str = ""
    """The fields that take the words without a flag, in order; the last takes all that remain."""


VERBS: dict[str, Verb] = {
    "demo": Verb(DemoConfig, "demo:demo", "the whole story on built-in images, in minutes on a CPU"),
    "check": Verb(CheckConfig, "check.run:check", "look a data set over before anything is trained"),
    "tokenizer": Verb(TokenizerConfig, "tokenizer:tokenizer", "train the visual tokenizer"),
    "pretrain": Verb(PretrainConfig, "pretrain:pretrain", "masked image modelling"),
    "finetune": Verb(
        FinetuneConfig,
        "finetune:finetune",
        "classification, from a pre-trained model or from scratch",
    ),
    "segment": Verb(
        SegmentConfig,
        "segment:segment",
        "a class for every pixel, from a pre-trained model or from scratch",
    ),
    "probe": Verb(ProbeConfig, "probe.run:probe", "linear classifiers and k-NN on every layer of an encoder"),
    "evaluate": Verb(EvaluateConfig, "evaluate.run:evaluate", "how good a model is on images"),
    "predict": Verb(
        PredictConfig, "predict.run:predict", "labels, tokens or features of new images", "images"
    ),
    "info": Verb(InfoConfig, "info:info", "what a run or model is, and where a run stands", "path"),
    "report": Verb(ReportConfig, "report:report", "one offline page about one or several runs", "runs"),
    "convert": Verb(
        ConvertConfig,
        "convert:convert",
        "write a model in the format of another library",
        "source destination",
    ),
    "presets": Verb(PresetsConfig, "presets:presets", "recipes and released models by name"),
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
    arguments = name_words(verb.config, verb.positional.split(), arguments)
    switches = {"--print-config": False, "--dry-run": False, "--overwrite": False}
    layers: list[dict[str, Any]] = []
    if training:
        arguments, layers = take_layers(verb.config, arguments)
        for switch in switches:
            switches[switch] = switch in arguments
            arguments = [argument for argument in arguments if argument != switch]
    config = parse(verb.config, arguments, layers, f"beit {name}")
    if switches["--print-config"]:
        from beit.config.files import to_yaml

        print(to_yaml(config, f"beit {name} --config THIS-FILE"), end="")
        return 0
    if isinstance(config, TrainingConfig) and (count := _ranks_to_start(config)) > 1:
        return launch(count, [name, *given])
    module, function = verb.run.split(":")
    run = getattr(importlib.import_module(f"beit.recipes.{module}"), function)
    options = {"dry_run": switches["--dry-run"], "overwrite": switches["--overwrite"]} if training else {}
    return _guarded(run, config, options)


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


def _ranks_to_start(config: TrainingConfig) -> int:
    """Processes to start for ``--devices``; 1 inside a rank that torchrun or :mod:`beit.cli.launch` has started."""
    if "RANK" in os.environ:
        return 1
    if config.devices != "auto":
        return config.devices
    import torch

    return max(1, torch.cuda.device_count())
