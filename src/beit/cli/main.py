"""The command line: a table from verb to (configuration, function); parse, import lazily, run.

Exit status: 0 done, 1 failed (without a word where nobody reads the output any more), 2 a user's mistake (one line on
standard error), 75 interrupted and saved.
"""

import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TextIO

from beit.cli.flags import TRAINED, Arguments, parse
from beit.cli.launch import launch
from beit.config import use
from beit.config.errors import Interrupted, RunFailed, UserError, out_of_memory
from beit.config.files import to_yaml
from beit.config.finetune import FinetuneConfig
from beit.config.pretrain import PretrainConfig
from beit.config.probe import ProbeConfig
from beit.config.run import RanksConfig, TrainingConfig
from beit.config.segment import SegmentConfig
from beit.config.tokenizer import TokenizerConfig
from beit.untrusted import in_lines, printable


class Verb(NamedTuple):
    """One command: the configuration it takes, and the module with the function of its name that runs it."""

    config: type
    module: str
    help: str
    words: tuple[str, ...] = ()
    """The fields that take the words without a flag, in order; the last takes all that remain."""


VERBS: dict[str, Verb] = {
    "demo": Verb(use.DemoConfig, "demo", "the whole story on built-in images, in minutes on a CPU"),
    "plan": Verb(use.PlanConfig, "plan", "what train would do with your images: sizes, times, commands", ("data",)),
    "train": Verb(use.TrainConfig, "train.run", "from images to a model in one command"),
    "check": Verb(use.CheckConfig, "check.run", "look a data set over before anything is trained", ("data",)),
    "tokenizer": Verb(TokenizerConfig, "tokenizer.run", "make the visual tokenizer"),
    "pretrain": Verb(PretrainConfig, "pretrain", "masked image modelling"),
    "finetune": Verb(FinetuneConfig, "finetune", "classification, from a pre-trained model or from scratch"),
    "segment": Verb(SegmentConfig, "segment", "a class for every pixel, from a pre-trained model or from scratch"),
    "probe": Verb(ProbeConfig, "probe", "linear classifiers and k-NN on every layer of an encoder"),
    "evaluate": Verb(use.EvaluateConfig, "evaluate.run", "how good a model is on images"),
    "predict": Verb(use.PredictConfig, "predict.run", "labels, tokens or features of new images", ("images",)),
    "suggest": Verb(use.SuggestConfig, "suggest", "which images to label next", ("images",)),
    "info": Verb(use.InfoConfig, "info", "what a run or model is, and where a run stands", ("path",)),
    "report": Verb(use.ReportConfig, "report", "one offline page about one or several runs", ("runs",)),
    "convert": Verb(
        use.ConvertConfig, "convert", "write a model in the format of another library", ("source", "destination")
    ),
    "benchmark": Verb(use.BenchmarkConfig, "benchmark", "how fast this machine is, stage by stage"),
    "presets": Verb(use.PresetsConfig, "presets", "recipes and released models by name", ("verb",)),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold any bytes
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except (UserError, Interrupted, RunFailed) as error:
        _complain(error, everywhere=isinstance(error, RunFailed))
        status = 2 if isinstance(error, UserError) else 75 if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        _complain("interrupted at once, without saving")
        status = 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = printable(str(error) or type(error).__name__, 200)
        _complain(f"out of memory ({reason}); make the network, images or batches smaller", everywhere=True)
        status = 1
    except BrokenPipeError:  # nobody reads the output any more: what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        _complain(f"{error.filename or 'the operating system'}: {error.strerror or error}", everywhere=True)
        status = 1
    sys.exit(status)


def _complain(message: object, everywhere: bool = False) -> None:
    """One line on standard error; of what all ranks meet alike only the first speaks, unless `everywhere`."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "")
    others_speak = rank.isdecimal() and world.isdecimal() and 0 < int(rank) < int(world)
    if everywhere or not others_speak:
        print(f"beit{f' (rank {rank})' if rank != '0' else ''}: {in_lines(str(message))}", file=sys.stderr)


def _outlast_readers() -> None:
    """From now on, output that nobody can read any more goes nowhere, and ends nothing."""

    def lasting(stream: TextIO, act: Callable[..., object]) -> Callable[..., object]:
        def do(*arguments: str) -> object:
            try:
                return act(*arguments)
            except OSError:  # what is still in the buffer goes the same way
                return os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

        return do

    for output in ("stdout", "stderr"):
        stream = getattr(sys, output) or open(os.devnull, "w")  # noqa: SIM115  # closed from the start
        setattr(sys, output, stream)
        for name in ("write", "flush"):
            setattr(stream, name, lasting(stream, getattr(stream, name)))


def _dispatch(arguments: Arguments) -> int:
    """Run one command; the exit status."""
    name = arguments[0] if arguments else "--help"
    if name == "help" and arguments[1:]:
        return _dispatch([arguments[1], "--help"])
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name in ("-V", "--version"):
        from importlib.metadata import version

        print(version("beit"))
    elif name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(VERBS)}"
        raise UserError(f"there is no command {name!r}; {hint}")
    elif issubclass(VERBS[name].config, TRAINED):
        return _train(name, arguments[1:])
    else:
        verb = VERBS[name]
        return _run(name, parse(verb.config, f"beit {name}", arguments[1:], verb.words)[0], arguments[1:])
    return 0


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: beit COMMAND [--flags]\n\nLearn vision models from unlabelled images (BEiT).\n\n"
        f"{verbs}\n\nbeit help COMMAND lists its flags, beit -V says which version this is."
    )


def _train(name: str, arguments: Arguments) -> int:
    """Run a command that trains; the exit status."""
    _outlast_readers()
    config_type: type[TrainingConfig | use.TrainConfig] = VERBS[name].config
    config, common = parse(config_type, f"beit {name}", arguments)
    if common.print_config:
        preset, values = getattr(config, "preset", None), getattr(config, "typed", {})
        unknown = "" if preset is None else "\n`--dry-run` shows what auto chooses below this."
        values = config if preset is None else {"preset": preset, **values}
        print(to_yaml(values, f"beit {name} --config THIS-FILE{unknown}"), end="")
        return 0
    return _run(name, config, arguments, dry_run=common.dry_run, overwrite=common.overwrite)


def _run(name: str, config: object, arguments: Arguments, **options: bool) -> int:
    """Run a command, in as many processes as it takes; the exit status."""
    if (count := _ranks_to_start(config)) > 1:
        return launch(count, [name, *arguments])
    getattr(importlib.import_module(f"beit.recipes.{VERBS[name].module}"), name)(config, **options)
    return 0


def _ranks_to_start(config: object) -> int:
    """Processes to start for ``--devices``; 1 inside a rank that torchrun or :mod:`beit.cli.launch` has started."""
    if "RANK" in os.environ or not isinstance(config, RanksConfig):
        return 1
    if config.devices != "auto":
        return config.devices
    if config.device in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())
