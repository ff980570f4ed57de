"""Images that look alike though their bytes differ: `beit check` finds them, says what follows, and shows them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_kinds import write_classes
from numpy.typing import NDArray
from PIL import Image

from beit.cli.main import main
from beit.config.use import CheckConfig, TrainConfig
from beit.recipes.check.alike import DISTANCE, LIKENESS, groups_alike, look_of
from beit.recipes.check.run import inspect
from beit.recipes.train import parts


def scene(seed: int, side: int = 64) -> Image.Image:
    """A smooth picture: 5 x 5 random colours, enlarged."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)


def save(picture: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def groups_by_all_pairs(looks: NDArray[np.float32]) -> set[frozenset[int]]:
    """What is linked, by every pair."""
    grid = looks.reshape(-1, 8, 9)
    hashes = (grid[:, :, 1:] > grid[:, :, :-1]).reshape(len(looks), -1)
    near = (hashes[:, None] != hashes[None]).sum(2) <= DISTANCE
    near &= looks @ looks.T >= LIKENESS
    reach = near.astype(np.int64)
    for _ in range(9):
        reach = (reach @ reach > 0).astype(np.int64)
    return {frozenset(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1}


def test_bands_find_what_all_pairs_find() -> None:
    rng = np.random.default_rng(0)
    looks = []
    for _ in range(60):
        first = rng.standard_normal(72)
        looks += [first + rng.uniform(0, 0.12) * rng.standard_normal(72) for _ in range(rng.integers(1, 6))]
    looks = [(look - look.mean()) / np.linalg.norm(look - look.mean()) for look in looks]
    exact = np.array(looks, dtype=np.float16).astype(np.float32)
    expected = groups_by_all_pairs(exact)
    found = groups_alike({str(i): look.astype(np.float16) for i, look in enumerate(exact)})
    assert {frozenset(map(int, group)) for group in found} == expected and len(expected) > 10
    assert sum(map(len, expected)) < len(exact), "some are like no other"
    assert groups_alike({}) == []


def test_a_look_is_that_of_the_picture_not_of_its_size_light_or_bits() -> None:
    picture = scene(1, 90)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    like = [
        torch.from_numpy(np.array(picture.resize((33, 50)))).permute(2, 0, 1),
        (pixels / 2 + 30).to(torch.uint8),
        (pixels / 255 * 0.7).float(),
        pixels.float().mean(0, keepdim=True) / 255,
        torch.cat([pixels] * 2).float() / 255,
    ]
    look = look_of(pixels).astype(np.float32)
    assert all(look_of(image).astype(np.float32) @ look > 0.99 for image in like)
    others = [pixels.flip(-1), torch.from_numpy(np.array(scene(2))).permute(2, 0, 1)]
    assert all(look_of(image).astype(np.float32) @ look < LIKENESS for image in others)
    noise = torch.randint(127, 129, (3, 64, 64), dtype=torch.uint8)
    even = [torch.full((3, 40, 40), 9, dtype=torch.uint8), torch.full((1, 8, 8), 0.3), noise]
    assert groups_alike({str(i): look_of(image) for i, image in enumerate(even * 2)}) == []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Training images, a pair of them alike, and a `val` of which one is a darker copy of one trained on."""
    root = tmp_path / "photos"
    for seed in range(6):
        save(scene(seed), root / "train" / "ab"[seed % 2] / f"{seed}.png")
    save(scene(0), root / "train/a/again.jpg", quality=80)
    save(scene(1).point(lambda value: value * 3 // 4), root / "val/b/dark.png")
    save(scene(20), root / "val/a/new.png")
    save(scene(3), root / "val/b/<copy>.png")
    return root


def test_pairs_within_and_across_splits_are_said_and_shown(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = inspect(CheckConfig(data=str(photos), workers=0))
    names = [[str(Path(name).relative_to(photos)) for name in group] for group in report.alike]
    assert names == [["train/a/0.png", "train/a/again.jpg"], ["train/b/1.png", "val/b/dark.png"]]
    assert report.across(report.alike) == report.alike[1:]
    page = tmp_path / "new/page.html"
    with pytest.raises(SystemExit) as left:
        main(["check", str(photos), "--html", str(page), "--workers", "0"])
    out = capsys.readouterr().out
    assert not left.value.code and "groups of images that look alike: 2" in out
    assert "warning: 1 image of val or test with one that looks alike in training, which flatters scores; keep" in out
    assert "(--group-by), or take them out" in out and f"wrote {page}" in out
    text = page.read_text()
    assert "warning: 1 image of val" in text and "images of 3 channels, of 8 bits" in text
    assert "val/b/&lt;copy&gt;.png" in text and "<copy>" not in text and "://" not in text
    # A few of each class of each split; both of the equal ones, and all that look alike, once more if across splits.
    assert text.count('src="data:image/jpeg;base64,') == 7 + 3 + 2 * 2 + 4 + 2 == text.count("<img")
    with pytest.raises(SystemExit) as left:
        main(["check", str(photos), "--html", str(tmp_path)])
    assert left.value.code == 2 and "--html" in capsys.readouterr().err


def test_pictures_of_many_bands_are_shown(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", "bands", 12)
    with pytest.raises(SystemExit):
        main(["check", str(data), "--html", str(tmp_path / "page.html"), "--workers", "0"])
    text = (tmp_path / "page.html").read_text()
    assert "images of 13 channels, of more than 8 bits" in text and "for want of --value-range" in text
    first = text.partition("base64,")[2].partition('"')[0]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(first)))).std() > 5


def test_a_journey_warns_of_what_flatters_its_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for number, name in enumerate(["cat", "dog"]):
            for picture in range(3):
                seed = 10 * number + picture + (100 if split == "val" and picture else 0)
                save(scene(seed, 64 if split == "train" else 72), tmp_path / split / name / f"{picture}.png")
    journey = parts.begin(TrainConfig(data=str(tmp_path), out=str(tmp_path / "run")), tmp_path / "run")
    [warning] = journey.warnings()
    assert warning.startswith("warning: 2 images of val or test with one that looks alike in training")
    assert journey._replace(task=None).warnings() == []
    monkeypatch.setattr(parts, "CHECKED", 5)
    assert journey.warnings() == [], "reading all of so many images takes too long"
