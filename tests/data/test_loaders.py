"""The order of batches and their content are functions of (seed, step), whatever the machine looks like."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from beit.config.errors import RunFailed, UserError
from beit.data.batches import ImageBatch, LabeledBatch, PretrainBatch
from beit.data.decode import ImageError
from beit.data.loaders import Loader, evaluation_batches
from beit.data.views.evaluation import EvaluationView, LabeledView
from beit.data.views.pretraining import PretrainViews
from beit.data.workers import WorkerError
from beit.patience import Silence


class Numbers:
    """Image i is the number i; those of `bad` are damaged."""

    classes: tuple[str, ...] | None = ("even", "odd")

    def __init__(self, size: int, bad: tuple[int, ...] = (), size_of_image: int = 1) -> None:
        self.size, self.bad, self.side = size, bad, size_of_image
        self.notes: list[str] = []
        self.fingerprint = "numbers"

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"number {index}"

    key = name

    def image(self, index: int) -> Tensor:
        if index in self.bad:
            raise ImageError(self.name(index), "is unlucky")
        noise = np.random.default_rng(index).integers(0, 256, (3, self.side, self.side))
        return torch.from_numpy(noise).byte() if self.side > 1 else torch.full((3, 1, 1), index % 256).byte()

    def label(self, index: int) -> int:
        return index % 2

    def describe(self) -> str:
        return f"{self.size} numbers"


def plain(image: Tensor, rng: np.random.Generator) -> ImageBatch:
    return ImageBatch(image)


def masking(rng: np.random.Generator) -> np.ndarray:
    return rng.random((4, 4)) < 0.4


def numbers(batches: list[ImageBatch]) -> list[int]:
    return [int(value) for batch in batches for value in batch.image[:, 0, 0, 0]]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 60),
    world=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    per_pass=st.integers(1, 4),
    seed=st.integers(0, 5),
    stop=st.integers(0, 20),
    data=st.data(),
)
def test_order(
    size: int, world: int, accumulate: int, per_pass: int, seed: int, stop: int, data: st.DataObject
) -> None:
    batch_size = world * accumulate * per_pass
    source = Numbers(size)
    whole = numbers(list(Loader(source, plain, batch_size=batch_size, seed=seed).batches(0, stop)))

    # Every image once in each epoch, in another order each time.
    for start in range(0, len(whole) - size + 1, size):
        assert sorted(whole[start : start + size]) == list(range(size))

    # The ranks' passes together are the global batch, in order.
    ranks = [
        list(
            Loader(
                source, plain, batch_size=batch_size, seed=seed, rank=r, world=world, accumulate=accumulate
            ).batches(0, stop)
        )
        for r in range(world)
    ]
    assert all(len(passes) == stop * accumulate for passes in ranks)
    joined = [batch for passes in zip(*ranks, strict=True) for batch in passes]
    assert numbers(joined) == whole

    # Stopping and starting again anywhere changes nothing.
    cut = data.draw(st.integers(0, stop))
    loader = Loader(source, plain, batch_size=batch_size, seed=seed)
    assert numbers(list(loader.batches(0, cut)) + list(loader.batches(cut, stop))) == whole


def test_seeds_are_those_of_every_earlier_version() -> None:
    """Or a run that one of them began would go on with other images."""

    def draw(image: Tensor, rng: np.random.Generator) -> ImageBatch:
        return ImageBatch(image + int(rng.integers(100)))

    loader = Loader(Numbers(5), draw, batch_size=5, seed=3)
    assert [image for _, image in loader.samples(0) + loader.samples(1)] == [0, 4, 2, 3, 1, 4, 3, 2, 0, 1]
    assert numbers(list(loader.batches(0, 1))) == [94, 27, 20, 79, 11]
    [(_, batch)] = evaluation_batches(Numbers(5), draw, batch_size=5, seed=3)
    assert numbers([batch]) == [3, 83, 20, 41, 6]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), world=st.integers(1, 4), batch_size=st.integers(1, 9))
def test_evaluation_sees_every_image_once(size: int, world: int, batch_size: int) -> None:
    seen = [
        number
        for rank in range(world)
        for number in numbers(
            [
                batch
                for _, batch in evaluation_batches(
                    Numbers(size), plain, batch_size=batch_size, seed=0, rank=rank, world=world
                )
            ]
        )
    ]
    assert sorted(seen) == list(range(size))


def test_workers_and_resume_give_the_same_tensors() -> None:
    """Augmentation, masks and replacements of damaged files included; the global generators stay untouched."""
    source = Numbers(20, bad=(3, 7), size_of_image=24)
    views = PretrainViews((16, 16), (8, 8), masking)
    state = torch.random.get_rng_state()

    def run(start: int, workers: int) -> list[PretrainBatch]:
        loader = Loader(source, views, batch_size=4, seed=1, workers=workers, accumulate=2, max_bad=1)
        return list(loader.batches(start, 12))

    reference = run(0, workers=0)
    assert isinstance(reference[0], PretrainBatch) and reference[0].image.shape == (2, 3, 16, 16)
    assert same(run(0, workers=2), reference)
    assert same(run(5, workers=2), reference[10:])
    assert same(run(7, workers=0), reference[14:])
    assert torch.equal(torch.random.get_rng_state(), state)
    # Another epoch shows the same image differently.
    assert not any(
        torch.equal(a, b) for p in reference[:10] for q in reference[10:] for a in p.image for b in q.image
    )


def test_labels_reach_labeled_views() -> None:
    loader = Loader(Numbers(10), LabeledView(EvaluationView((2, 2))), batch_size=5, seed=0, labeled=True)
    for batch in loader.batches(0, 2):
        assert isinstance(batch, LabeledBatch)
        assert torch.equal(batch.label, batch.image[:, 0, 0, 0].long() % 2)


def test_repeats_show_an_image_several_times_differently_drawn() -> None:
    loader = Loader(Numbers(6), plain, batch_size=6, seed=0, repeats=2)
    order = numbers(list(loader.batches(0, 2)))
    assert order[::2] == order[1::2] and sorted(order[::2]) == list(range(6))
    assert len(set(loader.samples(0))) == 6


def test_batch_size_must_divide() -> None:
    with pytest.raises(UserError, match=r"--batch-size 10 .* multiple of 4"):
        Loader(Numbers(9), plain, batch_size=10, seed=0, world=2, accumulate=2)


# ------------------------------------------------------------------------------------------------------------
# Damage


def test_damaged_files_are_reported_once_and_replaced() -> None:
    told: list[tuple[str, str]] = []
    source = Numbers(100, bad=(3, 50))
    loader = Loader(source, plain, batch_size=10, seed=0, on_bad=lambda *bad: told.append(bad))
    batches = list(loader.batches(0, 30))
    assert sorted(told) == [("number 3", "is unlucky"), ("number 50", "is unlucky")]
    assert {len(batch.image) for batch in batches} == {10}
    assert not {3, 50} & set(numbers(batches))


def test_too_much_damage_stops_the_run() -> None:
    loader = Loader(Numbers(100, bad=tuple(range(20))), plain, batch_size=10, seed=0, max_bad=0.05)
    with pytest.raises(RunFailed, match=r"damaged \(\d+ files\), more than --max-bad 0.05") as caught:
        list(loader.batches(0, 30))
    assert "\n" not in str(caught.value)
    list(Loader(Numbers(100, bad=tuple(range(20))), plain, batch_size=10, seed=0, max_bad=0.5).batches(0, 30))
    # A handful is bearable in any set, but a set of nothing else is not.
    list(Loader(Numbers(10, bad=(0, 1, 2)), plain, batch_size=5, seed=0, max_bad=0.01).batches(0, 10))
    with pytest.raises(RunFailed, match="images in a row are damaged"):
        list(Loader(Numbers(3, bad=(0, 1, 2)), plain, batch_size=3, seed=0, max_bad=1).batches(0, 1))


def test_evaluation_leaves_damaged_files_out() -> None:
    told: list[str] = []
    batches = list(
        evaluation_batches(
            Numbers(7, bad=(0, 1, 5)), plain, batch_size=2, seed=0, on_bad=lambda name, _: told.append(name)
        )
    )
    assert [images for images, _ in batches] == [[2, 3], [4], [6]]
    assert numbers([batch for _, batch in batches]) == [2, 3, 4, 6]
    assert told == ["number 0", "number 1", "number 5"]


class Deadly(Numbers):
    """Image 5 kills whoever reads it, as the kernel does when memory runs out."""

    def image(self, index: int) -> Tensor:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


class Faulty(Numbers):
    def image(self, index: int) -> Tensor:
        raise ZeroDivisionError("a bug")


def test_a_killed_worker_is_a_clear_error() -> None:
    loader = Loader(Deadly(8), plain, batch_size=4, seed=0, workers=1)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"a loader process died \(.*pid.*--workers"):
        list(loader.batches(0, 4))
    assert time.monotonic() - start < 60


def test_bugs_keep_their_type() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(Loader(Faulty(8), plain, batch_size=4, seed=0, workers=1).batches(0, 1))


class Signalled(Numbers):
    """Sends its own process what a terminal and a scheduler send to a whole group."""

    def image(self, index: int) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return super().image(index)


def test_no_worker_outlives_its_loader_though_a_traceback_holds_it() -> None:
    loader = Loader(Faulty(8), plain, batch_size=4, seed=0, workers=2)
    with pytest.raises(ZeroDivisionError) as held:
        list(loader.batches(0, 2))
    assert not multiprocessing.active_children()
    assert held.tb is not None


def test_workers_outlive_signals_to_the_group() -> None:
    loader = Loader(Signalled(8), plain, batch_size=4, seed=0, workers=1)
    assert sorted(numbers(list(loader.batches(0, 2)))) == list(range(8))


def test_files_that_vanish_during_a_run_are_damaged_files(tmp_path: Path) -> None:
    from PIL import Image

    from beit.data.sources.holdout import Holdout
    from beit.data.sources.opening import open_splits

    for i in range(12):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02d}.png")
    source = open_splits([str(tmp_path)], holdout=Holdout(0))["train"]
    (tmp_path / "04.png").unlink()
    told: list[tuple[str, str]] = []
    loader = Loader(source, plain, batch_size=6, seed=0, on_bad=lambda *bad: told.append(bad))
    assert 4 not in numbers(list(loader.batches(0, 4)))
    assert told == [(str(tmp_path / "04.png"), "No such file or directory")]


class Silent(Numbers):
    """Whoever reads image 5 in another process is stopped there, as by a file system that hangs."""

    def __init__(self) -> None:
        super().__init__(12)
        self.main = os.getpid()

    def image(self, index: int) -> Tensor:
        if index == 5 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().image(index)


def test_a_silent_worker_is_given_up_and_named_with_its_image() -> None:
    loader = Loader(Silent(), plain, batch_size=4, seed=0, workers=2, timeout=1)
    started = time.monotonic()
    with pytest.raises(Silence, match=r"loader process \d+ is silent over number 5: .*--timeout"):
        list(loader.batches(0, 3))
    assert time.monotonic() - started < 60 and not multiprocessing.active_children()


def test_a_worker_that_is_stopped_with_its_work_done_is_given_up() -> None:
    """Its batches are announced, but whoever takes them has to ask it for them."""
    batches = Loader(Numbers(64), plain, batch_size=4, seed=0, workers=1, timeout=1).batches(0, 16)
    next(batches)
    [worker] = multiprocessing.active_children()
    time.sleep(0.5)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(Silence, match=f"loader process {worker.pid} is silent"):
        list(batches)


class Slow(Numbers):
    def image(self, index: int) -> Tensor:
        time.sleep(0.4)
        return super().image(index)


def test_a_slow_worker_is_not_a_silent_one() -> None:
    assert len(list(Loader(Slow(8), plain, batch_size=8, seed=0, workers=1, timeout=2).batches(0, 1))) == 1


def test_a_worker_that_is_killed_is_told_where_a_batch_is_awaited() -> None:
    """And not wherever the main thread happens to be: in a step, an evaluation, a save."""
    batches = Loader(Numbers(64), plain, batch_size=4, seed=0, workers=1).batches(0, 16)
    next(batches)
    [worker] = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass  # a step
    with pytest.raises(WorkerError, match=f"a loader process died .pid {worker.pid}"):
        list(batches)


class Holder(Numbers):
    """Killed while it asks whether the work is over, and takes the lock of that question with it, if there is one."""

    def image(self, index: int) -> Tensor:
        if index == 5:
            for thing in gc.get_objects():
                if type(thing) is multiprocessing.synchronize.Event:
                    thing._cond.acquire()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_holds_nothing_that_the_rest_waits_for() -> None:
    batches = Loader(Holder(64), plain, batch_size=4, seed=0, workers=1, timeout=5).batches(0, 16)
    with pytest.raises(WorkerError, match="a loader process died"):
        list(batches)


class Needy(Numbers):
    def image(self, index: int) -> Tensor:
        if index == 5:
            raise MemoryError
        return super().image(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lack_of_memory_stops_and_is_no_damage(workers: int) -> None:
    told: list[tuple[str, str]] = []
    options = {"max_bad": 1, "on_bad": lambda *bad: told.append(bad)}
    loader = Loader(Needy(8), plain, batch_size=4, seed=0, workers=workers, **options)
    with pytest.raises(RunFailed, match="memory ran out over number 5: lower --workers"):
        list(loader.batches(0, 2))
    assert told == []
