"""The command line: fast answers, one line and status 2 for a mistake, and the order of the layers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import yaml

import beit
from beit import UserError, presets
from beit.cli.flags import CommonFlags, _read
from beit.cli.help import GROUPS
from beit.cli.main import VERBS, main
from beit.config.files import layered, plain, read_record, read_yaml, to_yaml
from beit.config.pretrain import PretrainConfig
from beit.config.tokenizer import TokenizerConfig
from beit.config.values import FILE_ONLY, field_docs, flag_of
from beit.presets import configure, find, recipes_of
from beit.presets.released import RELEASED
from beit.recipes.presets import time_here


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leave:
        main(arguments)
    return int(leave.value.code or 0)


@pytest.mark.parametrize("arguments", [["--help"], ["presets"]])
def test_answers_at_once(arguments: list[str]) -> None:
    """Under half a second of CPU, a bound on this process alone and not on a busy machine's clock."""
    code = (
        "import sys, time; from beit.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(time.process_time(), 'torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout.split()
    assert output[-1] == "False"
    assert float(output[-2]) < 0.5


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    assert run("help") == 0
    assert capsys.readouterr().out == text
    assert run("help", "check") == 0
    assert "usage: beit check" in capsys.readouterr().out
    assert run("-V") == run("--version") == 0
    first, second = capsys.readouterr().out.split()
    assert first == second == importlib.metadata.version("beit")


def test_flags_come_in_groups_the_common_ones_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", "--help") == 0
    groups = re.findall(r"(\w+) options\b[\W]*?(--\w[\w-]*)", capsys.readouterr().out)
    assert groups == [
        *(("data", "--data"), ("model", "--init"), ("mask", "--num-masked"), ("training", "--preset")),
        *(("machine", "--device"), ("output", "--out")),
    ]
    fields = {field.name for verb in VERBS.values() for field in dataclasses.fields(verb.config)}
    common = {field.name for field in dataclasses.fields(CommonFlags)}
    assert {name for names in GROUPS.values() for name in names.split()} <= fields | common


def test_released_models_are_listed_with_their_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets", "models") == 0
    said = capsys.readouterr().out
    assert "--preset" not in said and said.count("licence: ") == len(RELEASED)
    assert "licence: modified MIT; source: https://cdn.openai.com/dall-e/encoder.pkl" in said


def test_presets_of_one_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("presets", "pretrain") == 0
    text = capsys.readouterr().out
    assert set(re.findall(r"(?m)^  (\S+)$", text)) == recipes_of("pretrain").keys()
    names = re.findall(r"(?m)^  (\S+)$", text)
    assert names[:2] == ["tiny", "small"] and names[-1].startswith("large"), "small ones first"
    assert text.count("on this machine: 10,000 images in") == len(names)
    assert max(map(len, text.splitlines())) <= 100 and "None" not in text


def test_the_time_of_a_recipe_is_that_of_its_products() -> None:
    """BEiT-base takes 17.4 GMAC forward in its blocks, and three times that to learn."""
    assert time_here("pretrain", "base", 17.45e9 * 3).startswith("10,000 images in 2 h 46 min")
    assert time_here("tokenizer", "tiny", 1e12).startswith("5,000 steps in")
    assert "of a base encoder" in time_here("segment", "base-640", 1e12)
    assert all(time_here(verb, name, 1e12) for verb in ("finetune", "probe", "segment") for name in recipes_of(verb))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: beit {verb}" in text
    words = VERBS[verb].words
    assert not words or "positional arguments" in text
    assert all(re.search(rf"(?m)^[\s│|]*\[?{word.upper()}\b", text) for word in words)
    fields = [field for field in dataclasses.fields(VERBS[verb].config) if field.metadata != FILE_ONLY]
    flags = [flag_of(field.name) for field in fields if field.name not in words]
    common = ["--preset", "--config", "--print-config", "--dry-run", "--overwrite"]
    for flag in [*flags, *(common if verb in presets.VERBS else [])]:
        assert len(re.findall(rf"(?m)^[\s│|]*{flag}\b(?!-)", text)) == 1, flag
    assert "annotated" not in text.lower(), "limits are no part of a type that a user reads"


@pytest.mark.parametrize("columns", [60, 80])
def test_help_is_for_people(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for verb in VERBS:
        assert run(verb, "--help") == 0
        text = capsys.readouterr().out
        prose = [line for line in text.splitlines() if not line.startswith(("usage", "  -", "  ["))]
        assert max(map(len, prose)) <= columns
        assert not re.search(r"null|None|STR|\{[A-Z]", text), verb
    assert run("segment", "--help") == 0
    text = capsys.readouterr().out
    assert "  --data TEXT...  (required)\n      Folder with" in text
    assert "  --crop NUMBER [NUMBER]\n" in text and "--scale NUMBER NUMBER  (default: 0.5 2.0)" in text
    assert "  --photometric, --no-photometric  (default: on)\n" in text and "  --transposed\n" in text


def test_python_help_has_the_text_of_every_field() -> None:
    for config_type in (beit.PretrainConfig, beit.SegmentConfig, beit.EvaluateConfig, beit.TrainConfig):
        page = " ".join(re.sub(r"(?m)^ \| *", "", pydoc.plain(pydoc.render_doc(config_type))).split())
        docs = field_docs(config_type)
        assert docs.keys() >= {field.name for field in dataclasses.fields(config_type)} - {"epochs", "steps"}
        assert all(f"{name}: {text}" in page for name, text in docs.items())


def test_words_become_what_the_type_of_a_flag_asks_for() -> None:
    def read(hint: object, *words: str) -> object:
        return _read("x", list(words), hint)

    assert read(int | str, "4") == (4, []) and read(int | str, "75%") == ("75%", [])
    assert read(str | None, "007") == ("007", []) and read(str | None, "none") == (None, [])
    assert read(Literal["none", "patch"] | None, "none") == ("none", [])
    assert read(str | tuple[str, ...], "a", "b", "c") == (("a", "b", "c"), [])
    assert read(int | tuple[int, int] | None, "64", "96", "c") == ((64, 96), ["c"])
    assert read(int | tuple[int, int] | None, "64", "c") == (64, ["c"])
    assert read(tuple[int, ...] | None, "3", "5", "7") == ((3, 5, 7), []) and read(float, "1e-3") == (1e-3, [])


TRAINING = ["--data", "x", "--out", "y", "--tokenizer", "t"]
FINETUNE = ["--data", "x", "--out", "y", "--init", "i"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrian"], "did you mean pretrain?"),
        (["check", "--data", "demo", "demo"], "--data demo demo names the same images twice"),
        (["check", "--data", "x", "--layout", "folders"], "must be one of 'splits', 'classes'"),
        (["pretrain", *TRAINING, "--stepz", "3"], "did you mean --steps?"),
        (
            ["pretrain", *TRAINING, "--clip-grad", "null", "--lr", "fast"],
            "--lr cannot be 'fast', but must be a number",
        ),
        (["pretrain", *TRAINING, "--image-size", "a"], "--image-size cannot be 'a'"),
        (["pretrain", *TRAINING, "--steps"], "--steps needs a value"),
        (["pretrain", *TRAINING, "--tensorboard", "3"], "Unrecognized options: 3"),
        (["predict", "a.jpg", "--model", "m", "--overlays=False"], "Unrecognized options: --overlays"),
        (["predict", "--device", "cuda:1", "a.jpg", "--model", "m"], "--device cannot be 'cuda:1', but"),
        (["predict", "a.jpg", "--model", "m", "--"], "Unrecognized options"),
        (["segment", "--data", "x", "--init", "i", "--out", "y", "--scale", "1"], "must be 2 values"),
        (
            ["pretrain", *TRAINING, "--masking", "blocks"],
            "must be one of 'block', 'random', 'none'",
        ),
        (["pretrain", "--tokenizer", "t"], "needs --data and --out"),
        (["pretrain", *TRAINING, "--steps", "3", "--epochs", "2"], "either --epochs or --steps"),
        (["pretrain", "--data", "x", "--out", "y"], "--tokenizer"),
        (["pretrain", *TRAINING, "--masking", "none"], "--predict all"),
        (["pretrain", *TRAINING, "--target", "pixels"], "drop --tokenizer"),
        (["pretrain", *TRAINING, "--pixel-norm", "patch"], "--pixel-norm patch is for --target pixels"),
        (["pretrain", *TRAINING, "--image-size", "225", "--patch-size", "16"], "--patch-size 16"),
        (["pretrain", *TRAINING, "--preset", "huge"], "choose one of auto, base"),
        (["pretrain", *TRAINING, "--preset"], "--preset needs a value"),
        (["pretrain", *TRAINING, "--save-every", "often"], "--save-every often"),
        (["tokenizer", "--kind", "dvae", "--data", "x", "--out", "y", "--stride", "3"], "power of two"),
        (["pretrain", *TRAINING, "--lr", "1", "--lr", "2"], "--lr is given twice"),
        (["pretrain", *TRAINING, "--steps", "1.5"], "--steps cannot be '1.5'"),
        (["pretrain", "--data", "x", "--out", "y", "--tokenizer", "y"], "--out is the run of --tokenizer"),
        pytest.param(
            ["tokenizer", "--data", "no/such/folder", "--out", "y", "--devices", "2"],
            "no/such/folder",
            marks=pytest.mark.slow,
        ),
        (
            ["finetune", "--data", "x", "--out", "y", "--preset", "tiny", "--width", "96"],
            "name --image-size, --patch-size, --depth",
        ),
        (["finetune", *FINETUNE, "--label-share", "0.1", "--labels-per-class", "5"], "exclude each other"),
        (["finetune", *FINETUNE, "--multilabel"], "--multilabel needs --labels FILE"),
        (
            ["finetune", *FINETUNE, "--multilabel", "--labels", "l.csv", "--labels-per-class", "5"],
            "use --label-share",
        ),
        (
            ["finetune", *FINETUNE, "--labels-per-class", "9", "--multilabel", "--labels", "l.csv"],
            "of the preset) needs one class for each image; use --label-share, or add --labels-per-class null",
        ),
        pytest.param(
            ["finetune", "--data", "demo", "--out", "y", "--init", "no/such/model"],
            "--init: no/such/model does not exist",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["probe", "--data", "demo", "--out", "y", "--init", "no/such/model"],
            "--init: no/such/model does not exist",
            marks=pytest.mark.slow,
        ),
        (["finetune", *FINETUNE, "--randaugment", "11"], "--randaugment must lie between 0 and 10"),
        (["segment", *FINETUNE, "--crop", "0"], "--crop must be positive"),
        (["segment", *FINETUNE, "--decoder", "unet"], "'upernet', 'pup'"),
        (["segment", "--data", "x", "--out", "y", "--crop", "64"], "name --patch-size, --width"),
        (["finetune", "--data", "x", "--out", "y"], "give --init a trained model"),
        (["tokenizer", "--data", "x", "--out", "y", "--budget", "soon"], "--budget soon is no time"),
        (
            ["tokenizer", "--data", "x", "--out", "y", "--budget", "1h", "--steps", "3"],
            "--steps, or give its --budget",
        ),
        (["report"], "needs RUNS"),
        (["report", "no/such/run"], "no/such/run"),
        (["report", "--out", "page.html", "no/such/run"], "no/such/run"),
        (["probe", "--data", "x", "--out", "y"], "needs --init"),
        (["evaluate", "--data", "x", "--model", "no/such/model"], "no/such/model does not exist"),
        (["evaluate", "--data", "x", "--model", "m", "--out", "x.txt"], "must end in .json"),
        (["predict", "--model", "no/such/model", "a.jpg", "b.jpg"], "no/such/model does not exist"),
        (["predict", "--model", "m"], "needs IMAGES"),
        (["info"], "needs PATH"),
        (["check"], "needs DATA"),
        (["check", "no/such/folder", "--limit", "3"], "no/such/folder"),
        (["presets", "demo"], "--verb cannot be 'demo'"),
        (["info", "no/such/run"], "no/such/run does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    output = capfd.readouterr()
    assert expected in output.err
    assert output.err.count("\n") == 1, output.err
    assert not output.out


LIMITS = {
    "pretrain": """
        --patch-size 0, --num-heads 0, --width -4, --depth 0, --depth 513, --dropout 2, --drop-path-rate 1,
        --mlp-ratio 0, --clip-grad -1, --ema-decay 2, --beta1 1.5, --weight-decay -1, --min-lr -1, --lr inf,
        --warmup-steps -5, --max-megapixels 0, --min-crop 3, --min-crop 0, --flip 7, --color-jitter -1,
        --batch-size 0, --steps 0, --holdout 1, --max-bad nan, --image-size 0 16, --devices 0,
        --workers -1, --limit 0""",
    # Knobs with a default of the verb's own keep their limits.
    "tokenizer": "--vocab-size 1, --width 0, --batch-size 0, --lr 0, --ema-decay 1, --kl-steps 0, --kl-weight -1",
    "finetune": "--layer-decay 0, --layer-decay 2, --min-lr -1, --crop-pct 0, --label-share 0, --depth 0",
    "segment": "--warmup-steps -1, --head-dropout 1, --crop 64 0, --stride 0, --power 0, --category-share 2",
    "probe": "--knn 0, --knn-temperature 0, --eval-images 0, --warmup-epochs -1, --image-size -1",
}


@pytest.mark.parametrize(
    ("verb", "flag"), [(verb, flag.strip()) for verb, flags in LIMITS.items() for flag in flags.split(",")]
)
def test_a_value_out_of_range_is_refused_by_its_flag(
    verb: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {"pretrain": TRAINING, "tokenizer": FINETUNE[:4]}.get(verb, FINETUNE)
    assert run(verb, *start, *flag.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"beit: {flag.split()[0]} must ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "flags", "bounds"),
    [
        ("finetune", ("--layer-decay", "0"), "--layer-decay must be positive and at most 1, not 0.0"),
        ("finetune", ("--layer-decay", "2"), "--layer-decay must be positive and at most 1, not 2.0"),
        ("pretrain", ("--flip", "-1"), "--flip must be at least 0 and at most 1, not -1.0"),
        ("pretrain", ("--image-size", "1000000"), "--image-size must be positive and at most 8192, not"),
        ("pretrain", ("--image-size", "32", "1000000"), "--image-size must be positive and at most 8192"),
        ("pretrain", ("--token-image-size", "1000000"), "--token-image-size must be positive and at most"),
        ("finetune", ("--image-size", "1000000"), "--image-size must be positive and at most 8192"),
        ("tokenizer", ("--image-size", "1000000"), "--image-size must be positive and at most 8192"),
        ("segment", ("--crop", "1000000"), "--crop must be positive and at most 8192"),
    ],
)
def test_all_bounds_are_in_one_message(
    verb: str, flags: Sequence[str], bounds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {"pretrain": TRAINING, "tokenizer": FINETUNE[:4]}.get(verb, FINETUNE)
    assert run(verb, *start, *flags) == 2
    assert bounds in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 TB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("unable to mmap 8 bytes from file </torch_1>: Cannot allocate memory (12)"),
    ],
)
def test_a_lack_of_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("beit.cli.main._dispatch", fail)
    assert run("presets") == 1
    message = capsys.readouterr().err
    assert message.startswith("beit: out of memory") and message.count("\n") == 1
    error.args = ("another",)
    if not isinstance(error, MemoryError):
        with pytest.raises(RuntimeError, match="another"):
            main(["presets"])


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"MASTER_ADDR": "node1"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        {"RANK": "-1", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        {"RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "abc"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "99999"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "0"},
        {"RANK": "0", "WORLD_SIZE": "many", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
    ],
)
@pytest.mark.parametrize("verb", ["tokenizer", "evaluate"])
def test_ranks_that_are_told_in_part(
    verb: str,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    model = Path(__file__).parent / "checkpoints/fixtures/tokenizer"
    where = ["--model", str(model)] if verb == "evaluate" else ["--out", str(tmp_path / "run")]
    assert run(verb, "--data", str(tmp_path), *where) == 2
    error = capsys.readouterr().err
    assert "start no ranks" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--tensorboard",), ("--wandb", "flowers")])
def test_a_package_that_is_missing_is_told_before_anything_is_made(
    flags: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("beit.training.run.trackers.find_spec", lambda name: None)
    assert run("tokenizer", "--data", "demo", "--out", str(tmp_path / "run"), *flags) == 2
    assert f"pip install 'beit[{flags[0][2:]}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--masking random --min-block 4", "--masking random has no use for --min-block; drop it"),
        (
            "--masking none --predict all --num-masked 4",
            "--masking none has no use for --num-masked; drop it",
        ),
        (
            "--encoder-sees all --decoder-depth 2",
            "--encoder-sees all has no use for --decoder-depth; drop it",
        ),
        (
            "--target pixels --token-image-size 8",
            "--target pixels has no use for --token-image-size; drop it",
        ),
    ],
)
def test_a_flag_without_effect_is_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", "photos", "--out", "run"] + ["--tokenizer", "t"] * ("pixels" not in words)
    assert run("pretrain", *where, *words.split()) == 2
    assert message in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_mistake() -> None:
    """`beit presets | head -3`: no complaint, and no success either."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "beit", "presets"]
    left = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (left.returncode, left.stderr) == (1, "")


def resolved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run(*arguments, "--print-config") == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(values, dict)
    return values


def test_flags_beat_the_file_beats_the_preset_beats_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("lr: 2e-3\nwidth: 96\n")
    values = resolved(capsys, "pretrain", *TRAINING, "--preset", "tiny", "--config", str(file), "--width", "48")
    tiny = find(PretrainConfig, "tiny").values
    assert values["width"] == 48
    assert values["lr"] == 2e-3
    assert values["depth"] == tiny["depth"]
    assert values["beta2"] == PretrainConfig.beta2


def test_a_length_in_steps_replaces_one_in_epochs_from_below(capsys: pytest.CaptureFixture[str]) -> None:
    values = resolved(capsys, "pretrain", *TRAINING, "--preset", "tiny", "--steps", "7")
    assert (values["steps"], values["epochs"]) == (7, None)


def test_a_warm_up_in_epochs_replaces_one_in_steps_from_below(capsys: pytest.CaptureFixture[str]) -> None:
    values = resolved(capsys, "tokenizer", "--data", "x", "--out", "y", "--preset", "tiny", "--warmup-epochs", "2")
    assert (values["warmup_steps"], values["warmup_epochs"]) == (None, 2.0)


def test_null_switches_a_knob_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolved(capsys, "pretrain", *TRAINING, "--clip-grad", "null")["clip_grad"] is None


@pytest.mark.parametrize("arguments", [["pretrain", *TRAINING], ["finetune", *FINETUNE], ["probe", *FINETUNE]])
def test_images_have_one_side_or_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert resolved(capsys, *arguments, "--image-size", "64", "96")["image_size"] == [64, 96]
    assert resolved(capsys, *arguments, "--image-size", "64")["image_size"] == 64


def test_dalles_learning_rate_falls_over_its_own_steps() -> None:
    """DALL-E appendix A.2: 1e-4 to 1.25e-6 over 1.2 million of 3 million updates."""
    config = configure(TokenizerConfig, "dalle", data="x", out="y")
    assert (config.steps, config.in_steps(config.lr_steps, 3_000_000)) == (3_000_000, 1_200_000)


def test_a_printed_configuration_repeats_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = resolved(capsys, "pretrain", *TRAINING, "--preset", "tiny", "--layer-scale-init", "None")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(first))
    assert resolved(capsys, "pretrain", "--config", str(file)) == first


@pytest.mark.parametrize("verb", presets.VERBS)
def test_every_preset_is_valid_and_survives_its_file(verb: str, tmp_path: Path) -> None:
    config_type = VERBS[verb].config
    start = {"tokenizer": {}, "pretrain": {"tokenizer": "t"}}.get(verb, {"init": "i"})
    for name in recipes_of(verb):
        config = configure(config_type, name, data=("a", "b"), out="y", **start)
        file = tmp_path / f"{name}.yaml"
        file.write_text(to_yaml(config, "a heading"))
        assert config_type(**read_yaml(file, config_type)) == config


@pytest.mark.parametrize("verb", presets.VERBS)
def test_a_configuration_of_an_earlier_release_is_read_unchanged(verb: str) -> None:
    """Each was written by the release before `device`, from a preset and a few flags; later knobs have defaults."""
    file = Path(__file__).parent / "stored_configs" / f"{verb}.yaml"
    config_type = VERBS[verb].config
    config = config_type(**read_yaml(file, config_type))
    stored = yaml.safe_load(file.read_text())
    if "gradient_checkpointing" in stored:  # of beit segment alone until 0.2
        stored["checkpoint_activations"] = {True: "on", False: "off"}[stored.pop("gradient_checkpointing")]
    assert plain(dataclasses.asdict(config)) == plain(layered(config_type, [])) | stored
    assert read_record(file, config_type)[1] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stepz: 3", "did you mean steps"),
        ("steps: many", "steps is 'many'"),
        ("lr: true", "lr is True"),
        ("masking: blocks", "masking is 'blocks'"),
        ("steps: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("- a\n- b", "name: value"),
        ("steps: [", "not valid YAML"),
        ("steps: &a [1]\nlr: *a", "alias"),
        ("steps: " + 100_000 * "9", "not valid YAML"),
        ("steps: " + 5000 * "[" + 5000 * "]", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"wrong\.yaml") as error:
        read_yaml(file, PretrainConfig)
    assert expected in str(error.value) and len(str(error.value).splitlines()) == 1


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("lr: 1e-3\nsteps: 5\nema_decay: null\n")
    assert read_yaml(file, TokenizerConfig) == {"lr": 1e-3, "steps": 5, "ema_decay": None}
