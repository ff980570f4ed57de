"""The scripts of examples/ run as they stand, on a handful of small images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two colours, one folder for each."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for name, color in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
        (root / name).mkdir()
        for index in range(15):
            pixels = np.clip(rng.normal(color, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def runs(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    run("pretrain_on_a_folder.py", labelled, out, "--steps", "2")
    return out


def test_a_folder_of_photographs_becomes_an_encoder(runs: Path) -> None:
    for name in ("tokenizer", "pretrain"):
        assert json.loads((runs / name / "status.json").read_text())["state"] == "done"
        assert (runs / name / "model" / "model.safetensors").exists()
    assert (runs / "report.html").exists()


def test_features_tell_colors_apart(runs: Path, labelled: Path) -> None:
    output = run("features_for_your_classifier.py", runs / "pretrain", labelled)
    assert output == "100.0% of the held-back images are classified right\n"


def test_a_new_masking_rule_is_a_task_to_learn(runs: Path, labelled: Path) -> None:
    output = run("new_masking_rule.py", runs / "pretrain", runs / "tokenizer", labelled / "red")
    blocks, before, after = map(float, re.findall(r": ([\d.]+) nats", output))
    assert after < before
    assert blocks == pytest.approx(before, rel=0.2)  # so short a training favours neither rule


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_script_without_a_main_guard(method: str, labelled: Path, tmp_path: Path) -> None:
    """It works where processes fork; where each begins with the script anew, a line says what it lacks."""
    knobs = (
        f"data={str(labelled)!r}, out={str(tmp_path / 'run')!r}, workers=1, eval_images=8, limit=16, vocab_size=16"
    )
    script = tmp_path / "script.py"
    script.write_text(
        f"import multiprocessing\nmultiprocessing.get_all_start_methods = lambda: [{method!r}]\n"
        f"import beit\nprint(beit.tokenizer(beit.TokenizerConfig({knobs}, preset='auto')).results['steps'])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    if method == "fork":
        assert done.returncode == 0 and (tmp_path / "run/model/model.json").exists(), done.stderr
    else:
        assert done.returncode == 1
        assert 'must be called under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
