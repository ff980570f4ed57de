"""`python tests/campaign.py --minutes 30`: what can happen to runs happens to them, in any order and again, and
a table tells how they ended. `--every` kills a run of each verb before each of its file operations instead, verb by
verb; `--record FILE` keeps what came of each kill, and the same command goes on from there.

One process loads torch and forks every start, so that a start costs a second. What a run does to its folder is heard
by audit hooks: files opened to be written, renamed, cut or removed, folders made or removed.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

sys.path += [str(Path(__file__).parent / "recipes")]

import numpy as np
import torch
from PIL import Image
from tiny_runs import finetune_config, pretrain_config, probe_config, segment_config, tokenizer_config

from beit.config.errors import Interrupted, RunFailed, UserError
from beit.config.use import TrainConfig
from beit.recipes.finetune import finetune
from beit.recipes.pretrain import pretrain
from beit.recipes.probe import probe
from beit.recipes.segment import segment
from beit.recipes.tokenizer.run import tokenizer
from beit.recipes.train.parts import own_values
from beit.recipes.train.run import train

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}
SIX: dict[str, Any] = {"steps": 6, "save_every": "2", "evaluations": 2, "log_every": 1}
STATUS: dict[type[BaseException], int] = {UserError: 2, RunFailed: 1, OSError: 1, MemoryError: 1, Interrupted: 75}
VERBS = ["probe", "finetune", "tokenizer", "pretrain", "segment", "train"]
"""The quickest first."""


class Verb(NamedTuple):
    """A run of six steps."""

    run: Callable[[Any], Any]
    config: Callable[[Path], Any]
    """Of the run in a folder."""


class Ending(NamedTuple):
    """How one start ended."""

    status: int
    """As the command line has it; negative for the signal that killed it."""
    said: str
    seconds: float


def write_images(folder: Path) -> None:
    """Coloured noise of three classes, and the same with label maps."""
    rng = np.random.default_rng(0)
    for index in range(36):
        place = folder / "classes" / "abc"[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(60 + 60 * (index % 3), 40, (36, 36, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
        for part, content in (("images", pixels), ("annotations", pixels[:, :, 0] // 86)):
            split = folder / "maps" / part / ("validation" if index % 4 == 0 else "training")
            split.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(split / f"{index}.png")


def verbs_in(folder: Path, names: Sequence[str], timeout: str) -> dict[str, Verb]:
    """Verbs that train, on the images of `folder`; what they start from is trained here. None of their processes may
    be silent for longer than `timeout`."""
    images, tokens, encoder = folder / "data" / "classes", folder / "tokens", folder / "encoder"
    write_images(folder / "data")
    if {"pretrain", "probe", "train"} & {*names}:
        tokenizer(tokenizer_config(images, tokens))
        pretrain(pretrain_config(images, encoder, tokenizer=str(tokens)))
    chance = {**SIX, "drop_path_rate": 0.3, "timeout": timeout}
    steps = {**SIX, "timeout": timeout}

    def journey(out: Path) -> TrainConfig:
        start = str(encoder)
        parts = {
            "tokenizer": tokenizer_config(images, out, **steps),
            "pretrain": pretrain_config(images, out, tokenizer=str(tokens), **chance),
            "classifier": finetune_config(images, out, init=start, **chance),
        }
        knobs = {name: own_values(config) for name, config in parts.items()}
        return TrainConfig(data=str(images), out=str(out), workers=0, scratch=False, parts=knobs)

    verbs = {
        "tokenizer": Verb(tokenizer, lambda out: tokenizer_config(images, out, ema_decay=0.9, **steps)),
        "pretrain": Verb(pretrain, lambda out: pretrain_config(images, out, tokenizer=str(tokens), **chance)),
        "finetune": Verb(finetune, lambda out: finetune_config(images, out, from_scratch=True, **chance)),
        "segment": Verb(segment, lambda out: segment_config(folder / "data" / "maps", out, **steps)),
        "probe": Verb(probe, lambda out: probe_config(images, out, encoder, **steps)),
        "train": Verb(train, journey),
    }
    return {name: verbs[name] for name in names}


def watch(folder: Path, act: Callable[[int], None]) -> None:
    """From now on, `act` hears the number of every file operation in `folder` before it is done, from 1."""
    count = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event in WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        if is_write and str(arguments[0]).startswith(str(folder)):
            count += 1
            act(count)

    sys.addaudithook(hear)


def start(verb: Verb, out: Path, prepare: Callable[[], None] = lambda: None, **environment: str) -> int:
    """The process of a new start, which calls `prepare` first."""
    process = os.fork()
    if process:
        return process
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(log, 2)
    os.environ |= environment
    status = 70  # a traceback
    try:
        prepare()
        verb.run(verb.config(out))
        status = 0
    except BaseException as error:
        kinds = [kind for kind in STATUS if isinstance(error, kind)]
        status = STATUS[kinds[0]] if kinds else 70
        text = f"{type(error).__name__}: {error}" if kinds else traceback.format_exc()
        os.write(2, f"{text}\n".encode())
    finally:
        os._exit(status)


def end(process: int, out: Path, seconds: float = 600.0) -> Ending:
    """Wait for it, and kill it when that takes too long."""
    began = time.monotonic()
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() - began > seconds:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    log = out.with_suffix(".log")
    said = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return Ending(os.waitstatus_to_exitcode(ended[1]), said, time.monotonic() - began)


def weights(out: Path) -> dict[str, str]:
    """Hashes of all weights that a run has left."""
    files = sorted(out.rglob("model/model.safetensors"))
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---------------------------------------------------------------------------------------------- What happens to runs


class Subject(NamedTuple):
    """A verb to try, and what it ends with when nothing happens."""

    name: str
    verb: Verb
    operations: int
    weights: dict[str, str]
    folder: Path

    def place(self) -> Path:
        """Where the next run is tried."""
        out = self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        return out

    def goes_on(self, out: Path) -> str:
        """Start the run again, and say how that ended."""
        again = end(start(self.verb, out), out)
        if again.status:
            return "refused in words" if again.status in (1, 2) and "Traceback" not in again.said else "FAILED"
        return "equal" if weights(out) == self.weights else "DIFFERENT"


def killed_at(subject: Subject, number: int) -> str:
    out = subject.place()

    def kill(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    end(start(subject.verb, out, lambda: watch(out, kill)), out)
    return subject.goes_on(out)


def kill(subject: Subject, chance: random.Random) -> str:
    return killed_at(subject, chance.randint(1, subject.operations))


def full_disk(subject: Subject, chance: random.Random) -> str:
    """No room for some operations on end; then there is."""
    out, first = subject.place(), chance.randint(1, subject.operations)
    last = first + chance.choice((1, 3, 10, 10**6))

    def refuse(count: int) -> None:
        if first <= count < last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ended = end(start(subject.verb, out, lambda: watch(out, refuse)), out)
    if ended.status == 70 and "No space left" not in ended.said.splitlines()[-1]:
        return "TRACEBACK"
    return subject.goes_on(out)


def damage(subject: Subject, chance: random.Random) -> str:
    """A bit flips in, or the end is cut off, a file of a run that was killed."""
    out, number = subject.place(), chance.randint(subject.operations // 3, subject.operations)

    def kill(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    end(start(subject.verb, out, lambda: watch(out, kill)), out)
    files = [path for path in out.rglob("*") if path.is_file() and path.stat().st_size and path.name != ".lock"]
    if files:
        file = chance.choice(sorted(files))
        content = bytearray(file.read_bytes())
        if chance.random() < 0.5:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        else:
            del content[chance.randrange(len(content)) :]
        file.write_bytes(content)
    return subject.goes_on(out)


def vanish(subject: Subject, chance: random.Random) -> str:
    """The images are gone for a while."""
    out, data, number = subject.place(), subject.folder / "data", chance.randint(1, subject.operations)
    aside = data.with_name("aside")

    def move(count: int) -> None:
        if count == number and data.exists():
            data.rename(aside)

    ended = end(start(subject.verb, out, lambda: watch(out, move)), out)
    if aside.exists():
        aside.rename(data)
    if ended.status == 70:
        return "TRACEBACK"
    if not ended.status:  # other images were taken for those that were gone, or all had been read
        return "ended"
    return subject.goes_on(out)


def lost_rank(subject: Subject, chance: random.Random) -> str:
    """One of two ranks is killed, or stopped for good."""
    out, number = subject.place(), chance.randint(subject.operations // 4, subject.operations)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks: list[int] = []

    def hit(count: int) -> None:
        if count == number:
            os.kill(other, chance.choice((signal.SIGKILL, signal.SIGSTOP)))

    other = start(subject.verb, out, RANK="1", **place)
    ranks = [start(subject.verb, out, lambda: watch(out, hit), RANK="0", **place), other]
    main = end(ranks[0], out, seconds=100)
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    if main.status not in (0, 1):
        return "SILENT" if main.status == -signal.SIGKILL else "TRACEBACK"
    again = end(start(subject.verb, out), out)
    return "FAILED" if again.status else "equal" if weights(out).keys() == subject.weights.keys() else "DIFFERENT"


MISHAPS: dict[str, Callable[[Subject, random.Random], str]] = {
    "killed at a file operation": kill,
    "full disk": full_disk,
    "flipped or cut file": damage,
    "vanished images": vanish,
    "lost rank": lost_rank,
}
GOOD = {"equal", "ended", "refused in words"}


def note(place: Path, count: int) -> None:
    place.write_text(str(count))


def subjects(folder: Path, names: Sequence[str], timeout: str) -> list[Subject]:
    """Each verb, run once without a mishap."""
    found = []
    for name, verb in verbs_in(folder, names, timeout).items():
        out, counted = folder / "run", folder / "count"
        shutil.rmtree(out, ignore_errors=True)
        verb.run(verb.config(folder / "warm-up"))  # much is imported on first use
        shutil.rmtree(folder / "warm-up")
        ended = end(start(verb, out, partial(watch, out, partial(note, counted))), out)
        assert not ended.status, ended.said
        found.append(Subject(name, verb, int(counted.read_text()), weights(out), folder))
    return found


class Try(NamedTuple):
    """A run, and what happens to it."""

    subject: Subject
    mishap: str
    happen: Callable[[], str]
    number: int = 0
    """The file operation before which it is killed, where each is tried once."""


def each_operation(tried: Sequence[Subject], chance: random.Random) -> Iterator[Try]:
    """A kill before every file operation of every run, the quickest runs first."""
    for subject in tried:
        for number in range(1, subject.operations + 1):
            mishap = f"killed at each of {subject.operations}"
            yield Try(subject, mishap, partial(killed_at, subject, number), number)


def each_mishap(tried: Sequence[Subject], chance: random.Random) -> Iterator[Try]:
    """Everything that may happen to every run, in any order."""
    pairs = [(subject, mishap) for subject in tried for mishap in MISHAPS]
    for subject, mishap in chance.sample(pairs, len(pairs)):
        yield Try(subject, mishap, partial(MISHAPS[mishap], subject, chance))


def read_record(path: Path | None) -> dict[tuple[str, str, int], str]:
    """How the kills of earlier calls ended, by verb, kind and operation; a line cut short is left out."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("]")]
    return {(verb, mishap, number): outcome for verb, mishap, number, outcome in rows}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="*", default=VERBS)
    parser.add_argument("--every", action="store_true", help="kill a run before each of its file operations")
    parser.add_argument("--record", type=Path, help="with --every: a file to go on from, and to add to")
    parser.add_argument("--once", action="store_true", help="let everything happen once")
    parser.add_argument("--timeout", default="20s", help="how long a process of a run may be silent")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began, chance, table = time.monotonic(), random.Random(options.seed), Counter[tuple[str, str, str]]()
    known = read_record(options.record)
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):
            tried = subjects(Path(folder), options.verbs, options.timeout)
        kind, once = each_operation if options.every else each_mishap, options.every or options.once
        rounds = repeat(kind, 1) if once else repeat(kind)
        for subject, mishap, happen, number in chain.from_iterable(make(tried, chance) for make in rounds):
            outcome = known.get((subject.name, mishap, number))
            if outcome is None:
                if time.monotonic() - began > 60 * options.minutes:
                    break
                outcome = happen()
                if options.record is not None:
                    with options.record.open("a") as record:
                        print(json.dumps([subject.name, mishap, number, outcome]), file=record)
            table[subject.name, mishap, outcome] += 1
            if outcome not in GOOD:
                print(subject.name, mishap, number, outcome, file=sys.stderr, flush=True)
    for (verb, mishap, outcome), count in sorted(table.items()):
        print(f"{verb:<10}  {mishap:<28}  {outcome:<18}  {count:>5}")
    print(f"{table.total():,} tries in {(time.monotonic() - began) / 60:.1f} minutes")
    return int(any(outcome not in GOOD for _, _, outcome in table))


if __name__ == "__main__":
    sys.exit(main())
