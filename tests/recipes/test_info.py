"""`beit info` tells what lies on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import beit
from beit.checkpoints.adapt import expand_shared_bias
from beit.checkpoints.store import save_model
from beit.config.architecture import EncoderConfig
from beit.config.errors import UserError
from beit.config.use import InfoConfig, ReportConfig
from beit.models.encoder import BeitEncoder
from beit.models.heads import ImageClassifier
from beit.recipes.info import info
from beit.recipes.report import report
from beit.training.run.lock import RunLock


def test_a_run_and_its_model(probed: Path, pretrained: Path, capsys: Any) -> None:
    facts = info(InfoConfig(path=str(probed))).results
    assert (facts["run"]["state"], facts["run"]["step"], facts["run"]["steps"]) == ("done", 60, 60)
    assert facts["run"]["last"]["eval/top1"] > 0.9
    assert "to continue" not in facts["run"]
    model = beit.load_model(probed)
    assert facts["model"]["kind"] == "probe"
    assert facts["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    text = capsys.readouterr().out
    assert all(word in text for word in ("red", "probe", "done", "image size", "32, 32"))
    alone = info(InfoConfig(path=str(pretrained / "model"))).results
    assert alone.keys() == {"model"}
    assert alone["model"]["tokenizer"] in capsys.readouterr().out


def test_an_unfinished_run_says_how_to_go_on(probed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(probed, run)
    shutil.rmtree(run / "model")
    (run / "results.json").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted", "step": 40}))
    facts = info(InfoConfig(path=str(run))).results["run"]
    assert facts["to continue"] == f"beit probe --config {run}/config.yaml --out {run}", "it was moved"
    assert (facts["state"], facts["step"], facts["checkpoint"]) == ("interrupted", 40, 60)
    assert facts["last"]["loss"] > 0


@pytest.mark.slow
def test_a_killed_run_is_told_from_a_running_one(probed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(probed, run)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running", "step": 40}))

    def facts() -> dict[str, Any]:
        return info(InfoConfig(path=str(run))).results["run"]

    take = f"from beit.training.run.lock import RunLock; lock = RunLock.take(Path({str(run)!r}))"
    script = f"from pathlib import Path; {take}; print('taken', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        assert facts()["state"] == "running" and "to continue" not in facts()
        process.kill()
    assert facts()["state"] == "killed" and "its process is gone" in facts()["reason"]
    assert facts()["to continue"] == f"beit probe --config {run}/config.yaml --out {run}"
    page = report(ReportConfig(runs=(str(run),))).results["page"].read_text()
    assert "Killed at step 40 of" in page and "its process is gone" in page and "Still running" not in page
    # Asked by the process that runs it, the lock must stay a lock: closing its file would give it up.
    lock = RunLock.take(run)
    assert facts()["state"] == "running"
    elsewhere = subprocess.run([sys.executable, "-c", f"from pathlib import Path; {take}"], capture_output=True)
    assert elsewhere.returncode != 0 and b"is in use by process" in elsewhere.stderr
    lock.release()
    (run / ".lock").unlink()
    assert facts()["state"] == "killed"


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        info(InfoConfig(path=str(tmp_path / "none")))
    with pytest.raises(UserError, match="neither a run nor a model"):
        info(InfoConfig(path=str(tmp_path)))


def test_a_checkpoint_of_another_library_is_described_and_used(tmp_path: Path, capsys: Any) -> None:
    """Hugging Face's files name their classes, and need nothing else to label an image."""
    torch.manual_seed(0)
    encoder = BeitEncoder(EncoderConfig(image_size=(32, 32), patch_size=8, width=16, depth=1, num_heads=2))
    model = ImageClassifier(expand_shared_bias(encoder), 3)
    torch.nn.init.normal_(model.head.weight)
    save_model(model, tmp_path / "own", provenance={}, classes=("ash", "elm", "oak"))
    beit.checkpoints.convert(tmp_path / "own", tmp_path / "theirs", to="huggingface")
    facts = info(InfoConfig(path=str(tmp_path / "theirs"))).results["model"]
    assert (facts["format"], facts["kind"]) == ("huggingface", "classifier")
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert "ash, elm, oak" in capsys.readouterr().out
    Image.new("RGB", (40, 40), (200, 30, 90)).save(tmp_path / "image.png")

    def labels(name: str) -> list[dict[str, Any]]:
        images, model = (str(tmp_path / "image.png"),), str(tmp_path / name)
        return list(beit.predictions(beit.PredictConfig(images=images, model=model, workers=0)))

    assert labels("own") == labels("theirs")
