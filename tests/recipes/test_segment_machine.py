"""`beit segment` on several devices, and with images that the memory does not hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from arrivals import arrive
from ranks import as_two_ranks
from run_results import metrics
from tiny_runs import segment_config
from torch import nn

from beit.config.errors import RunFailed, UserError
from beit.config.use import EvaluateConfig
from beit.models.windows import Inference
from beit.recipes import segment as segment_recipe
from beit.recipes.evaluate.run import evaluate
from beit.recipes.segment import segment
from beit.stages import session
from beit.training.device import Compute

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------------------------
# Several devices


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_two_ranks_judge_the_model_that_is_saved(ema_decay: float | None, regions: Path, tmp_path: Path) -> None:
    """On CPUs every rank has batch norms of its own, and moving averages of them."""
    run = tmp_path / "run"
    as_two_ranks(segment, segment_config(regions, run, reduce_zero_label=True, lr=1e-2, ema_decay=ema_decay))
    alone = evaluate(EvaluateConfig(model=str(run), data=str(regions), workers=0, precision="float32")).results
    for name in ("loss", "miou", "macc", "aacc"):
        assert metrics(run)[-1][f"eval/{name}"] == pytest.approx(alone[name], rel=1e-5)


@pytest.mark.parametrize(
    ("device", "world", "expected"),
    [
        ("cuda", 2, nn.SyncBatchNorm),
        ("cuda", 1, nn.BatchNorm2d),
        ("cpu", 2, nn.BatchNorm2d),
    ],
)
def test_batch_norms_are_shared_by_gpus_alone(
    device: str,
    world: int,
    expected: type[nn.Module],
    regions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model that is to be trained, seen before it goes to its device."""
    trained: list[nn.Module] = []
    compute = Compute(torch.device(device), 0, world)
    monkeypatch.setattr(session, "open_compute", lambda device, timeout: compute)
    monkeypatch.setattr(Compute, "from_main", lambda self, produce: produce())  # the other rank is not there
    monkeypatch.setattr(segment_recipe, "train", lambda session, method, feed: trained.append(method.learner.model))
    segment(segment_config(regions, tmp_path / "run"))
    norms = [module for module in trained[0].modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10 and {type(norm) for norm in norms} == {expected}


# ------------------------------------------------------------------------------------------------------------
# Images too large for one pass


def test_held_back_images_that_cannot_be_judged_are_named_before_the_run(
    regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention among 5x7 patches and one token takes 36 x 36 x 16 bytes at least; among 6x7, 43 x 43 x 16."""
    monkeypatch.setattr("beit.stages.tasks.segmentation.memory_of", lambda device: 25_000)
    run = tmp_path / "run"
    large = f"{regions / 'images/validation/1.jpg'}: an image of 56x44 px in one pass takes"
    with pytest.raises(UserError, match=f"{re.escape(large)} .*; choose --window slide, or make it smaller"):
        segment(segment_config(regions, run, window="whole"))
    assert not run.exists()
    for fitting in ({"window": "whole", "resize": 24}, {"window": "slide"}):
        segment(segment_config(regions, run, **fitting), dry_run=True)


def test_a_lack_of_memory_in_an_evaluation_names_the_image(
    regions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Inference.scores

    def scarce(self: Inference, model: Any, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if size[0] == 44:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return scores(self, model, images, size)

    monkeypatch.setattr(Inference, "scores", scarce)
    expected = f"{regions / 'images/validation/1.jpg'}: out of memory with an image of 56x44 px; choose --window"
    with pytest.raises(RunFailed, match=re.escape(expected)):
        segment(segment_config(regions, tmp_path / "run", window="whole"))
    run = arrive(segment, segment_config(regions, tmp_path / "drawn", window="whole"))
    draw = run.method.evaluation.draw
    assert draw is not None
    with pytest.raises(RunFailed, match="out of memory with an image of 56x44 px; choose --window slide"):
        draw(run.model.eval(), run.batches.samples(1), tmp_path, 0)
