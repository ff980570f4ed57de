"""`beit benchmark` measures every stage, and counts its work right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beit.cli.main import main


@pytest.mark.slow
def test_every_stage_is_measured_and_its_work_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    words = ["--encoder", "tiny", "--image-size", "32", "--patch-size", "8", "--batch-size", "2", "--seconds", "0.01"]
    with pytest.raises(SystemExit) as left:
        main(["benchmark", *words, "--json", str(file)])
    assert left.value.code == 0
    lines, figures = capsys.readouterr().out, json.loads(file.read_text())
    assert len(figures["stages"]) == 8
    for name, stage in figures["stages"].items():
        assert name in lines
        assert stage["images_per_second"] > 0 and 0 <= stage["data_wait"] < 1
    # A block of width D on T tokens: 12 D^2 T for its linear layers, 2 D T^2 for attention; the patches' projection.
    width, tokens, depth = 192, 17, 12
    block = 12 * width**2 * tokens + 2 * width * tokens**2
    features = figures["stages"]["features of images"]
    assert features["multiply_adds_per_image"] == depth * block + 16 * width * 3 * 8**2
    rate = features["images_per_second"] * features["multiply_adds_per_image"]
    assert features["share"] == pytest.approx(rate / figures["multiply_adds_per_second"])
    assert (
        "--encoder-sees visible --image-size 32 --patch-size 8 --masking random --num-masked 75%, 30 epochs" in lines
    )
