"""Files of results: whole or not at all, in little memory, and what a terminal shows of them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beit.config.errors import RunFailed
from beit.recipes.predict.output import WRITERS, results_file, show_labels


def labels(number: int) -> dict[str, Any]:
    top = [{"label": "wolf, grey", "probability": 0.75}, {"label": 'a "dog"', "probability": 0.25}]
    return {"image": f"{number:03}.png", **top[0], "top": top}


def test_arrays_are_numpys_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [
        {
            "image": "é" * (index % 7),
            "mean": rng.normal(size=5).astype(np.float32),
            "tokens": rng.integers(9, size=(2, 3)),
        }
        for index in range(10_000)
    ]
    with results_file(tmp_path / "x.npz") as write:
        for record in records:
            write(record)
    arrays = np.load(tmp_path / "x.npz")
    assert arrays.files == ["image", "mean", "tokens"]
    for name in arrays.files:
        expected = np.stack([np.asarray(record[name]) for record in records])
        assert arrays[name].dtype == expected.dtype and np.array_equal(arrays[name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
def test_memory_does_not_grow_with_the_records(suffix: str, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=2048).astype(np.float32)
    record = {"image": "x.png", "mean": features} if suffix == ".npz" else labels(0)
    peaks = []
    for count in (200, 2_000 if suffix == ".npz" else 20_000):
        tracemalloc.start()
        with results_file(tmp_path / f"x{suffix}") as write:
            for _ in range(count):
                write(record)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000  # 2,000 of these features are 16 million bytes


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_appears_whole_or_not_at_all(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text("what was there before")
    record = {"image": "x", "mean": np.zeros(3)} if suffix == ".npz" else labels(0)
    with pytest.raises(KeyboardInterrupt), results_file(path) as write:
        write(record)
        raise KeyboardInterrupt
    assert path.read_text() == "what was there before"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WRITERS[suffix], "write", full)
    with (
        pytest.raises(RunFailed, match=f"x{suffix} could not be written: No space left"),
        results_file(path) as write,
    ):
        write(record)
    monkeypatch.undo()
    monkeypatch.setattr(WRITERS[suffix], "finish", full)
    with pytest.raises(RunFailed, match="No space left"), results_file(path) as write:
        write(record)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "what was there before"


def test_labels_are_a_line(capsys: Any) -> None:
    show_labels(labels(0))
    assert capsys.readouterr().out == '000.png\twolf, grey\t0.7500\ta "dog"\t0.2500\n'


def test_lines_of_json_are_read_back(tmp_path: Path) -> None:
    with results_file(tmp_path / "x.jsonl") as write:
        write(labels(1))
        write({"image": "2", "tokens": np.arange(4).reshape(2, 2)})
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [labels(1), {"image": "2", "tokens": [[0, 1], [2, 3]]}]
