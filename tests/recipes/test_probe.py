"""Linear probes and k-NN: their arithmetic, and that the layer which knows the classes is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import stopped_in_step
from tiny_runs import probe_config
from torch import Tensor

import beit
from beit.checkpoints.store import save_model
from beit.config.errors import Interrupted, UserError
from beit.models.heads import LinearProbe
from beit.recipes import probe as recipe
from beit.recipes.probe import probe

pytestmark = pytest.mark.slow


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_the_layer_that_knows_the_classes_is_found(
    colours: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Layer 0 of a stand-in for the encoder sees colours; layer 1 sees noise that depends on the image."""

    def features(encoder: Any, images: Tensor, layers: Any, pool: str) -> Tensor:
        means = images.float().mean(dim=(2, 3)) / 255
        known = torch.nn.functional.pad(means, (0, 13))
        noise = torch.sin(1e4 * means.sum(dim=1, keepdim=True) * torch.arange(1, 17))
        return torch.stack([known, noise], dim=1)

    monkeypatch.setattr(recipe, "layer_features", features)
    run = tmp_path / "run"
    probe(probe_config(colours, run, pretrained))
    results = read(run, "results.json")
    assert results["best_layer"] == results["knn_best_layer"] == 0
    known, noise = results["layers"]
    assert (known["top1"], known["knn_top1"]) == pytest.approx((1, 1)) and "top5" not in known
    assert noise["top1"] < 0.8 and noise["knn_top1"] < 0.8
    assert [results[name]["eval/top1"] for name in ("best", "last")] == pytest.approx([1, 1])
    assert read(run, "model/model.json")["layer"] == 0
    assert "best: layer 0 with a linear classifier, layer 0 with k-NN" in capsys.readouterr().out


def test_a_run_leaves_a_model_that_sees_what_the_probe_saw(probed: Path, colours: Path) -> None:
    """The saved classifier scores on its own what results.json says of its layer."""
    results, description = read(probed, "results.json"), read(probed, "model/model.json")
    assert description["kind"] == "probe"
    assert description["classes"] == ["blue", "green", "red"]
    assert description["crop_pct"] == 1.0
    assert description["layer"] == results["best_layer"]
    model = beit.load_model(probed)
    assert isinstance(model, LinearProbe)
    best = results["layers"][results["best_layer"]]
    assert best["top1"] > 0.9
    config = beit.EvaluateConfig(model=str(probed), data=str(colours), workers=0, precision="float32")
    figures = beit.evaluate(config).results
    assert figures["top1"] == pytest.approx(best["top1"], abs=1e-6)
    assert figures["loss"] == pytest.approx(best["loss"], abs=1e-5)
    log = (probed / "log.txt").read_text()
    assert "damaged.png" in log
    lines = [json.loads(line) for line in (probed / "metrics.jsonl").read_text().splitlines()]
    assert {"eval/top1", "eval/loss", "eval/knn_top1", "eval/best_layer"} <= lines[-1].keys()


def test_the_five_likeliest_count_where_there_are_more_classes(pretrained: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    probe(probe_config("demo", run, pretrained, limit=40, eval_images=40, steps=1))
    rows = read(run, "results.json")["layers"]
    assert all(0 < row["top1"] <= row["top5"] <= 1 and row["knn_top1"] < row["knn_top5"] <= 1 for row in rows)
    best = rows[read(run, "results.json")["best_layer"]]
    shown = [f"{best[name]:.2%}" for name in ("top1", "top5", "knn_top1", "knn_top5")]
    lines = [line.replace("*", "").split() for line in capsys.readouterr().out.splitlines()]
    assert [str(best["layer"]), *shown] in lines


def test_labels_may_stand_in_a_file(probed: Path, colours: Path, pretrained: Path, tmp_path: Path) -> None:
    """The classes of the folders, said by a file, make the same probe; images that it leaves out are."""
    images = sorted(path.relative_to(colours) for path in colours.rglob("*.png"))
    file, run = tmp_path / "labels.csv", tmp_path / "run"
    file.write_text("".join(f"{path},{path.parent.name}\n" for path in images))
    probe(probe_config(colours, run, pretrained, labels=str(file)))
    assert read(run, "results.json")["layers"] == read(probed, "results.json")["layers"]
    file.write_text("".join(f"{path},{path.parent.name}\n" for path in images if path.parent.name != "red"))
    probe(probe_config(colours, tmp_path / "two", pretrained, labels=str(file), steps=1))
    assert read(tmp_path / "two", "model/model.json")["classes"] == ["blue", "green"]
    assert f"21 images are not in {file} and left out" in (tmp_path / "two" / "log.txt").read_text()


def test_a_stopped_run_continues_to_the_same_weights(
    probed: Path, colours: Path, pretrained: Path, tmp_path: Path
) -> None:
    run, values = tmp_path / "run", {"save_every": "20"}
    with stopped_in_step(31):
        probe(probe_config(colours, run, pretrained, **values))
    probe(probe_config(colours, run, pretrained, **values))
    first, second = beit.load_model(probed).state_dict(), beit.load_model(run).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read(run, "results.json")["layers"] == read(probed, "results.json")["layers"]


@pytest.mark.parametrize("place", ["features", "neighbours"])
def test_a_stop_before_the_first_step_is_a_clean_one(
    place: str, probed: Path, colours: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop while features or neighbours are sought, the run says so and the same command does it all."""
    name = {"features": "layer_features", "neighbours": "knn_votes"}[place]
    work, calls = getattr(recipe, name), []

    def interrupted(*values: Any, **named: Any) -> Tensor:
        calls.append(place)
        os.kill(os.getpid(), signal.SIGTERM)
        found: Tensor = work(*values, **named)
        return found

    monkeypatch.setattr(recipe, name, interrupted)
    monkeypatch.setattr(recipe, "CHUNK", 5)
    run, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"interrupted while preparing.*; the same command continues"):
        probe(probe_config(colours, run, pretrained))
    assert len(calls) == 1 and signal.getsignal(signal.SIGTERM) == before
    assert read(run, "status.json")["state"] == "interrupted"
    assert not (run / "model").exists() and not (run / "results.json").exists()
    monkeypatch.undo()
    probe(probe_config(colours, run, pretrained))
    first, second = beit.load_model(probed).state_dict(), beit.load_model(run).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_goes_on_with_its_own_encoder_alone(colours: Path, pretrained: Path, tmp_path: Path) -> None:
    """Features are computed at each start: other weights under the same name would mix two encoders."""
    init, run = tmp_path / "init", tmp_path / "run"
    shutil.copytree(pretrained, init)
    with stopped_in_step(1):
        probe(probe_config(colours, run, init))
    model = beit.load_model(init)
    with torch.no_grad():
        model.encoder.cls_token.add_(1e-3)
    save_model(model, init / "model", provenance={})
    with pytest.raises(UserError, match=r"began with other encoder \(\w+, now \w+\); bring them back"):
        probe(probe_config(colours, run, init))
    shutil.rmtree(init)
    shutil.copytree(pretrained, init)
    probe(probe_config(colours, run, init))
    assert read(run, "status.json")["state"] == "done"


def test_the_published_protocols_train_on_random_crops(
    colours: Path, pretrained: Path, tmp_path: Path, capsys: Any
) -> None:
    for preset in ("paper", "released"):
        config = beit.configure(
            beit.ProbeConfig,
            preset,
            data=str(colours),
            out=str(tmp_path / preset),
            init=str(pretrained),
            steps=3,
            batch_size=8,
            image_size=(32, 48),
            workers=0,
            precision="float32",
            knn_images=9,
        )
        probe(config)
        description = read(tmp_path / preset, "model/model.json")
        assert description["pool"] == {"paper": "mean", "released": "cls_mean"}[preset]
        assert description["image_size"] == [32, 48]
        assert "among 9 training images" in capsys.readouterr().out


def test_what_cannot_be_probed_is_refused(
    images: Path, colours: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no encoder"):
        probe(probe_config(colours, tmp_path / "run", trained_tokenizer))
    with pytest.raises(UserError, match="class folders"):
        probe(probe_config(images, tmp_path / "run", trained_tokenizer))
    assert not (tmp_path / "run").exists()
